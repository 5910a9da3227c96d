"""What the first cache keys were made from, so that a licence travels with every cache that descends from them.

Under some licences a model trained on a generator's pictures is bound by the generator's terms; whoever holds a
cache must be able to see which those are.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

KINDS = ("unstated", "diffusers", "folder", "features", "text")
_LONGEST = 200
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True, slots=True)
class CacheOrigin:
    """Four short texts; they are bound into the cache's digest.

    Raises:
        ValueError: another kind, a text that is long or not printable, or a digest that is none.
    """

    kind: str = "unstated"
    name: str = ""
    """The generator or collection; never a path of the machine that made the cache."""
    licence: str = "unknown"
    manifest_digest: str = ""
    """SHA-256 of what lists the pictures, features or texts; empty only where nothing is stated."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"origin: kind must be one of {', '.join(KINDS)}")
        if any(len(text) > _LONGEST or not text.isprintable() for text in self.texts):
            raise ValueError(f"origin: texts must be printable, of at most {_LONGEST} characters")
        if bool(self.manifest_digest) == (self.kind == "unstated"):
            raise ValueError("origin: a stated origin has the digest of its manifest, another has none")
        if self.manifest_digest and not _DIGEST.match(self.manifest_digest):
            raise ValueError("origin: the digest of the manifest must be 64 hex digits")

    @property
    def texts(self) -> tuple[str, ...]:
        """In the order in which the cache's digest takes them."""
        return tuple(asdict(self).values())


UNSTATED = CacheOrigin()

ORIGIN_FIELDS = tuple(f"origin_{name}" for name in CacheOrigin.__dataclass_fields__)
"""Names of the same texts in a cache file's metadata, in the same order."""
