"""The key-value store of `jax.distributed`: small texts that all processes of a job see."""

from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed  # the store has no public name in jax 0.11

_PREFIX = "pbr_jax/"
_FOR_EVER = 2**31 - 1  # milliseconds; whoever waits is ended by the watch


class Texts:
    """Texts by key. All methods may be called on any thread.

    `client` is that of `jax.distributed`, or another with its methods.
    """

    def __init__(self, client: Any = None) -> None:
        self._client: Any = client or distributed.global_state.client

    def put(self, key: str, text: str, *, replace: bool = False) -> bool:
        """Sets a text for all; False where there is one already and `replace` is not asked."""
        try:
            self._client.key_value_set(_PREFIX + key, text, allow_overwrite=replace)
        except jax.errors.JaxRuntimeError as error:
            if "ALREADY_EXISTS" in str(error):
                return False
            raise
        return True

    def wait_for(self, key: str) -> str:
        """The text of a key, as soon as it has one."""
        text: str = self._client.blocking_key_value_get(_PREFIX + key, _FOR_EVER)
        return text

    def under(self, folder: str) -> Mapping[str, str]:
        """The texts whose keys begin with `folder/`, by the rest of the key."""
        prefix = f"{_PREFIX}{folder}/"
        return {
            key.removeprefix(prefix): text for key, text in self._client.key_value_dir_get(prefix)
        }
