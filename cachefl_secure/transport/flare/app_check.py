"""The only app that a site lets a job deploy: ours, compared byte for byte.

FLARE's own checks are not enough where the server may be hostile. A site takes the submitter's role from the
job, and the role "super" passes every policy (``nvflare/fuel/sec/authz.py``); a job that is allowed to bring code
is exempt from the allow-list of classes (``component_path_authorizer.py``). This check comes before either.
"""

from __future__ import annotations

from pathlib import Path

from nvflare.apis.app_validation import AppValidator

from cachefl_secure.transport.flare.kits import silo_app

_SIGNATURE_FILES = frozenset({".__nvfl_sig.json", ".__nvfl_submitter.crt"})
"""FLARE's signature by the submitter. It says who submitted, which is the coordinator or whom it certified."""
_MAX_BYTES = 1 << 16


class OnlyOurApp(AppValidator):  # type: ignore[misc]
    """Refuses an app with any file more, fewer or other than ``kits.silo_app``."""

    def validate(self, app_folder: str) -> tuple[str, dict[str, object]]:
        """FLARE's convention: a reason, empty if there is none, and properties of the app."""
        return differs(Path(app_folder)), {}


def differs(folder: Path) -> str:
    """Why the folder is not our app; empty if it is."""
    expected = {Path(path): content for path, content in silo_app().items()}
    folders = {parent for path in expected for parent in path.parents}
    for found in sorted(folder.rglob("*")):
        path = found.relative_to(folder)
        if found.is_symlink():
            return "the app contains a link"
        if found.is_dir():
            if path not in folders:
                return "the app has a folder that cachefl-secure's does not have"
        elif path.name in _SIGNATURE_FILES and path.parent in folders:
            continue
        elif path not in expected:
            return "the app has a file that cachefl-secure's does not have"
        elif found.stat().st_size > _MAX_BYTES or found.read_bytes() != expected.pop(path):
            return "the app is not the one of this version of cachefl-secure"
    return "the app lacks a file of cachefl-secure's" if expected else ""
