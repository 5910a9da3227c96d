"""Packing: the bytes of a slow reference, there and back, and no byte more than b bits need."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.crypto.expand import apply_masks
from cachefl_secure.protocol.masking import Masks, MaskSeed, mask, sum_masked, unmask
from cachefl_secure.protocol.packing import (
    CHUNK_WORDS,
    PackedVector,
    pack,
    packed_bytes,
    plane_widths,
    unpack,
)
from cachefl_secure.protocol.vectors import MaskedUpdate, Words
from tests.protocol import reference
from tests.protocol.rounds import exact_sum, federation, fixed, integers, parameters_for, random_updates


def random_words(dimension: int, bits: int) -> Words:
    """Over the whole word, so that there are higher bits to drop."""
    word = np.uint16 if bits <= 16 else np.uint32
    return np.random.default_rng(bits).integers(0, np.iinfo(word).max, dimension, word, endpoint=True)


@pytest.mark.parametrize("bits", range(1, 33))
def test_every_width_and_every_dimension_modulo_64_gives_the_bytes_of_the_slow_reference(bits: int) -> None:
    for dimension in range(1, 65):
        words = random_words(dimension, bits)
        low = [int(word) % 2**bits for word in words]
        content = pack(words, bits)
        assert content.tobytes() == reference.pack(low, bits)
        assert unpack(content, dimension, bits).tolist() == low


@given(st.integers(8, 32), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=200))
@settings(max_examples=200, deadline=None)
def test_what_is_packed_comes_out_again_modulo_two_to_the_bits(bits: int, values: list[int]) -> None:
    words = np.array(values, "<u4").astype("<u2" if bits <= 16 else "<u4")
    assert unpack(pack(words, bits), words.size, bits).tolist() == [
        value % 2**bits for value in words.tolist()
    ]


@pytest.mark.parametrize("bits", [8, 13, 16, 21, 24, 31, 32])
@pytest.mark.parametrize("past", [0, 1, 7, 8, 33])
def test_chunks_join_without_a_gap(bits: int, past: int) -> None:
    words = random_words(CHUNK_WORDS + past, bits)
    content = pack(words, bits)
    assert content.size == packed_bytes(words.size, bits)
    cut = np.zeros_like(content)
    vector = PackedVector(cut, words.size, bits)
    for start, stop in ((32, words.size), (0, 8), (8, 32)):
        vector.write(start, words[start:stop])
    assert np.array_equal(cut, content)
    assert np.array_equal(unpack(content, words.size, bits), words & words.dtype.type(2**bits - 1))


@given(st.integers(1, 32), st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=100))
@settings(max_examples=200, deadline=None)
def test_packed_words_are_added_modulo_the_word(bits: int, values: list[int]) -> None:
    words = np.array(values, "<u4").astype("<u2" if bits <= 16 else "<u4")
    total = words[::-1].copy()
    PackedVector(pack(words, bits), words.size, bits).add(0, total)
    modulus = 2 ** (8 * words.itemsize)
    low = [int(word) % 2**bits for word in words]
    assert total.tolist() == [(int(a) + b) % modulus for a, b in zip(words[::-1], low, strict=True)]


@given(st.integers(1, 32), st.integers(1, 10**9))
def test_the_length_is_that_of_the_bits_and_less_than_one_byte_a_plane(bits: int, dimension: int) -> None:
    assert sum(plane_widths(bits)) == bits
    assert sorted(plane_widths(bits), reverse=True) == list(plane_widths(bits))
    exact = math.ceil(dimension * bits / 8)
    assert exact <= packed_bytes(dimension, bits) < exact + len(plane_widths(bits))


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_words_of_no_bits_or_more_than_32_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        plane_widths(bits)


@pytest.mark.parametrize("size", [0, 21, 23])
def test_a_buffer_of_another_length_is_refused(size: int) -> None:
    assert packed_bytes(17, 10) == 22
    with pytest.raises(ValueError, match="17 words of 10 bits"):
        unpack(np.zeros(size, np.uint8), 17, 10)


def test_bits_past_the_last_entry_are_not_looked_at() -> None:
    content = pack(np.array([5, 6, 7], "<u2"), 9)
    content[-1] |= 0b11111000  # the plane of ninth bits holds three of them
    assert unpack(content, 3, 9).tolist() == [5, 6, 7]


@pytest.mark.parametrize("bits", range(10, 33))
def test_the_sum_of_packed_masked_updates_is_the_sum_of_integers(bits: int) -> None:
    """Every width that a plan can lead to, with masks that cancel and masks that are taken off."""
    n, dimension = 3, CHUNK_WORDS + 13
    parameters = parameters_for(n, dimension=dimension, bound=(2 ** (bits - 1) - 1) // n - 1)
    assert parameters.vector_bits == bits
    fed = federation(parameters)
    updates = random_updates(fed)
    pair, own = MaskSeed(fixed("pair", 28)), {silo: MaskSeed(fixed(silo, 28)) for silo in fed.silos}
    masks = {silo: Masks(added=[own[silo]]) for silo in fed.silos}
    masks[fed.silos[0]].added.append(pair)
    masks[fed.silos[2]].subtracted.append(pair)
    masked = [mask(updates[silo], masks[silo], parameters) for silo in fed.silos]
    assert all(update.packed.nbytes == parameters.packed_bytes for update in masked)
    total = unmask(sum_masked(masked, parameters), Masks(added=list(own.values())), parameters)
    assert integers(total) == exact_sum(updates, fed.silos)


def test_masking_in_chunks_gives_the_bytes_of_masking_the_whole_vector() -> None:
    parameters = parameters_for(5, dimension=2 * CHUNK_WORDS + 5, bound=10_000)
    update = random_updates(federation(parameters))[federation(parameters).silos[0]]
    added, subtracted = [MaskSeed(fixed("a", 28)), MaskSeed(fixed("b", 28))], [MaskSeed(fixed("c", 28))]
    words, counters = update.words.copy(), update.counters.copy()
    apply_masks((words, counters), add=added, subtract=subtracted)
    masked = mask(update, Masks(added, subtracted), parameters)
    assert np.array_equal(masked.packed, pack(words, parameters.vector_bits))
    assert np.array_equal(masked.counters, counters)


def test_an_update_of_another_length_is_not_summed() -> None:
    parameters = parameters_for(3, dimension=40)
    for size in (parameters.packed_bytes - 1, parameters.packed_bytes + 1):
        with pytest.raises(ValueError, match="50 due"):
            sum_masked([MaskedUpdate(np.zeros(size, np.uint8), np.zeros(1, np.uint64))], parameters)
    wider = replace(parameters, vector_bits=parameters.vector_bits + 1)
    assert wider.packed_bytes > parameters.packed_bytes
