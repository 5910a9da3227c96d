"""A server that sends modules under names of ours, of FLARE's or of Python's: no site imports one of them.

Every such module writes a marker when it is imported.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefl_secure.federation.inspection import audit_silo
from tests.transport.at_flare import NEEDS_FLARE, Live, attempts, check_refused, job, running, widened

pytestmark = NEEDS_FLARE
SHADOWED = (
    *("nvflare.py", "nvflare/__init__.py", "cachefl_secure.py", "cachefl_secure/__init__.py"),
    *("cachefl_secure/transport/flare/executor.py", "sitecustomize.py", "usercustomize.py"),
    *("torch.py", "numpy/__init__.py", "json.py", "threading.py", "__main__.py"),
)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(tmp_path_factory.mktemp("flare")) as made:
        yield made


def shadows(marker: Path) -> dict[str, bytes]:
    return {name: f"open({str(marker)!r}, 'a').write({name!r})\n".encode() for name in SHADOWED}


def plant(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_the_modules_of_this_test_do_leave_their_marker_where_they_are_imported(tmp_path: Path) -> None:
    marker, place = tmp_path / "marker", tmp_path / "place"
    plant(place, shadows(marker))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    for path in (place, place / "elsewhere"):
        path.mkdir(exist_ok=True)
        command = [sys.executable, "-c", "import nvflare, cachefl_secure, torch, numpy"]
        subprocess.run(
            command, cwd=path, env=environment | {"PYTHONPATH": str(place)}, capture_output=True, check=False
        )
        assert marker.read_text()
        marker.unlink()


def test_modules_that_a_server_sends_are_refused_and_those_that_lie_about_are_not_imported(
    live: Live, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    files = shadows(marker)
    jobs = [
        job(
            tmp_path,
            "custom",
            {f"{app}/custom/{name}": each for app in ("silo", "coordinator") for name, each in files.items()},
        ),
        *(
            job(
                tmp_path,
                f"in-{place or 'app'}",
                {f"silo/{place}/{name}": each for name, each in files.items()},
            )
            for place in ("", "config", "cachefl_secure")
        ),
    ]
    sites = {silo: live.site_folder(silo) for silo in live.federation.silos}
    before = {silo: set(site.iterdir()) for silo, site in sites.items()}
    with widened(live):
        check_refused(live, attempts(live, tmp_path, "super", jobs), "the app ")
    assert not marker.exists()
    for silo, site in sites.items():
        assert [path for path in set(site.iterdir()) - before[silo] if path.is_dir()] == []
        assert not [path for path in live.federation.silos[silo].rglob("*custom*") if path.suffix != ".json"]

    # And if one of them had come here in some other way: FLARE's client and its jobs work in these folders.
    for site in sites.values():
        for folder in (site, site / "startup", site / "local", site / "tmp"):
            plant(folder, files)
    for silo in live.federation.silos:
        live.restart_site(silo)
    (outcome,) = live.rounds(1, connect_seconds=120.0)
    assert outcome.record.survivors == tuple(sorted(sites))
    assert not marker.exists()
    for root in live.federation.silos.values():
        assert audit_silo(root, {}).steps
