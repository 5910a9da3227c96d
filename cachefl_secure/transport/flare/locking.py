"""A directory's lock, with a little patience."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.state_dir import StateDir

_PATIENCE_SECONDS, _LOOK_SECONDS = 20.0, 0.2


@contextlib.contextmanager
def patient_lock(state: StateDir) -> Iterator[None]:
    """The lock of the directory, also if a short command or a job that is being ended has it for a moment.

    Raises:
        ConfigError: the directory stays in use.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(state.lock())
                break
            except ConfigError:
                if time.monotonic() > until:
                    raise
            time.sleep(_LOOK_SECONDS)
        yield
