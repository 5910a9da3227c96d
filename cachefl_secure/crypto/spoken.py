"""128 bits of a digest, as people read them to each other: eight groups of hex digits, or twelve words.

The words are those of BIP 39 (2,048 English words, four letters tell them apart; the last one holds a checksum of
four bits), by its reference implementation ``mnemonic``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from cachefl_secure.errors import ConfigError


@lru_cache(1)
def _words() -> Any:
    from mnemonic import Mnemonic

    return Mnemonic("english")


def in_words(groups: str) -> str:
    """Twelve words for eight groups of four hex digits."""
    words: str = _words().to_mnemonic(bytes.fromhex("".join(groups.split())))
    return words


def digits_of(heard: str) -> str:
    """The 32 hex digits of a fingerprint as it was heard, in digits or words. Spaces and case do not matter.

    Raises:
        ConfigError: it is neither.
    """
    text = " ".join(heard.lower().replace("-", " ").split())
    if re.fullmatch(r"[0-9a-f]{32}", text.replace(" ", "")):
        return text.replace(" ", "")
    if len(text.split()) != 12:
        raise ConfigError("--expect", "", "a fingerprint is eight groups of four hex digits, or twelve words")
    if not _words().check(text):
        raise ConfigError("--expect", "", "these twelve words are no fingerprint: one was misheard")
    return bytes(_words().to_entropy(text)).hex()


def check_heard(heard: str, groups: str, *, where: tuple[str, str], otherwise: str) -> None:
    """That what was heard is the fingerprint ``groups``.

    Raises:
        ConfigError: as ``digits_of``, or another fingerprint; ``where`` it belongs and what to do ``otherwise``.
    """
    if digits_of(heard) != groups.replace(" ", ""):
        file, field = where
        raise ConfigError(file, field, f"{groups} ({in_words(groups)}), not as expected: {otherwise}")
