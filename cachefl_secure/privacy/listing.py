"""A ledger's entries as they stand, for people and other programs. Runs without torch."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cachefl_secure.errors import ConfigError, LedgerCorrupt
from cachefl_secure.names import Digest, PublicKeyHex
from cachefl_secure.privacy import append_only, entries
from cachefl_secure.privacy.entries import AnyBody, EntryRejected


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries whose form, chain and signatures hold; what they claim is ``verification``'s to check."""

    public_key: PublicKeyHex
    """The one in entry 0; a ``rotate_key`` entry names the next."""
    bodies: tuple[AnyBody, ...]
    hashes: tuple[Digest, ...]

    def plain(self) -> list[dict[str, Any]]:
        """One mapping an entry, ``hash`` included; floats are the exact strings of the ledger."""
        return [
            {**msgspec.to_builtins(body), "hash": digest}
            for body, digest in zip(self.bodies, self.hashes, strict=True)
        ]

    def as_csv(self) -> str:
        """RFC 4180, one row an entry and a column for every field of any kind; a mechanism's as ``mechanism.NAME``."""
        rows = [_flat(row) for row in self.plain()]
        columns = dict.fromkeys(name for row in rows for name in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def listing(path: Path) -> Listing:
    """Steps (1) to (6) of ``verification``, under the key that the ledger itself names: compare it with another source.

    Raises:
        ConfigError: the file cannot be read.
        LedgerCorrupt: an entry fails a step.
    """
    *lines, rest = append_only.read(path).split(b"\n")
    if not lines or rest:
        raise LedgerCorrupt(str(path), len(lines), "step 1: an unfinished line" if rest else "step 1: empty")
    first, bodies, hashes = _named_key(lines[0], path), list[AnyBody](), [entries.GENESIS]
    key = first
    for sequence, line in enumerate(lines):
        try:
            opened = entries.open_line(line, sequence, hashes[-1], key)
        except EntryRejected as error:
            raise LedgerCorrupt(str(path), sequence, str(error)) from None
        if isinstance(opened.body, entries.RotateKey):
            key = PublicKeyHex(opened.body.new_key)
        bodies.append(opened.body)
        hashes.append(Digest(opened.hash))
    return Listing(first, tuple(bodies), tuple(hashes[1:]))


def _named_key(line: bytes, path: Path) -> PublicKeyHex:
    try:
        return PublicKeyHex(msgspec.json.decode(line, type=entries.Line).body.public_key)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LedgerCorrupt(str(path), 0, "step 2: not an entry of a known kind") from None


def ledger_file(path: Path, inside: str) -> Path:
    """The ledger of a silo's directory, or the file itself.

    Raises:
        ConfigError: neither.
    """
    if path.is_dir():
        path = path / inside
    if not path.is_file():
        raise ConfigError(str(path), "", "no ledger: give a silo's directory or a ledger file")
    return path


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    mechanism = row.pop("mechanism", {})
    return {**row, **{f"mechanism.{name}": value for name, value in mechanism.items()}}
