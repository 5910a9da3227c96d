"""Silo names are safe in paths, and digests do not collide by regrouping."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachefl_secure.errors import ConfigError
from cachefl_secure.names import digest_of, digest_of_joined, parse_silo_id


@pytest.mark.parametrize("text", ["a", "0", "north", "site-01", "a--b", "a-", "x" * 63])
def test_a_plain_name_is_taken_as_it_is(text: str) -> None:
    assert parse_silo_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        "North",
        "-a",
        "a_b",
        "a.b",
        "..",
        "a/b",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "x" * 64,
        "é",
        "аrz",
        "a\u202e",
    ],
)
def test_a_name_that_could_mislead_a_path_or_a_reader_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_silo_id(text, file="join-request.toml")
    assert refused.value.file == "join-request.toml"


def test_the_coordinators_name_is_reserved() -> None:
    with pytest.raises(ConfigError, match="reserved"):
        parse_silo_id("coordinator")


def test_a_long_name_is_not_repeated_in_full() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_silo_id("x" * 100_000)
    assert len(str(refused.value)) < 250


@given(st.text(max_size=70))
def test_whatever_is_taken_is_one_path_component(text: str) -> None:
    try:
        name = parse_silo_id(text)
    except ConfigError:
        return
    assert name == text
    assert name.isascii()
    assert name == name.lower()
    assert not set(name) & set("/\\.\0 ")


def test_a_digest_depends_on_the_label_and_on_where_the_parts_end() -> None:
    variants = [
        digest_of("a", b"bc"),
        digest_of("ab", b"c"),
        digest_of("a", b"b", b"c"),
        digest_of("a", b"bc", b""),
        digest_of("a"),
    ]
    assert len(set(variants)) == len(variants)
    assert all(len(digest) == 64 for digest in variants)


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_a_part_in_pieces_has_the_digest_of_the_whole(pieces: list[bytes]) -> None:
    assert digest_of_joined("label", [memoryview(piece) for piece in pieces]) == digest_of(
        "label", b"".join(pieces)
    )
