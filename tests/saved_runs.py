"""Work directories as `train.py` leaves them, without the training."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
from fakes import bert_config, config, random_params
from small_data import VOCABULARY, write_vocabulary

from pbr_jax.configs.common import Config, Data
from pbr_jax.files import write_json
from pbr_jax.runs.checkpoints import Checkpointer
from pbr_jax.runs.run import CLASSES
from pbr_jax.settings import saved as configuration
from pbr_jax.training import from_config

NAMES = ("none", "one", "two", "three")


def vit_run(workdir: Path, **changes) -> list:
    """A run of a grey ViT of 4 x 4 pixels and four classes; returns the parameters of each step."""
    return write_run(workdir, config(**changes))


def bert_run(workdir: Path) -> list:
    """A run of a BERT with the vocabulary of `small_data`."""
    workdir.mkdir()
    settings = bert_config(data=Data(name="jsonl", path="no", tokenizer=write_vocabulary(workdir)))
    model = dataclasses.replace(settings.model, vocab_size=len(VOCABULARY), max_length=12)
    return write_run(workdir, dataclasses.replace(settings, model=model))


def write_run(workdir: Path, settings: Config) -> list:
    """Two checkpoints of other parameters, the first of which is the most accurate."""
    workdir.mkdir(exist_ok=True)
    write_json(workdir / "config.json", configuration.to_dict(settings))
    write_json(workdir / CLASSES, dict(zip(map(str, range(4)), NAMES, strict=True)))
    parts = from_config.build(settings)
    saved = []
    with Checkpointer(workdir / "checkpoints", 2) as checkpoints:
        for step, accuracy in ((1, 0.9), (2, 0.5)):
            params = random_params(parts.model.module, step)
            state = from_config.new_state(settings, parts, params)
            state = state._replace(step=jnp.int32(step))
            checkpoints.save(step, state, {}, {"accuracy": accuracy})
            saved.append(params)
    return saved
