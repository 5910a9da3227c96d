"""Which strategy a seed plays, and many seeds in a process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.simulation.changes import changing, coming_and_going
from tests.simulation.lies import STRATEGIES, a_second_release
from tests.simulation.mechanisms import ONE_RELEASE, mechanism_of_seed
from tests.simulation.world import Faults, Stage, Strategy, World, honest, is_honest, play

QUIET = Faults()
"""Nothing goes wrong by itself: a strategy is then followed to its end."""


def strategy_of(seed: int) -> Strategy:
    """Three schedules in four have an honest coordinator; in one of six of these the roster changes."""
    if seed % 16 == 1:
        return changing
    if seed % 16 == 9:
        return coming_and_going
    more = (a_second_release,) if mechanism_of_seed(seed) in ONE_RELEASE else ()
    lies = (*STRATEGIES, *more)
    return honest if seed % 4 else lies[seed // 4 % len(lies)]


def play_by_seed(
    stage: Stage, seed: int, strategy: Strategy | None = None, mechanism: str | None = None
) -> World:
    """The schedule of this seed; two in three lying coordinators meet a network without faults."""
    chosen = strategy or strategy_of(seed)
    quiet = not is_honest(chosen) and seed % 3
    return play(stage, seed, chosen, QUIET if quiet else None, mechanism or mechanism_of_seed(seed))


@dataclass(frozen=True)
class Played:
    """What many schedules came to."""

    schedules: int
    records: int
    events: int

    def plus(self, other: Played) -> Played:
        return Played(
            self.schedules + other.schedules, self.records + other.records, self.events + other.events
        )


def fast_folder() -> Path | None:
    """A file system in memory, where there is one."""
    shared_memory = Path("/dev/shm")
    return shared_memory if shared_memory.is_dir() else None


def soak(
    first: int,
    number: int,
    minutes: float,
    processes: int = 2,
    batch: int = 1000,
    tell: Callable[[Played], None] | None = None,
) -> Played:
    """Up to ``number`` schedules in worker processes, for about so many minutes at most; tells what is done so far.

    Raises:
        Violation: of a schedule that breaks an invariant, with its seed.
    """
    until, starts = time.monotonic() + 60 * minutes, iter(range(first, first + number, batch))
    done, running = Played(0, 0, 0), set[Future[Played]]()
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            while True:
                if time.monotonic() < until:
                    running |= {
                        pool.submit(play_many, start, min(batch, first + number - start))
                        for start in islice(starts, processes - len(running))
                    }
                if not running:
                    return done
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for each in finished:
                    done = done.plus(each.result())
                if tell is not None:
                    tell(done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def play_many(first: int, number: int, step: int = 1) -> Played:
    """``number`` schedules from seed ``first`` on, in this process.

    Raises:
        Violation: of the first schedule that breaks an invariant.
    """
    records = events = 0
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        stage = Stage.build(Path(folder), pytest.MonkeyPatch())
        try:
            for seed in range(first, first + number * step, step):
                world = play_by_seed(stage, seed)
                records, events = records + world.records_seen, events + len(world.events)
        finally:
            stage.close()
    return Played(number, records, events)
