"""Transformers that train under every residual plan.

A model says what it reads of a batch: `inputs(batch)`, and the shapes of these entries:
`input_specs(batch_size)`. Called with the inputs it gives its outputs, `[B, ...]`. The layers that
sites feed are stacked over the blocks, where the family's `Architecture` says.
"""
