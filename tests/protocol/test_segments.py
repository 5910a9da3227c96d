"""Several named integer vectors in one round, each exact in its own width, and noise in the same pass."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefl_secure.errors import LocalProtocolError, PeerError
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.encoding import (
    Encoding,
    IntegerEncoding,
    RoundingSeed,
    encode,
    integers_of,
    with_integers,
)
from cachefl_secure.protocol.masking import Masks, MaskSeed, mask, sum_masked, unmask
from cachefl_secure.protocol.messages import Phase
from cachefl_secure.protocol.segments import COUNT_BITS, Segment, bits_for
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate, aggregate_digest
from cachefl_secure.updates import IntegerUpdate, PrivateUpdate
from tests.protocol.rounds import (
    Federation,
    exact_sum,
    federation,
    fixed,
    integers,
    lost,
    parameters_for,
    random_updates,
    run_round,
)

SILOS = 5
CLASSES, FEATURES = 3, 4
SEGMENTS = (
    Segment("record-count", 1, COUNT_BITS, 10**12),
    Segment.of("gram", FEATURES * FEATURES, 2**40, SILOS),
    Segment.of("right-answers", CLASSES, 1000, SILOS),
    Segment("odd-width", 11, 21, 100_000),
)


def with_segments(dimension: int = 33) -> Federation:
    parameters = replace(parameters_for(SILOS, dimension=dimension, colluders=1), segments=SEGMENTS)
    return federation(parameters)


def random_vectors(silo: SiloId) -> dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    rng = np.random.default_rng(int.from_bytes(silo.encode(), "big") % 2**32)
    return {
        segment.name: rng.integers(-segment.bound, segment.bound, segment.entries, endpoint=True)
        for segment in SEGMENTS
    }


@pytest.mark.claim("C2")
@pytest.mark.parametrize("gone", [None, "silo-002"])
def test_an_update_a_count_a_gram_matrix_and_right_answers_are_summed_exactly_in_one_round(
    gone: str | None,
) -> None:
    fed = with_segments()
    vectors = {silo: random_vectors(silo) for silo in fed.silos}
    updates = {
        silo: with_integers(update, vectors[silo], fed.parameters)
        for silo, update in random_updates(fed).items()
    }
    faults = [lost(Phase.MASKED_INPUT, SiloId(gone))] if gone else []
    finished = run_round(fed, updates, *faults)
    survivors = tuple(silo for silo in fed.silos if silo != gone)
    for segment in SEGMENTS:
        expected = [
            sum(int(vectors[silo][segment.name][i]) for silo in survivors) for i in range(segment.entries)
        ]
        assert integers_of(finished.total, segment.name, fed.parameters).tolist() == expected
    plain = {silo: EncodedUpdate(u.words.copy(), u.counters.copy()) for silo, u in updates.items()}
    assert integers(AggregateSum(finished.total.words.copy(), finished.total.counters.copy())) == exact_sum(
        plain, survivors
    )
    again = AggregateSum.from_bytes(finished.total.to_bytes(), fed.parameters)
    assert again.to_bytes() == finished.total.to_bytes()
    assert again.digest == aggregate_digest(again.to_bytes())


def test_the_segments_of_a_masked_input_are_masked() -> None:
    """Two silos with the same vectors send other bytes in every segment, and neither sends the clear ones."""
    fed = with_segments(dimension=1)
    zeros = {segment.name: np.zeros(segment.entries, np.int64) for segment in SEGMENTS}
    update = with_integers(next(iter(random_updates(fed).values())), zeros, fed.parameters)
    one, other = (mask(update, Masks([MaskSeed(fixed(name, 28))]), fed.parameters) for name in "ab")
    at = fed.parameters.packed_bytes
    for segment in SEGMENTS:
        pieces = {bytes(each.packed[at : at + segment.packed_bytes]) for each in (one, other)}
        assert len(pieces) == 2
        assert bytes(segment.packed_bytes) not in pieces
        at += segment.packed_bytes
    assert at == fed.parameters.input_bytes == one.packed.size


def test_a_vector_that_does_not_fit_is_refused_and_never_clamped() -> None:
    fed = with_segments()
    update = next(iter(random_updates(fed).values()))
    good = random_vectors(fed.silos[0])
    for name, bad in (
        ("right-answers", np.array([0, 0, 1001])),
        ("right-answers", np.array([0, 0])),
        ("gram", np.full(16, -(2**63))),
    ):
        with pytest.raises(LocalProtocolError, match=name):
            with_integers(update, good | {name: bad}, fed.parameters)
    for names in (good | {"more": np.zeros(1, np.int64)}, {}):
        with pytest.raises(LocalProtocolError, match="other vectors"):
            with_integers(update, names, fed.parameters)


def test_an_update_without_the_vectors_that_are_due_is_not_masked() -> None:
    fed = with_segments()
    with pytest.raises(LocalProtocolError, match="other parameters"):
        run_round(fed, random_updates(fed))


@pytest.mark.claim("C19")
def test_a_sum_outside_its_bound_is_refused() -> None:
    fed = with_segments(dimension=1)
    others = [np.zeros(segment.entries, segment.word) for segment in SEGMENTS]
    others[2][1] = SILOS * 1000 + 1
    total = AggregateSum(np.zeros(1, fed.parameters.word), np.zeros(1, "<u8"), tuple(others))
    with pytest.raises(PeerError, match="right-answers lies outside"):
        integers_of(total, "right-answers", fed.parameters)
    assert integers_of(total, "gram", fed.parameters).tolist() == [0] * 16


@pytest.mark.parametrize(
    ("segments", "why"),
    [
        ((Segment("a", 1, 8, 26),), "do not hold"),  # 5 * 26 = 130 > 127
        ((Segment("a", 1, 64, 2**62),), "do not hold"),
        ((Segment("a", 1, 8, 1), Segment("a", 2, 8, 1)), "one name"),
        ((Segment("update", 1, 8, 1),), "one name"),
    ],
)
def test_parameters_whose_sums_could_wrap_or_be_confused_cannot_be_made(
    segments: tuple[Segment, ...], why: str
) -> None:
    with pytest.raises(ValueError, match=why):
        replace(parameters_for(SILOS, dimension=3, colluders=1), segments=segments)


def test_a_segment_of_no_width_that_exists_cannot_be_made() -> None:
    for bits in (0, 33, 63, 65):
        with pytest.raises(ValueError, match="bits"):
            Segment("a", 1, bits, 1)


@given(st.integers(1, 2**40), st.integers(1, 1024))
def test_without_noise_the_bits_are_the_fewest_that_hold_every_sum(bound: int, silos: int) -> None:
    bits, values = bits_for(bound, silos), 2 * silos * bound + 1
    assert 2 ** (bits - 1) < values <= 2**bits


@given(st.integers(1, 1000), st.integers(1, 1024), st.floats(0.01, 1e6), st.integers(1, 10**8))
def test_with_noise_there_is_room_for_a_tail_that_is_passed_with_probability_2_to_the_minus_40(
    bound: int, silos: int, noise_std: float, entries: int
) -> None:
    bits = bits_for(bound, silos, noise_std=noise_std, entries=entries)
    room = Fraction(2 ** (bits - 1) - silos * bound)  # in grid steps, on either side
    # Gaussian tail: P(|X| >= room) <= 2 exp(-room^2 / (2 s^2)), summed over the entries
    exponent = float(room / Fraction(noise_std)) ** 2 / 2
    assert math.log2(2 * entries) - exponent / math.log(2) <= -40 + 1e-6


@pytest.mark.parametrize(("bits", "threads"), [(13, 1), (16, 2), (21, 1), (26, 3), (32, 1)])
def test_integers_with_noise_of_their_own_come_out_of_the_sum_exactly(bits: int, threads: int) -> None:
    """Noised before they get here, and sealed so: also across chunks, threads and the sign."""
    dimension, silos = 2 * 2**16 + 77, 3
    noise_std = 2 ** (bits - 1) / 40
    parameters = replace(
        parameters_for(silos, dimension=dimension, bound=2 ** (bits - 4)),
        noise_std=noise_std,
        vector_bits=bits,
        segments=SEGMENTS,
    )
    rng, masked, total = np.random.default_rng(bits), [], np.zeros(dimension, np.int64)
    seeds = [MaskSeed(fixed(str(n), 28)) for n in range(silos)]
    for number, seed in enumerate(seeds):
        noisy = rng.normal(0, noise_std / 2, dimension).astype(np.int32)
        noisy += rng.integers(-(2 ** (bits - 4)), 2 ** (bits - 4), dimension, np.int32)
        vectors = random_vectors(SiloId(f"silo-{number + 1:03d}"))
        encoding = IntegerEncoding(IntegerUpdate(noisy), parameters, vectors)
        masked.append(mask(encoding, Masks([seed]), parameters, threads=threads))
        total += noisy
    opened = unmask(sum_masked(masked, parameters), Masks(list(seeds)), parameters, threads=threads)
    signed = opened.words.view(parameters.word.str.replace("u", "i")).astype(np.int64)
    assert np.array_equal(signed, total)
    assert opened.counters.tolist() == [0]


@pytest.mark.parametrize("bits", [13, 16, 21, 32])
def test_the_number_of_threads_changes_no_byte(bits: int) -> None:
    """Counters and segments follow the vector in the same streams, so a wrong position would show there too."""
    dimension, silos = 3 * 2**16 + 77, 3
    parameters = replace(
        parameters_for(silos, dimension=dimension, bound=(2 ** (bits - 1) - 1) // silos - 1),
        segments=SEGMENTS,
    )
    assert parameters.vector_bits == bits
    values = np.random.default_rng(bits).normal(0, parameters.clamp / 2, dimension)
    vectors = random_vectors(SiloId("silo-001"))
    encoding = Encoding(PrivateUpdate(values), parameters, RoundingSeed(fixed("coins", 28)), vectors)
    encoded = with_integers(
        encode(PrivateUpdate(values), parameters, RoundingSeed(fixed("coins", 28))), vectors, parameters
    )
    masks = Masks([MaskSeed(fixed("a", 28)), MaskSeed(fixed("b", 28))], [MaskSeed(fixed("c", 28))])
    once = mask(encoded, masks, parameters, threads=1)
    total = sum_masked([once], parameters)
    opened = unmask(total, masks, parameters, threads=1)
    assert opened.counters.tolist() == encoded.counters.tolist() != [0]
    for threads in (1, 2, 3, 7):
        for update in (encoded, encoding):
            masked = mask(update, masks, parameters, threads=threads)
            assert np.array_equal(masked.packed, once.packed)
            assert np.array_equal(masked.counters, once.counters)
        assert unmask(total, masks, parameters, threads=threads).to_bytes() == opened.to_bytes()
    assert integers(opened)[: dimension + 1] == integers(encoded)[: dimension + 1]
