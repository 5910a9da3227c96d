"""Vectors of published releases, and of lies about them.

``audit`` and the package must give these caches, and refuse every lie, the package in the step named.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tests.vectors.audit_release import UNIT
from tests.vectors.release import Cache, Federation, Files, Release, agreement

FEDERATIONS = {
    of.name: of
    for of in (
        Federation("release_n4_drop1", 4, "silo-2", "gda", 15, 1),
        Federation("release_n3_wide", 3, None, "ridge", 20_000, 2),
    )
}


def lies(of: Federation) -> dict[str, tuple[Files, int]]:
    """Name -> the files that a lie changes or adds, and the step of a record's verification that it fails."""
    good = Release.honest(of)
    first, gram = good.numbers
    other = replace(good, numbers=([first[0] - 1, *first[1:]], gram))
    beyond = replace(good, numbers=([first[0] + 1, *first[1:]], gram))
    gram_beyond = replace(good, numbers=(first, [gram[0] - 1, *gram[1:]]))
    short = replace(good, numbers=(first, gram[:-1]))
    clamped, more = replace(good, clamped=1), replace(good, clamped=of.silos + 1)
    fields, survivors = dict(good.after.fields), len(of.survivors)
    louder = repr(of.plan["privacy"]["noise_multiplier"] * math.sqrt(survivors + 1))

    def cache(numbers: tuple[list[int], list[int]] = good.numbers, **changes: str) -> str:
        return Cache(numbers, tuple((fields | changes).items())).digest

    again = replace(good, number=good.number + 1, before=good.after.digest, previous=good.digest)
    strangers = [silo for silo in of.names if silo != of.survivors[0]][:survivors]
    found = {
        "sums_altered": ({f"{good.folder}/aggregate.bin": other.total}, 5),
        "sums_altered_and_named": (other.files(cache_after=good.after.digest), 6),
        "class_sums_beyond_their_bound": (beyond.files(), 5),
        "gram_beyond_its_bound": (gram_beyond.files(), 5),
        "a_number_too_few": (short.files(), 5),
        "an_update_beyond_its_bound": (replace(good, update=2 * survivors + 1).files(), 5),
        "another_count_of_clamped_entries": (clamped.files(saturated=0), 5),
        "more_clamped_than_there_are_entries": (more.files(), 5),
        "a_cache_without_sums": (good.files(cache_after=Cache().digest), 6),
        "a_cache_with_the_sums_of_another_release": (good.files(cache_after=other.after.digest), 6),
        "a_cache_that_names_more_noise": (good.files(cache_after=cache(noise_std=louder)), 6),
        "a_cache_with_another_head": (
            good.files(cache_after=cache(head="ridge" if of.head == "gda" else "gda")),
            6,
        ),
        "a_cache_in_other_units": (good.files(cache_after=cache(unit=str(UNIT // 2))), 6),
        "a_cache_louder_than_planned": (good.files(cache_after=cache(gamma="9.0")), 6),
        "a_second_release": (again.files(), 3),
        "a_second_release_of_the_same_sums_alone": (replace(again, before=good.before).files(), 3),
        "survivors_that_nobody_certified": (good.files(survivors=strangers), 4),
    }
    honest = good.files()
    return {
        name: ({path: c for path, c in files.items() if honest.get(path) != c and "models" not in path}, step)
        for name, (files, step) in found.items()
    }


def stored(files: Files) -> dict[str, str]:
    """Text as it is, everything else in hexadecimal."""
    return {name: content.decode() if is_text(name) else content.hex() for name, content in files.items()}


def restored(files: dict[str, str]) -> Files:
    return {name: text.encode() if is_text(name) else bytes.fromhex(text) for name, text in files.items()}


def is_text(name: str) -> bool:
    return name.endswith((".toml", ".json"))


def everything() -> dict[str, dict[str, Any]]:
    """The vectors of this module."""
    files: dict[str, dict[str, Any]] = {}
    for name, of in FEDERATIONS.items():
        good = Release.honest(of)
        files[name] = {
            "version": 1,
            "source": "tests/vectors/release.py, written from the formats' description",
            "caches": [Cache().digest, good.after.digest],
            "files": stored(agreement(of) | good.files()),
        }
        files[f"{name}_bad_published"] = {
            "of": name,
            "cases": [
                {"name": lie, "files": stored(changed), "expect": "RecordRejected", "step": step}
                for lie, (changed, step) in lies(of).items()
            ],
        }
    return files
