"""Keeps the hub's library from the network, whoever calls it: at a silo nothing is ever downloaded."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@contextlib.contextmanager
def without_hub(offline: bool = True) -> Iterator[None]:
    """Inside, huggingface_hub and what rests on it answer from this machine's cache or raise. For one thread.

    ``local_files_only`` is given as well wherever we ask the hub ourselves; this is for what libraries ask unasked.
    """
    if not offline:
        yield
        return
    # The library reads the variable once, when it is imported, so both are set: it may be imported only inside.
    from huggingface_hub import constants

    before, variables = constants.HF_HUB_OFFLINE, {name: os.environ.get(name) for name in _VARIABLES}
    constants.HF_HUB_OFFLINE = True
    os.environ.update(dict.fromkeys(_VARIABLES, "1"))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        for name, value in variables.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
