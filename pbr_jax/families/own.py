"""A model of one's own, whose code stays as it is: a function that makes it, as a family.

    def make(model):                       # the settings `config.model`, to read what is wanted
        return MyModule(model.num_classes), "image"

    --config.model.family=my_module:make --config.method=prebackrazor

The function returns a Flax module, Linen or NNX, and what it reads of a batch: a name, several in
the order of its arguments, or `{argument: name}`. A batch of images has `image`, float32
`[B, H, W, C]`; one of texts `tokens` and `token_types`, int32 `[B, N]`, and `lengths`, int32 `[B]`.
Outputs are logits `[B, classes]`, or an object with them as `logits`. An argument of the module
called `train`, `training`, `is_training` or `deterministic` is set by the trainer.

* An NNX module is made of `make(model, rngs)`, so that the seed of the run is that of the weights.
* Pretrained weights of a Linen module come third, `{"params": ...}` or the parameters alone; what
  they lack, such as a new head, is drawn. Those of an NNX module are in the module.

It is pruned by `pbr_jax.prune`; what a block keeps is its own affair, so that of the methods only
those that prune columns, or nothing, apply, and `lora` to a Linen module. `pruning.keep` of a site
is then that of all parameters in whose path its name, a regular expression, is found.
"""

from pbr_jax.families import bert
from pbr_jax.families.record import Family


def family(place: str) -> Family:
    """The family of the function at `place`."""
    return Family(
        name=place.rpartition(":")[2],
        title=place,
        reads=None,
        describe=None,
        build=place,
        traced=True,
        provider="pbr_jax.training.own_model:own_model",
        methods=("full", "lora", "static", "static-groups", "prebackrazor"),
        usual=("full", "static", "prebackrazor"),  # of any module, whatever its kind and widths
        shape=(),
        # Those of texts are the same for every model.
        integers=bert.FAMILY.integers,
        lengths=bert.FAMILY.lengths,
        published="pbr_jax.weights.own:PUBLISHED",
    )
