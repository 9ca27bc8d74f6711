"""A key-value store in memory, for several processes of one job in one test."""

import jax

from pbr_jax.hosts.texts import Texts


class FakeClient:
    """What `Texts` asks of the client of `jax.distributed`."""

    def __init__(self):
        self.texts = {}

    def key_value_set(self, key, text, allow_overwrite=False):
        if key in self.texts and not allow_overwrite:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: key {key} already exists.")
        self.texts[key] = text

    def blocking_key_value_get(self, key, milliseconds):
        return self.texts[key]

    def key_value_dir_get(self, folder):
        return [(key, text) for key, text in self.texts.items() if key.startswith(folder)]


def texts_of(count):
    """The stores of so many processes of one job."""
    client = FakeClient()
    return [Texts(client) for _ in range(count)]
