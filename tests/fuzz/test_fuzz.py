"""The fuzz targets under hypothesis, in every run. ``make fuzz`` lets atheris look for what this does not find."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.sessions import drive_coordinator, drive_session, mutate
from tests.fuzz.targets import one_input, parse, parsers, seeds, valid


@pytest.mark.claim("C14")
@pytest.mark.parametrize("name", parsers())
@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_value_or_the_named_error(name: str, data: bytes) -> None:
    parse(name, data)


@pytest.mark.claim("C14")
@pytest.mark.parametrize("name", parsers())
@settings(max_examples=100)
@given(st.data())
def test_changed_values_are_a_value_or_the_named_error(name: str, data: st.DataObject) -> None:
    assert valid()[name], "changing what is no value means little"
    parse(name, mutate(data.draw(st.sampled_from(valid()[name])), data.draw(st.binary(max_size=24))))


@pytest.mark.claim("C14")
@settings(max_examples=300)
@given(st.sampled_from(seeds()), st.sampled_from(sorted(parsers())), st.binary(max_size=24))
def test_changed_messages_of_another_kind_are_a_value_or_the_named_error(
    seed: bytes, name: str, recipe: bytes
) -> None:
    parse(name, mutate(seed, recipe))


@pytest.mark.claim("C4", "C6")
@settings(max_examples=400)
@given(st.binary(min_size=4, max_size=64))
def test_a_silo_answers_once_or_refuses_and_is_as_before(script: bytes) -> None:
    drive_session(script)


def test_a_session_that_gets_the_right_messages_gets_to_the_end() -> None:
    assert drive_session(bytes([0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0])) == 5


@pytest.mark.claim("C2", "C6")
@settings(max_examples=400)
@given(st.binary(min_size=4, max_size=48))
def test_a_coordinator_ends_each_phase_in_messages_the_exact_sum_or_a_named_end(script: bytes) -> None:
    drive_coordinator(script)


def test_a_coordinator_that_gets_the_right_answers_gets_to_the_sum() -> None:
    assert drive_coordinator(bytes(20)) == 5
    assert drive_coordinator(bytes(16) + bytes([0, 0, 64, 0])) == 5  # one holder's shares are missing


@pytest.mark.claim("C14")
@pytest.mark.parametrize("name", parsers())
def test_hostile_sizes_take_no_time_and_no_memory(name: str) -> None:
    """MessagePack that announces four billion entries, deep nesting, and megabytes of nothing."""
    hostile = (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x91" * 60_000,
        bytes(1 << 22),
    )
    for data in hostile:
        tracemalloc.start()
        start = time.process_time()
        assert not parse(name, data)
        spent, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 << 20
        assert spent < 2.0  # a guard against hanging; it takes well under 50 ms


@settings(max_examples=100)
@given(st.binary(max_size=80))
def test_the_target_of_the_fuzzer_takes_any_bytes(data: bytes) -> None:
    one_input(data)
