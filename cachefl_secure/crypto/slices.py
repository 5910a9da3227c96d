"""A long vector cut among threads. What comes out never depends on how many there were."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cachefl_secure.crypto.expand import gcm_is_faster

MAX_THREADS = 4
_WORTH_A_THREAD = 1 << 19  # entries; below, starting a thread costs more than it saves
_FIRST = 1.15  # streams read from their start are faster by this where they come by way of GCM

T = TypeVar("T")


def threads_for(entries: int) -> int:
    """As many as there are processors to run on, at most four, and one where the vector is short."""
    if entries < 2 * _WORTH_A_THREAD:
        return 1  # without asking the system
    try:
        processors = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        processors = os.cpu_count() or 1
    return min(processors, MAX_THREADS, entries // _WORTH_A_THREAD)


def slices(entries: int, threads: int, unit: int) -> list[tuple[int, int]]:
    """(start, stop) of at most ``threads`` slices, in order, none empty; all but the last end at a multiple of ``unit``."""
    units, first = -(-entries // unit), _FIRST if gcm_is_faster() else 1.0
    ends = [min(entries, round(units * (first + i) / (first + threads - 1)) * unit) for i in range(threads)]
    return [(start, stop) for start, stop in zip([0, *ends], ends, strict=False) if start < stop]


def in_threads(work: Callable[[int, int], T], parts: list[tuple[int, int]]) -> list[T]:
    """``work(start, stop)`` of every slice, in order. One slice needs no thread; a failure of any is raised."""
    if len(parts) == 1:
        return [work(*parts[0])]
    with ThreadPoolExecutor(len(parts) - 1) as pool:
        others = [pool.submit(work, *part) for part in parts[1:]]
        return [work(*parts[0]), *(other.result() for other in others)]
