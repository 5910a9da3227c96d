from __future__ import annotations

import pytest

from cachefl_secure.errors import CohortExhausted, RoundAborted
from cachefl_secure.wording import counted


@pytest.mark.parametrize(
    ("number", "what", "text"),
    [(0, ("round",), "0 rounds"), (1, ("round",), "1 round"), (2, ("entry", "entries"), "2 entries")],
)
def test_one_is_singular_and_all_others_are_plural(number: int, what: tuple[str, ...], text: str) -> None:
    assert counted(number, *what) == text


def test_long_numbers_are_grouped() -> None:
    assert counted(1_234_567, "image") == "1,234,567 images"


def test_errors_count_so_too() -> None:
    assert str(RoundAborted(1, 3)) == "1 silo present, threshold 3"
    assert str(CohortExhausted(1, 2, 3)) == "1 silo has reached its cap; 2 are left, a round needs 3"
    assert str(CohortExhausted(3, 1, 3)) == "3 silos have reached their caps; 1 is left, a round needs 3"
