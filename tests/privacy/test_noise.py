from __future__ import annotations

import os
import struct

import numpy as np
import pytest
import torch
from scipy import stats

from cachefl_secure.privacy.noise import RandomStream, RandomStreams, StreamKey


def fixed(byte: int = 7) -> RandomStream:
    return RandomStream(StreamKey(bytes([byte]) * 32))


def test_words_are_the_aes_256_ctr_key_stream() -> None:
    # AES-256 of the zero block under the zero key: NIST AESAVS, GFSbox/KeySbox tables.
    words = RandomStream(StreamKey(bytes(32))).words(2)
    assert struct.pack("<2Q", *words.tolist()).hex() == "dc95c078a2408989ad48a21492842087"


def test_a_stream_is_one_sequence_however_it_is_cut() -> None:
    whole, cut = fixed().words(70_000), fixed()
    pieces = [cut.words(n) for n in (1, 0, 32_768, 32_769, 4_462)]
    assert np.array_equal(whole, np.concatenate(pieces))


@pytest.mark.claim("C7")
@pytest.mark.parametrize("probability", [0.1, 0.25, 0.5, 0.9])
def test_coins_include_each_record_at_the_rate_and_independently(probability: float) -> None:
    draws, records = 4000, 40
    stream = fixed()
    coins = np.array([stream.coins(records, probability) for _ in range(draws)], dtype=np.float64)
    # every record at the rate: chi-square over records
    spread = (coins.sum(0) - draws * probability) ** 2 / (draws * probability * (1 - probability))
    assert 1e-3 < stats.chi2.sf(spread.sum(), records) < 1 - 1e-3
    # every pair independently: correlations are N(0, 1/draws)
    z = (np.corrcoef(coins.T) * np.sqrt(draws))[np.triu_indices(records, 1)]
    assert np.abs(z).max() < 4.8  # 780 pairs: chance 1e-3
    assert 0.9 < z.std() < 1.1
    # batch sizes vary as Poisson sampling's do
    sizes = coins.sum(1)
    assert sizes.var() == pytest.approx(records * probability * (1 - probability), rel=0.12)


def test_a_rate_of_one_takes_everybody_and_asks_for_no_coin() -> None:
    stream = fixed()
    assert stream.coins(50, 1.0).all()
    assert np.array_equal(stream.words(3), fixed().words(3))


def test_the_number_of_coins_does_not_move_the_noise() -> None:
    few, many = RandomStreams.repeatable(b"k"), RandomStreams.repeatable(b"k")
    few.sampling.coins(8, 0.5)
    many.sampling.coins(9, 0.5)
    assert np.array_equal(few.noise.words(20), many.noise.words(20))


@pytest.mark.claim("C7")
def test_seeding_torch_or_numpy_does_not_repeat_noise() -> None:
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(RandomStreams.from_system().noise.words(8))
    assert not (drawn[0] == drawn[1]).any()


@pytest.mark.claim("C7")
def test_two_silos_and_two_purposes_share_no_stream() -> None:
    a, b = RandomStreams.from_system(), RandomStreams.from_system()
    words = [stream.words(4).tobytes() for stream in (a.noise, a.sampling, b.noise, b.sampling)]
    fixed_streams = RandomStreams.repeatable(b"k")
    words += [fixed_streams.noise.words(4).tobytes(), fixed_streams.sampling.words(4).tobytes()]
    assert len(set(words)) == 6


def drawn_after_fork(stream: RandomStream) -> tuple[bytes, bytes]:
    """Eight words drawn by the parent and by a forked child, from the same stream object."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, stream.words(8).tobytes())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        return stream.words(8).tobytes(), pipe.read()


@pytest.mark.claim("C7")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_does_not_repeat_its_parents_noise() -> None:
    stream = RandomStreams.from_system().noise
    stream.words(3)
    parent, child = drawn_after_fork(stream)
    assert len(child) == 64
    assert parent != child
    other_parent, other_child = drawn_after_fork(stream)
    assert len({parent, child, other_parent, other_child}) == 4


def test_streams_do_not_print_their_keys() -> None:
    assert repr(fixed()) == "RandomStream(...)"
    assert "07" not in repr(RandomStreams.repeatable(b"07"))
