"""Small files with the names and shapes of public weights, and what their models compute."""

import math

import numpy as np
from scipy import special

WIDTH, HEADS, MLP, PATCH, BLOCKS, CLASSES = 16, 2, 32, 2, 2, 5
VOCAB, POSITIONS = 20, 8
ATTENTION = "MultiHeadDotProductAttention_1"


def fill(shapes, seed=0):
    """Random float32 arrays; scales of norms are about one."""
    generator = np.random.default_rng(seed)

    def draw(name, shape):
        values = 0.3 * generator.standard_normal(shape)
        scale = name.endswith(("scale", "gamma")) or ("norm" in name.lower() and "weight" in name)
        return (values + scale).astype(np.float32)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def google_vit(classes=CLASSES, grid=2, blocks=BLOCKS, width=WIDTH):
    """As `ViT-B_16.npz`."""
    head = width // HEADS
    shapes = {
        "cls": (1, 1, width),
        "embedding/kernel": (PATCH, PATCH, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, grid**2 + 1, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, classes),
        "head/bias": (classes,),
    }
    for i in range(blocks):
        block = f"Transformer/encoderblock_{i}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/{leaf}": (width,) for leaf in ("scale", "bias")}
        for part in ("query", "key", "value"):
            shapes[f"{block}/{ATTENTION}/{part}/kernel"] = (width, HEADS, head)
            shapes[f"{block}/{ATTENTION}/{part}/bias"] = (HEADS, head)
        shapes[f"{block}/{ATTENTION}/out/kernel"] = (HEADS, head, width)
        shapes[f"{block}/{ATTENTION}/out/bias"] = (width,)
        shapes[f"{block}/MlpBlock_3/Dense_0/kernel"] = (width, MLP)
        shapes[f"{block}/MlpBlock_3/Dense_0/bias"] = (MLP,)
        shapes[f"{block}/MlpBlock_3/Dense_1/kernel"] = (MLP, width)
        shapes[f"{block}/MlpBlock_3/Dense_1/bias"] = (width,)
    return fill(shapes)


def google_vit_logits(arrays, images):
    """The ViT that the names belong to, in NumPy float64."""
    w = {name: array.astype(np.float64) for name, array in arrays.items()}

    def norm(x, name):
        return layer_norm(x, w[f"{name}/scale"], w[f"{name}/bias"], 1e-6)

    def dense(x, name, equation="bnd,df->bnf"):
        return np.einsum(equation, x, w[f"{name}/kernel"]) + w[f"{name}/bias"]

    side = images.shape[1] // PATCH
    squares = images.reshape(len(images), side, PATCH, side, PATCH, 3)
    x = np.einsum("bipjqc,pqcd->bijd", squares, w["embedding/kernel"]) + w["embedding/bias"]
    x = x.reshape(len(images), side * side, WIDTH)
    x = np.concatenate([np.repeat(w["cls"], len(x), axis=0), x], axis=1)
    x = x + w["Transformer/posembed_input/pos_embedding"]
    for i in range(BLOCKS):
        block = f"Transformer/encoderblock_{i}"
        h = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (
            dense(h, f"{block}/{ATTENTION}/{part}", "bnd,dhc->bnhc")
            for part in ("query", "key", "value")
        )
        x = x + dense(attend(q, k, v), f"{block}/{ATTENTION}/out", "bnhc,hcd->bnd")
        h = dense(norm(x, f"{block}/LayerNorm_2"), f"{block}/MlpBlock_3/Dense_0")
        x = x + dense(h * special.ndtr(h), f"{block}/MlpBlock_3/Dense_1")
    return norm(x, "Transformer/encoder_norm")[:, 0] @ w["head/kernel"] + w["head/bias"]


