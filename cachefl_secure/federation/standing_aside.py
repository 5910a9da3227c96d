"""A silo's operator may stand aside: pause, go on, or leave. Nobody is asked, and the service need not be stopped for it.

The silo declines from the next round on. What it has begun it finishes, so that no round is lost by it.
"""

from __future__ import annotations

from typing import Literal

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.state_dir import StateDir

Aside = Literal["paused", "left"]


def standing_aside(state: StateDir) -> Aside | None:
    """Whether this silo takes no part for now ("paused") or for ever ("left").

    Raises:
        ConfigError: it could not be looked at, so nothing may be begun.
    """
    if state.has("left"):
        return "left"
    return "paused" if state.has("paused") else None


def stand_aside(state: StateDir, how: Aside) -> None:
    """
    Raises:
        ConfigError: not written.
    """
    state.write(how, b"")


def take_part_again(state: StateDir) -> None:
    """
    Raises:
        ConfigError: this silo has left: others may have agreed to a roster without it. A new silo may join.
    """
    if standing_aside(state) == "left":
        raise ConfigError(str(state.root), "", "has left this federation; join with a new directory and name")
    state.remove("paused")
