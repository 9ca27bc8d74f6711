"""Sites of a transformer block, which ViT and BERT share."""

from pbr_jax.configs.common import Model
from pbr_jax.families.record import Architecture, Attention, Site


def describe(model: Model, tokens: int) -> Architecture:
    """A transformer of `tokens` tokens: `qkv` and `fc1` read a LayerNorm's output.

    Raises:
      ValueError: the sizes are incomplete.
    """
    m = model.resolved()
    if m.width is None or m.depth is None or m.heads is None or m.mlp_dim is None:
        raise ValueError(f"model = {m}: needs width, depth, heads and mlp_dim, or else size")
    # q, k and v share their input, so that they are one layer of three times the width.
    sizes = {
        "qkv": (m.width, 3 * m.width),
        "proj": (m.width, m.width),
        "fc1": (m.width, m.mlp_dim),
        "fc2": (m.mlp_dim, m.width),
    }
    sites = {name: Site(*size, ("blocks", name)) for name, size in sizes.items()}
    return Architecture(m.width, m.depth, tokens, sites, Attention("qkv", m.heads))
