"""When a write is on disk. A disk that answers before it has written is trust assumption T4."""

from __future__ import annotations

import fcntl
import os

_FULL_SYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


def sync(file: int) -> None:
    """What was written to the file (or directory) is on the disk, not only on its way.

    On macOS ``fsync`` leaves data in the drive's own cache; F_FULLFSYNC empties that too (fsync(2) there).

    Raises:
        OSError: nobody knows what is on disk. Do not sync again: a second call may report success falsely.
    """
    if _FULL_SYNC is None:
        os.fsync(file)
    else:
        fcntl.fcntl(file, _FULL_SYNC)