def as_huggingface_vit(google):
    """The same weights as `ViTForImageClassification` names and shapes them."""
    out = {
        "vit.embeddings.cls_token": google["cls"],
        "vit.embeddings.position_embeddings": google["Transformer/posembed_input/pos_embedding"],
        "vit.embeddings.patch_embeddings.projection.weight": np.moveaxis(
            google["embedding/kernel"], (0, 1), (2, 3)
        ).swapaxes(0, 1),
        "vit.embeddings.patch_embeddings.projection.bias": google["embedding/bias"],
        "vit.layernorm.weight": google["Transformer/encoder_norm/scale"],
        "vit.layernorm.bias": google["Transformer/encoder_norm/bias"],
        "classifier.weight": google["head/kernel"].T,
        "classifier.bias": google["head/bias"],
    }
    for i in range(BLOCKS):
        block, layer = f"Transformer/encoderblock_{i}", f"vit.encoder.layer.{i}"
        for theirs, ours in (("before", "LayerNorm_0"), ("after", "LayerNorm_2")):
            out[f"{layer}.layernorm_{theirs}.weight"] = google[f"{block}/{ours}/scale"]
            out[f"{layer}.layernorm_{theirs}.bias"] = google[f"{block}/{ours}/bias"]
        for name in ("query", "key", "value"):
            part = f"{block}/{ATTENTION}/{name}"
            kernel = google[f"{part}/kernel"].reshape(WIDTH, WIDTH)
            out[f"{layer}.attention.attention.{name}.weight"] = kernel.T
            out[f"{layer}.attention.attention.{name}.bias"] = google[f"{part}/bias"].ravel()
        kernel = google[f"{block}/{ATTENTION}/out/kernel"].reshape(WIDTH, WIDTH)
        out[f"{layer}.attention.output.dense.weight"] = kernel.T
        out[f"{layer}.attention.output.dense.bias"] = google[f"{block}/{ATTENTION}/out/bias"]
        for theirs, ours in (("intermediate", "Dense_0"), ("output", "Dense_1")):
            dense = f"{block}/MlpBlock_3/{ours}"
            out[f"{layer}.{theirs}.dense.weight"] = google[f"{dense}/kernel"].T
            out[f"{layer}.{theirs}.dense.bias"] = google[f"{dense}/bias"]
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def huggingface_bert(classes=CLASSES, positions=POSITIONS):
    """As `BertForSequenceClassification` saves it."""

    def linear(name, inputs, out):
        return {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}

    def norm(name):
        return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}

    shapes = {
        "bert.embeddings.word_embeddings.weight": (VOCAB, WIDTH),
        "bert.embeddings.position_embeddings.weight": (positions, WIDTH),
        "bert.embeddings.token_type_embeddings.weight": (2, WIDTH),
        **norm("bert.embeddings.LayerNorm"),
        **linear("bert.pooler.dense", WIDTH, WIDTH),
        **linear("classifier", WIDTH, classes),
    }
    for i in range(BLOCKS):
        layer = f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.self.{part}", WIDTH, WIDTH)
        shapes |= linear(f"{layer}.attention.output.dense", WIDTH, WIDTH)
        shapes |= norm(f"{layer}.attention.output.LayerNorm")
        shapes |= linear(f"{layer}.intermediate.dense", WIDTH, MLP)
        shapes |= linear(f"{layer}.output.dense", MLP, WIDTH)
        shapes |= norm(f"{layer}.output.LayerNorm")
    return fill(shapes)


def huggingface_bert_logits(arrays, batch):
    """The BERT that the names belong to, in NumPy float64."""
    w = {name.removeprefix("bert."): array.astype(np.float64) for name, array in arrays.items()}

    def norm(x, name):
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    rows, length = batch["tokens"].shape
    x = w["embeddings.word_embeddings.weight"][batch["tokens"]]
    x = x + w["embeddings.position_embeddings.weight"][:length]
    x = x + w["embeddings.token_type_embeddings.weight"][batch["token_types"]]
    x = norm(x, "embeddings.LayerNorm")
    hidden = np.arange(length) >= np.asarray(batch["lengths"])[:, None]
    for i in range(BLOCKS):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            dense(x, f"{layer}.attention.self.{part}").reshape(rows, length, HEADS, -1)
            for part in ("query", "key", "value")
        )
        out = attend(q, k, v, hidden).reshape(x.shape)
        x = norm(
            x + dense(out, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm"
        )
        h = dense(x, f"{layer}.intermediate.dense")
        x = norm(
            x + dense(h * special.ndtr(h), f"{layer}.output.dense"), f"{layer}.output.LayerNorm"
        )
    return dense(np.tanh(dense(x[:, 0], "pooler.dense")), "classifier")


def layer_norm(x, scale, bias, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def attend(q, k, v, hidden=None):
    """Attention of `[B, N, H, C]`; `hidden` `[B, N]` are keys that nobody sees."""
    scores = np.einsum("bnhc,bmhc->bhnm", q, k) / math.sqrt(q.shape[-1])
    if hidden is not None:
        scores = np.where(hidden[:, None, None], -np.inf, scores)
    return np.einsum("bhnm,bmhc->bnhc", special.softmax(scores, axis=-1), v)
