"""The only app that a site accepts: ours, compared byte for byte.

FLARE's own checks are not enough where the server may be hostile. A site takes the submitter's role from the
job, and the role "super" passes every policy (``nvflare/fuel/sec/authz.py``); a job that is allowed to bring code
is exempt from the allow-list of classes (``component_path_authorizer.py``). And they come too late: FLARE unpacks
first and looks afterwards (``app_deployer.py``). So what the server sent is looked at in memory, and a site
deploys its own copy (``site_requests``); that it equals the server's says only that both have the same version.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from nvflare.apis.app_validation import AppValidator

from cachefl_secure.transport.flare.kits import silo_app

_SIGNATURE_FILES = frozenset({".__nvfl_sig.json", ".__nvfl_submitter.crt"})
"""FLARE's signature by the submitter. It says who submitted, which is the coordinator or whom it certified."""
_MAX_BYTES, _MAX_ENTRIES = 1 << 16, 16
"""Of an upload and of each file in it. The app is one file, its folder and two signature files in each."""

_Entry = tuple[PurePosixPath, bytes | None]
"""A file and how it begins, up to one byte more than is allowed; or a folder."""


class OnlyOurApp(AppValidator):  # type: ignore[misc]
    """Refuses an app with any file more, fewer or other than ``kits.silo_app``."""

    def validate(self, app_folder: str) -> tuple[str, dict[str, object]]:
        """FLARE's convention: a reason, empty if there is none, and properties of the app."""
        return differs(Path(app_folder)), {}


def differs(folder: Path) -> str:
    """Why the folder is not our app; empty if it is."""
    return _difference(_in_folder(folder))


def differs_in_upload(upload: object) -> str:
    """Why these bytes of the server's are no archive of our app; empty if they are. Writes nothing."""
    if not isinstance(upload, bytes | bytearray) or len(upload) > _MAX_BYTES:
        return "the app is larger than cachefl-secure's"
    try:
        with zipfile.ZipFile(io.BytesIO(upload)) as archive:
            if len(archive.infolist()) > _MAX_ENTRIES:
                return "the app has more files than cachefl-secure's"
            return _difference(_in_archive(archive))
    except Exception:  # zipfile raises some ten kinds of errors, depending on what is broken
        return "the app is no archive that can be read"


def _difference(entries: Iterable[_Entry]) -> str:
    expected = {PurePosixPath(path): content for path, content in silo_app().items()}
    folders = {parent for path in expected for parent in path.parents}
    for path, content in entries:
        if content is None:
            if path not in folders:
                return "the app has a folder that cachefl-secure's does not have"
        elif path.name in _SIGNATURE_FILES and path.parent in folders:
            continue
        elif path not in expected:
            return "the app has a file that cachefl-secure's does not have"
        elif content != expected.pop(path):
            return "the app is not the one of this version of cachefl-secure"
    return "the app lacks a file of cachefl-secure's" if expected else ""


def _in_folder(folder: Path) -> Iterator[_Entry]:
    for found in sorted(folder.rglob("*")):
        path = PurePosixPath(found.relative_to(folder).as_posix())
        if found.is_symlink():
            yield path / "link", b""  # a path that our app does not have
        elif found.is_dir():
            yield path, None
        else:
            with found.open("rb") as file:
                yield path, file.read(_MAX_BYTES + 1)


def _in_archive(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in archive.infolist():
        # Others may need much memory to be unpacked.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile
        if info.is_dir():
            yield PurePosixPath(info.filename), None
        else:
            with archive.open(info) as file:
                yield PurePosixPath(info.filename), file.read(_MAX_BYTES + 1)
