"""What is installed is what was locked, by the options that the Makefile gives to pip: otherwise nothing is (F39)."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from cachefl_secure.transport.flare.engine import EXTRA, SUPPORTED
from tests.claims import REPOSITORY

LOCK = (REPOSITORY / ".requirements.lock").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
NAME = "cachefl-secure-test-of-the-lock"


def test_every_package_of_the_lock_has_one_version_and_a_hash() -> None:
    entries = [entry for entry in re.split(r"\n(?=[^\s#])", LOCK) if entry and not entry.startswith("#")]
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z0-9,]+\])?==[^\s;]+", entry), entry
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry


def test_flare_is_named_in_the_one_version_that_the_site_was_hardened_for() -> None:
    major, minor = SUPPORTED
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'{EXTRA} = ["nvflare>={major}.{minor},<{major}.{minor + 1}"' in project
    assert re.findall(r"nvflare==([0-9.]+)", MAKEFILE) == [f"{major}.{minor}.0"]


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A package of one empty module, in a folder of its own: all that there is without a network."""
    folder, stem = tmp_path / "wheels", NAME.replace("-", "_")
    folder.mkdir()
    made, notes = folder / f"{stem}-1.0-py3-none-any.whl", f"{stem}-1.0.dist-info"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(f"{stem}.py", "")
        archive.writestr(f"{notes}/METADATA", f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
        archive.writestr(f"{notes}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{notes}/RECORD", "")
    return made


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="no pip in this environment")
@pytest.mark.parametrize(
    ("change", "is_installed"),
    [
        ("none", True),
        ("no hash", False),
        ("another hash", False),
        ("a package that is gone", False),
        ("a version that is gone", False),
    ],
)
def test_an_installation_fails_unless_the_file_is_the_one_that_was_locked(
    tmp_path: Path, wheel: Path, change: str, is_installed: bool
) -> None:
    digest = sha256(wheel.read_bytes()).hexdigest()
    locked = {
        "none": f"{NAME}==1.0 --hash=sha256:{digest}",
        "no hash": f"{NAME}==1.0",
        "another hash": f"{NAME}==1.0 --hash=sha256:{digest[::-1]}",
        "a package that is gone": f"{NAME}==1.0 --hash=sha256:{digest}\n{NAME}-2==1.0 --hash=sha256:{digest}",
        "a version that is gone": f"{NAME}==1.1 --hash=sha256:{digest}",
    }
    lock, target = tmp_path / "lock", tmp_path / "installed"
    lock.write_text(locked[change])
    (options,) = re.findall(r"pip install (.*--require-hashes) -r \$\(LOCK\)", MAKEFILE)
    command = [sys.executable, "-m", "pip", "install", *options.split(), "-r", str(lock)]
    offline = [
        "--isolated",
        "--no-index",
        "--find-links",
        str(wheel.parent),
        "--target",
        str(target),
        "--no-cache-dir",
    ]
    ran = subprocess.run([*command, *offline], capture_output=True, text=True, check=False)
    assert (ran.returncode == 0) is is_installed, ran.stderr
    assert target.exists() is is_installed, "all or nothing"
