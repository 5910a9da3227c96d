"""Which silo directories of one institution write into one ledger, so that their federations' costs add up.

A federation over records that another one has used already joins with the other silo's ledger (``join
--ledger``): one file, one key that signs it, one salt for the names of records, one pair of caps. The
directory that the ledger was made in owns it and lists the others here:

    ledger/shared-with.toml     absolute paths of their directories

A head that any of their coordinators witnessed must be in the ledger, so each looks into the records of all.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.plan import decode_toml, encode_toml

SHARED_FILE = "ledger/shared-with.toml"


class _Sharing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    directories: tuple[str, ...]


def sharing_directories(owner: StateDir) -> tuple[Path, ...]:
    """The finished ones of the list. One that was deleted witnesses nothing any more.

    Raises:
        ConfigError: the list is damaged.
    """
    listed = (Path(directory) for directory in _listed(owner))
    return tuple(root for root in listed if root.is_dir() and StateDir(root).is_finished)


def add_sharing_directory(owner: StateDir, root: Path) -> None:
    """Puts the directory on the owner's list, durably."""
    listed = dict.fromkeys((*_listed(owner), str(root.resolve())))
    owner.write(SHARED_FILE, encode_toml(_Sharing(tuple(listed))))


def _listed(owner: StateDir) -> tuple[str, ...]:
    if not owner.has(SHARED_FILE):
        return ()
    return decode_toml(owner.read(SHARED_FILE), _Sharing, file=str(owner.path(SHARED_FILE))).directories
