"""What an operator chose, checked as sections of the plan are; an error names the choice, not the section's field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

import msgspec

from cachefl_secure.errors import OPTIONS, ConfigError
from cachefl_secure.privacy.discretisation import LARGEST_EPSILON
from cachefl_secure.wording import counted

_Made = TypeVar("_Made", bound=msgspec.Struct)

_RANGE = re.compile(r"Expected `(\w+)`( of length)? (>=|<=|>|<) (\S+)")
_WORDS = {">": "more than", ">=": "at least", "<": "less than", "<=": "at most"}
_FIELD_FIRST = re.compile(r"(\w+):? (.+)", re.DOTALL)
"""A section's own ``ValueError`` begins with the field that it is about."""
_UNCHANGED: Mapping[str, str] = MappingProxyType({})


def checked(make: Callable[[], _Made], *, chosen_as: Mapping[str, str] = _UNCHANGED) -> _Made:
    """A section of the plan, or the operator's error if a choice is out of range.

    ``chosen_as`` gives the name of the choice where the section's field is called otherwise.

    Raises:
        ConfigError: in ``OPTIONS``; names the choice, what it must be and, of a number, what it is.
    """
    try:
        made = make()
    except ValueError as error:
        raise _refused(*_split(str(error)), chosen_as) from None
    try:
        msgspec.json.decode(msgspec.json.encode(made), type=type(made))  # bounds are checked on decoding only
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        place = place.rstrip("`")
        raise _refused(place, in_words(reason, _found(made, place)), chosen_as) from None
    return made


def check_epsilon(epsilon: float) -> None:
    """
    Raises:
        ConfigError: in ``OPTIONS``; more than accountants answer for.
    """
    if epsilon > LARGEST_EPSILON:
        reason = (
            f"{epsilon:g} is more than can be accounted for, {LARGEST_EPSILON:g}; it would protect nobody"
        )
        raise ConfigError(OPTIONS, "epsilon", reason)


def in_words(reason: str, found: object = None) -> str:
    """msgspec's sentence about a range as people say it, with the number (or length) that was found there.

    Of another sentence nothing is changed. Texts are told by their length alone.
    """
    parts = _RANGE.fullmatch(reason)
    if parts is None:
        return reason
    kind, of_length, sign, bound = parts.groups()
    limit = f"{_WORDS[sign]} {float(bound):.12g}"
    if of_length:
        what = ("character", "characters") if kind == "str" else ("entry", "entries")
        length = f", has {len(found)}" if isinstance(found, str | tuple) else ""
        return f"must have {_WORDS[sign]} {counted(int(bound), *what)}{length}"
    return f"must be {limit}" + (f", is {found:g}" if isinstance(found, int | float) else "")


def _split(sentence: str) -> tuple[str, str]:
    found = _FIELD_FIRST.fullmatch(sentence)
    return ("", sentence) if found is None else (found[1], found[2])


def _refused(place: str, reason: str, chosen_as: Mapping[str, str]) -> ConfigError:
    field = re.sub(r"\[\d+\]", "", place).rpartition(".")[2]
    return ConfigError(OPTIONS, chosen_as.get(field, field), reason)


def _found(made: msgspec.Struct, place: str) -> object:
    """The value at a place such as ``encoder.templates[0]``."""
    value: object = made
    for name, index in re.findall(r"(\w+)|\[(\d+)\]", place):
        value = (
            getattr(value, name, None) if name else value[int(index)] if isinstance(value, tuple) else None
        )
    return value
