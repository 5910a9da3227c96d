"""Secrets have a type per purpose: they do not print, do not pickle, and compare in constant time."""

from __future__ import annotations

import hmac
import secrets
from typing import ClassVar, NoReturn, Self


class Secret:
    """Bytes of a fixed length for one purpose. Subclass it and name the subclass after the purpose.

    ``reveal()`` is called next to the primitive that needs the bytes, nowhere else. Python cannot wipe
    memory: a secret lives until the garbage collector takes it (limit N6).
    """

    __slots__ = ("_value",)
    length_bytes: ClassVar[int] = 32

    def __init__(self, value: bytes) -> None:
        if len(value) != self.length_bytes:
            raise ValueError(f"{type(self).__name__} takes {self.length_bytes} bytes, got {len(value)}")
        self._value = bytes(value)

    @classmethod
    def generate(cls) -> Self:
        """Fresh bytes from the operating system."""
        return cls(secrets.token_bytes(cls.length_bytes))

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._value

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret) or type(self) is not type(other):
            return False
        return hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a hash table would compare digests of secrets

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} does not pickle")

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is not copied")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError(f"{type(self).__name__} is not copied")
