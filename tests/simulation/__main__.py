"""python -m tests.simulation --seed S replays a schedule; --schedules N --from S plays many and times them;
with --minutes M in two processes, until so many have been played or the time is up."""

from __future__ import annotations

import argparse
import cProfile
import pstats
import tempfile
import time
from pathlib import Path

import pytest
from rich.progress import MofNCompleteColumn, Progress

from tests.simulation.changes import changing, coming_and_going
from tests.simulation.lies import STRATEGIES, a_second_release
from tests.simulation.mechanisms import MECHANISMS
from tests.simulation.schedules import Played, fast_folder, play_by_seed, soak
from tests.simulation.world import Stage, honest

_ALL = (honest, changing, coming_and_going, a_second_release, *STRATEGIES)
CHOICES = {strategy.__name__: strategy for strategy in _ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="play this schedule and print its events")
    parser.add_argument("--schedules", type=int, default=100)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--strategy", choices=sorted(CHOICES), help="default: by the seed")
    parser.add_argument("--mechanism", choices=MECHANISMS, help="default: by the seed")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--minutes", type=float, help="play in two processes, at most about so long")
    chosen = parser.parse_args()
    if chosen.minutes is not None:
        with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as bar:
            task, told = bar.add_task("schedules", total=chosen.schedules), 0

            def tell(done: Played) -> None:
                nonlocal told
                bar.update(task, completed=done.schedules)
                if not bar.console.is_terminal and done.schedules >= told + 10_000:
                    told = done.schedules
                    bar.console.print(f"{done.schedules} schedules, {done.records} records")

            played = soak(chosen.first, chosen.schedules, chosen.minutes, tell=tell)
        print(
            f"{played.schedules} schedules from seed {chosen.first}, {played.records} records: no violation"
        )
        return
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        stage = Stage.build(Path(folder), pytest.MonkeyPatch())
        try:
            if chosen.seed is not None:
                print(
                    "\n".join(
                        play_by_seed(
                            stage, chosen.seed, CHOICES.get(chosen.strategy), chosen.mechanism
                        ).events
                    )
                )
                return
            profile, start = cProfile.Profile(), time.process_time()
            if chosen.profile:
                profile.enable()
            records = events = 0
            for seed in range(chosen.first, chosen.first + chosen.schedules):
                world = play_by_seed(stage, seed, CHOICES.get(chosen.strategy), chosen.mechanism)
                records, events = records + world.records_seen, events + len(world.events)
            profile.disable()
            spent = time.process_time() - start
            print(
                f"{chosen.schedules} schedules, {records} records, {events} events, {spent / chosen.schedules * 1e3:.1f} ms CPU each"
            )
            if chosen.profile:
                pstats.Stats(profile).sort_stats("cumtime").print_stats(110)
        finally:
            stage.close()


if __name__ == "__main__":
    main()
