"""Keystreams begin anywhere with the bytes that they have there; cut vectors are whole vectors."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.crypto import expand
from cachefl_secure.crypto import slices as slicing
from cachefl_secure.crypto.expand import CHUNK_BYTES, Keystream, MaskStreams, StreamSeed, gcm_is_faster
from cachefl_secure.crypto.slices import in_threads, slices


def a_seed(text: bytes) -> StreamSeed:
    return StreamSeed(hashlib.sha256(text).digest()[: StreamSeed.length_bytes])


SEED = a_seed(b"keystream")
KEY, NONCE = SEED.reveal()[:16], SEED.reveal()[16:]
LENGTH = 2 * CHUNK_BYTES + 40
COUNTER_MODE = Cipher(AES128(KEY), CTR(NONCE + (2).to_bytes(4, "big"))).encryptor().update(bytes(LENGTH))


@pytest.fixture(params=[False, True], autouse=True)
def by_gcm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Everything here holds whichever of the two ways to the bytes is the faster on this machine."""
    for module in (expand, slicing):
        monkeypatch.setattr(module, "gcm_is_faster", lambda: request.param)
    return bool(request.param)


def test_which_way_is_faster_is_measured_once() -> None:
    gcm_is_faster.cache_clear()
    assert gcm_is_faster() is gcm_is_faster()
    assert gcm_is_faster.cache_info().misses == 1


@pytest.mark.parametrize("place", [0, 15, 16, 27])
def test_every_byte_of_a_seed_counts(place: int) -> None:
    changed = bytearray(SEED.reveal())
    changed[place] ^= 1
    out = np.empty(64, np.uint8)
    Keystream(StreamSeed(bytes(changed))).fill(out)
    assert not any(out[i : i + 16].tobytes() == COUNTER_MODE[i : i + 16] for i in range(0, 64, 16))


def test_the_stream_is_that_of_counter_mode_from_counter_two() -> None:
    out = np.empty(LENGTH, np.uint8)
    Keystream(SEED).fill(out)
    assert out.tobytes() == COUNTER_MODE


@given(st.integers(0, LENGTH), st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_a_stream_that_begins_later_gives_the_bytes_from_there_on(start: int, count: int) -> None:
    out = np.empty(min(count, LENGTH - start), np.uint8)
    Keystream(SEED, start).fill(out)
    assert out.tobytes() == COUNTER_MODE[start : start + out.size]


@pytest.mark.parametrize("word", ["<u2", "<u4", "<u8"])
def test_masks_of_a_slice_are_those_of_the_whole_vector_there(word: str) -> None:
    other = a_seed(b"other")
    whole = np.arange(50_001).astype(word)
    parts = whole.copy()
    MaskStreams(add=[SEED], subtract=[other]).apply(whole)
    for start, stop in ((0, 7), (7, 30_000), (30_000, 50_001)):
        streams = MaskStreams(add=[SEED], subtract=[other], start=start * parts.itemsize)
        streams.apply(parts[start:stop])
    assert np.array_equal(parts, whole)


@given(st.integers(1, 10**8), st.integers(1, 9), st.sampled_from([8, 1 << 15, 1 << 16]))
def test_slices_follow_each_other_and_end_with_the_vector(entries: int, threads: int, unit: int) -> None:
    parts = slices(entries, threads, unit)
    assert 1 <= len(parts) <= threads
    assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])]
    assert parts[-1][1] == entries
    assert all(start < stop and start % unit == 0 for start, stop in parts)


def test_what_fails_in_a_thread_fails_where_it_was_started() -> None:
    def work(start: int, stop: int) -> int:
        if start:
            raise ValueError("in a thread")
        return stop

    assert in_threads(work, [(0, 5)]) == [5]
    with pytest.raises(ValueError, match="in a thread"):
        in_threads(work, [(0, 5), (5, 9)])
