"""What the second implementation does where something does not hold."""

from __future__ import annotations


class Refused(Exception):
    """What a check found."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(what)
