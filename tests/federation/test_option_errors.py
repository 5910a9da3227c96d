"""A choice out of range is told as people say it: which, what it must be, what it is."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.option_errors import checked, in_words
from cachefl_secure.fields import Strict


class Inner(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    prompts: tuple[Annotated[str, Meta(max_length=3)], ...] = ("a",)
    steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps == 7:
            raise ValueError("steps: seven is unlucky")


class Section(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    part: Annotated[float, Meta(ge=0.25, lt=1.0)] = 0.5
    weight: Annotated[float, Meta(gt=0.0, le=1e6)] = 1.0
    count: Annotated[int, Meta(ge=1)] = 1
    names: Annotated[tuple[str, ...], Meta(min_length=2)] = ("a", "b")
    inner: Inner = msgspec.field(default_factory=Inner)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda: Section(part=0.125), "options: part: must be at least 0.25, is 0.125"),
        (lambda: Section(part=1.0), "options: part: must be less than 1, is 1"),
        (lambda: Section(weight=0.0), "options: weight: must be more than 0, is 0"),
        (lambda: Section(weight=2e6), "options: weight: must be at most 1000000, is 2e+06"),
        (lambda: Section(count=-3), "options: count: must be at least 1, is -3"),
        (lambda: Section(names=("a",)), "options: names: must have at least 2 entries, has 1"),
        (
            lambda: Section(inner=Inner(prompts=("abc", "abcd"))),
            "options: prompt: must have at most 3 characters, has 4",
        ),
        (lambda: Section(weight=float("inf")), "options: weight: must be finite"),
        (lambda: Section(inner=Inner(steps=7)), "options: steps: seven is unlucky"),
    ],
)
def test_the_sentence_names_the_choice_its_range_and_its_value(made: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(made, chosen_as={"prompts": "prompt"})  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_what_is_in_range_is_returned_as_it_was_made() -> None:
    made = Section(part=0.25)
    assert checked(lambda: made) is made


def test_other_sentences_stay_as_they_are() -> None:
    assert in_words("Expected `int`, got `str`", "secret") == "Expected `int`, got `str`"
    assert "secret" not in in_words("Expected `str` of length <= 3", "secret")
