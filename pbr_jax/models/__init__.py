"""Transformers that train under every residual plan.

A model says what it reads of a batch: `inputs(batch)`, and the shapes of these entries:
`input_specs(batch_size)`. Called with the inputs it gives logits, float32 `[B, classes]`. Its
blocks are stacked under `params["blocks"]`, with the sites of a plan.
"""

from pbr_jax.models.bert import Bert
from pbr_jax.models.vit import ViT

Classifier = ViT | Bert

__all__ = ["Bert", "Classifier", "ViT"]
