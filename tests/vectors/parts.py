"""Vectors of the parts of a round: packing, streams, shares, rounding, sums and derived secrets."""

from __future__ import annotations

import random
from typing import Any

from tests.protocol import reference as slow
from tests.vectors.reference import deal, fixed, keystream, rounded


def primitives() -> dict[str, dict[str, Any]]:
    """Vectors of the parts."""
    files: dict[str, dict[str, Any]] = {}
    for bits in range(8, 33):
        rng = random.Random(bits)
        words = [0, 2**bits - 1, *(rng.randrange(2**bits) for _ in range(19))]
        files[f"packing_b{bits:02d}"] = {"bits": bits, "words": words, "packed": slow.pack(words, bits).hex()}
    seeds = [fixed(f"mask {i}", 28) for i in range(4)]
    files["mask_streams"] = {
        "streams": [
            {
                "seed": seed.hex(),
                "keystream": keystream(seed, 64).hex(),
                "words_16": slow.expand(seed, 16, 2, 0),
                "words_32": slow.expand(seed, 16, 4, 0),
            }
            for seed in seeds
        ]
    }
    secrets = [fixed("first secret"), b"\xff" * 32, bytes(32)]
    dealt = deal(secrets, 4, [1, 2, 3, 50, 128], fixed("coefficients", 28))
    files["shares"] = {
        "secrets": [secret.hex() for secret in secrets],
        "threshold": 4,
        "coefficient_seed": fixed("coefficients", 28).hex(),
        "shares": {str(place): share.hex() for place, share in dealt.items()},
    }
    return files | {"encoding": encodings(), "sums": sums(), "derivations": derivations()}


def encodings() -> dict[str, Any]:
    """Grids with and without noise, fine and coarse, in 32 and in 64 bits; ends, ties, beyond the clamp."""
    cases = []
    for clamp, grid_step in (
        (100.0, 1.0),
        (0.75, 2.0**-10),
        (3.7, 0.001),
        (8.0, 8.0 / 2**16),
        (2.0**24, 1.0),
    ):
        rng, seed = random.Random(f"{clamp} {grid_step}"), fixed(f"coins {clamp} {grid_step}", 28)
        edges = [
            clamp,
            -clamp,
            2 * clamp,
            -1.5 * clamp,
            0.0,
            grid_step / 2,
            -grid_step / 2,
            grid_step,
            -grid_step,
        ]
        tiny = [grid_step * 2.0**-16, -grid_step * 2.0**-16, -grid_step * 2.0**-17, 5e-324]
        values = [*edges, *tiny, *(rng.uniform(-clamp, clamp) for _ in range(28))]
        integers, clamped = rounded(values, clamp, grid_step, seed)
        cases.append(
            {
                "clamp": clamp.hex(),
                "grid_step": grid_step.hex(),
                "seed": seed.hex(),
                "values": [value.hex() for value in values],
                "integers": integers,
                "clamped": clamped,
            }
        )
    return {"cases": cases}


def sums() -> dict[str, Any]:
    """Of five silos, six entries of at most 101 each, in words of 16 bits: what decodes, and what never may."""
    silos, largest = 5, 5 * 101
    good = {"zeros": ([0] * 6, 0), "both_ends": ([largest, -largest, 1, -1, 0, 7], 30)}
    bad: dict[str, tuple[list[int], int]] = {
        "one_above": ([largest + 1, 0, 0, 0, 0, 0], 0),
        "one_below": ([0, 0, 0, 0, 0, -largest - 1], 0),
        "largest_word": ([2**15 - 1, 0, 0, 0, 0, 0], 0),
        "smallest_word": ([0, -(2**15), 0, 0, 0, 0], 0),
        "wrapped_to_the_other_sign": ([0, 0, 40_000, 0, 0, 0], 0),
        "more_clamped_than_there_are_entries": ([0] * 6, silos * 6 + 1),
        "clamped_counter_below_zero": ([0] * 6, 2**64 - 1),
        "an_entry_too_few": ([0] * 5, 0),
        "an_entry_too_many": ([0] * 7, 0),
    }

    def as_bytes(words: list[int], clamped: int) -> str:
        raw = b"".join((word % 2**16).to_bytes(2, "little") for word in words)
        return (raw + clamped.to_bytes(8, "little")).hex()

    return {
        "silos": silos,
        "dimension": 6,
        "bound": 100,
        "good": [{"name": n, "sum": as_bytes(w, c), "values": w, "clamped": c} for n, (w, c) in good.items()],
        "bad": [
            {"name": n, "sum": as_bytes(w, c), "expect": "PeerError" if len(w) == 6 else "ValueError"}
            for n, (w, c) in bad.items()
        ],
    }


def derivations() -> dict[str, Any]:
    """For every purpose; names whose parts run together differently give other secrets."""
    purposes = {
        "pairwise-mask-stream": 28,
        "self-mask-stream": 28,
        "share-channel": 32,
        "share-coefficients-stream": 28,
    }
    parties = (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""], ["silo-001"])
    cases = []
    for purpose, length in purposes.items():
        for context in (b"", fixed("context") + fixed("more of it")):
            for each in parties:
                info = slow.info(f"cachefl-secure/CF-SecAgg/1/{purpose}", *each)
                secret = slow.hkdf(fixed("source"), context, info, length)
                cases.append(
                    {"purpose": purpose, "context": context.hex(), "parties": each, "secret": secret.hex()}
                )
    return {"source": fixed("source").hex(), "cases": cases}
