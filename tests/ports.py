"""Ports for servers that a test starts."""

from __future__ import annotations

import itertools
import os
import socket

# Below those that systems give out by themselves (from 32,768 on Linux, 49,152 elsewhere): between the look and the
# use no connection of another process gets it by chance. Each process looks in a range of its own.
_FIRST, _EACH, _RANGES = 12_000, 40, 500
_numbers = itertools.count()


def free_port() -> int:
    """A port that nobody listens at, another at each call; the one after it is not given out either."""
    for number in itertools.islice(_numbers, _EACH // 2):
        port = _FIRST + os.getpid() % _RANGES * _EACH + 2 * number % _EACH
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
        return port
    raise AssertionError("no free port")
