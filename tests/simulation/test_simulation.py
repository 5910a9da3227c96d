"""Ten thousand schedules of a federation under misfortune and malice, and the planted bugs that they find."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.simulation import world
from tests.simulation.mutants import MUTANTS, Mutant, duplicate_counted_twice
from tests.simulation.observer import Violation
from tests.simulation.schedules import QUIET, fast_folder, play_by_seed, play_many
from tests.simulation.world import Stage, honest, play

SCHEDULES = 10_000
PROCESSES = 2
BATCH = 500


@pytest.mark.slow
@pytest.mark.claim("C1", "C2", "C3", "C4", "C5", "C6", "C9", "C11", "C17")
def test_no_invariant_breaks_in_ten_thousand_schedules() -> None:
    """Set SCHEDULES in the environment for more; ``make soak`` plays a million, from SCHEDULES_FROM on."""
    number = int(os.environ.get("SCHEDULES", SCHEDULES))
    first = int(os.environ.get("SCHEDULES_FROM", "0"))
    starts = range(first, first + number, BATCH)
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
        played = list(pool.map(play_many, starts, [BATCH] * len(starts)))
    assert sum(each.schedules for each in played) >= number
    assert sum(each.records for each in played) > number // 10  # it is no desert: rounds do end in records
    assert sum(each.events for each in played) > number * 10


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        built = Stage.build(Path(folder), pytest.MonkeyPatch())
        yield built
        built.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_killed(stage: Stage, mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "HEALED", 1)
    monkeypatch.setattr(world, "SEARCHED", 1)
    with monkeypatch.context() as patch:
        mutant.plant(patch)
        for seed in range(mutant.within):
            faults = QUIET if mutant.strategy is not honest and seed % 3 else None
            try:
                play(stage, seed, mutant.strategy, faults)
            except Violation:
                return
    raise AssertionError(f"{mutant.name} survived {mutant.within} schedules: {mutant.claim} is not guarded")


def test_a_schedule_replays_from_its_seed(stage: Stage) -> None:
    for seed in range(8):
        first, second = (play_by_seed(stage, seed).events for _ in range(2))
        assert first == second


def test_without_faults_every_round_of_an_honest_coordinator_ends_in_a_record(stage: Stage) -> None:
    for seed in range(6):
        assert play(stage, seed, honest, QUIET).records_seen >= 1


def test_a_violation_says_how_to_replay_it(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    duplicate_counted_twice(monkeypatch)
    with pytest.raises(Violation) as caught:
        play(stage, 0, honest, QUIET)
    assert any("seed" in note for note in caught.value.__notes__)
