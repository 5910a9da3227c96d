"""Federations at real FLARE processes on loopback: their sites here, or every party a process that can be killed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_files import REQUEST_FILE, SiloFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import SiloId
from cachefl_secure.transport.engines import SITE_PACKAGE, hand_over_request, prepare_coordinator
from cachefl_secure.transport.flare import kits
from cachefl_secure.transport.flare.certificates import Pair, certified_pair
from cachefl_secure.transport.flare.children import Child
from cachefl_secure.transport.flare.engine import FlareEngine, parse_engine
from cachefl_secure.transport.flare.enrolling import approve_site, found_engine, install_site, request_site
from cachefl_secure.transport.flare.processes import ServerProcess, SiteProcess
from cachefl_secure.transport.flare.rounds import run_flare_rounds
from tests import inside_flare
from tests.claims import REPOSITORY
from tests.party import Faults, Paths
from tests.processes import SOUND, Party, Stage, privacy_of_stages, start_forkserver, until
from tests.small_federation import SmallFederation, found

needs_flare = pytest.mark.skipif(
    importlib.util.find_spec("nvflare") is None,
    reason="FLARE is not installed: pip install 'cachefl-secure[nvflare]'",
)
NEEDS_FLARE = [pytest.mark.slow, needs_flare]

DEADLINE_SECONDS = 120.0
PATIENCE_SECONDS = 400.0
"""For anything that FLARE does on a machine that others use too."""
LAST = SiloId("silo-3")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Live:
    """A federation whose sites run."""

    federation: SmallFederation
    engine: FlareEngine
    sites: dict[SiloId, SiteProcess] = field(default_factory=dict)
    told: dict[str, list[str]] = field(default_factory=dict)
    server: ServerProcess | None = None

    def serve(self) -> ServerProcess:
        """One server for several tests, from the first that needs it until one that needs another."""
        if self.server is None:
            self.server = ServerProcess(self.coordinator).__enter__()
        return self.server

    def stop_server(self) -> None:
        if self.server is not None:
            self.server.__exit__(None, None, None)
            self.server = None

    def package(self, silo: SiloId) -> bytes:
        """What the coordinator sends to the site, with a new certificate each time."""
        request = request_site(StateDir(self.federation.silos[silo]), silo, self.engine)
        return approve_site(self.coordinator, silo, request)

    def start_site(self, silo: SiloId) -> None:
        said = self.told.setdefault(silo, [])
        self.sites[silo] = SiteProcess(self.federation.silos[silo], tell=said.append).__enter__()

    def restart_site(self, silo: SiloId) -> None:
        self.sites.pop(silo).__exit__(None, None, None)
        self.start_site(silo)

    def stop_sites(self) -> None:
        for site in self.sites.values():
            site.__exit__(None, None, None)
        self.sites.clear()

    @property
    def coordinator(self) -> StateDir:
        return StateDir(self.federation.coordinator)

    def site_folder(self, silo: SiloId) -> Path:
        return self.federation.silos[silo] / kits.SITE

    def rounds(
        self,
        number: int,
        progress: object = silent,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        connect_seconds: float = 60.0,
    ) -> list[RoundOutcome]:
        return run_flare_rounds(
            self.federation.coordinator,
            number,
            deadline_seconds=deadline_seconds,
            connect_seconds=connect_seconds,
            progress=progress,  # type: ignore[arg-type]
            tell=self.told.setdefault("coordinator", []).append,
        )


@contextmanager
def founded(root: Path) -> Iterator[Live]:
    """A federation of three with certificates, no site of which runs."""
    with pytest.MonkeyPatch.context() as environment, contextlib.ExitStack() as held:
        environment.setenv("PYTHONPATH", str(REPOSITORY))
        federation = found(root, records=(12, 20, 9))
        engine = parse_engine(f"nvflare+grpc://localhost:{free_port()}")
        found_engine(StateDir(federation.coordinator), engine, "small")
        made = Live(federation, engine)
        for silo, path in federation.silos.items():
            install_site(StateDir(path), made.package(silo), engine)
        held.callback(made.stop_server)
        held.callback(made.stop_sites)
        yield made


@contextmanager
def running(root: Path) -> Iterator[Live]:
    """As ``founded``; the sites run until the context ends."""
    with founded(root) as made:
        for silo in made.federation.silos:
            made.start_site(silo)
        yield made


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    import psutil  # comes with FLARE

    process = psutil.Process(pid)
    return [each.pid for each in (process, *process.children(recursive=True))]


def is_alive(pid: int) -> bool:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def wait_until_gone(pids: Sequence[int], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < until, f"still alive: {left}"
        time.sleep(0.1)


ATTEMPT = """
import json, os, sys, time
from nvflare.fuel.flare_api.flare_api import new_secure_session
user, kit, wait, *jobs = sys.argv[1:]
session = new_secure_session(user, kit, timeout=30.0)
found = {}
if wait == "wait":
    while len(session.get_system_info().client_info) < 3:
        pass
for job in jobs:
    try:
        name = session.submit_job(job)
        while not str((meta := session.get_job_meta(name))["status"]).startswith("FINISHED"):
            pass
        time.sleep(1.0)  # FLARE writes the reasons after the status
        meta = session.get_job_meta(name)
        found[os.path.basename(job)] = [meta["status"], meta.get("job_deploy_detail")]
    except Exception as error:
        found[os.path.basename(job)] = ["refused", str(error)]
print("FOUND" + json.dumps(found))
sys.stdout.flush()
os._exit(0)
"""


def attempts(
    live: Live, folder: Path, role: str, jobs: Sequence[Path], wait: str = "wait"
) -> dict[str, tuple[str, object]]:
    """What FLARE did with jobs that the coordinator's authority lets somebody of this role submit."""
    user = f"mallory-{role.replace('_', '-')}"
    authority = Pair(live.coordinator.read(f"{kits.CA}/ca.key"), live.coordinator.read(f"{kits.CA}/ca.crt"))
    kit = folder / role
    files = kits.key_files("client", certified_pair(authority, user, role), authority.certificate)
    for path, content in {**kits.admin_files(live.engine), **files}.items():
        (kit / path).parent.mkdir(parents=True, exist_ok=True)
        (kit / path).write_bytes(
            content.replace(b'"username": "coordinator"', f'"username": "{user}"'.encode())
        )
    command = [sys.executable, "-c", ATTEMPT, user, str(kit), wait, *map(str, jobs)]
    run = subprocess.run(command, cwd=kit, capture_output=True, text=True, timeout=90, check=False)
    lines = [line for line in run.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, run.stderr[-800:]
    return {name: (status, detail) for name, (status, detail) in json.loads(lines[0][5:]).items()}


def job(folder: Path, name: str, changes: dict[str, bytes]) -> Path:
    files = kits.job_files("0" * 32, ["silo-1", "silo-2", "silo-3"])
    for path, content in {**files, **changes}.items():
        (folder / name / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / path).write_bytes(content)
    return folder / name


@contextmanager
def widened(live: Live) -> Iterator[None]:
    """A server of the same machine and keys that permits everything to everybody."""
    live.stop_server()
    server = live.coordinator.path(kits.SERVER)
    permissive = {"format_version": "1.0", "permissions": dict.fromkeys((*kits.ROLES, "super"), "any")}
    (server / "local/authorization.json").write_text(json.dumps(permissive))
    resources = json.loads((server / "local/resources.json").read_bytes())
    (server / "local/resources.json").write_text(json.dumps({**resources, "class_allow_list": ["*"]}))
    child = Child("server", server)
    try:
        yield
    finally:
        child.stop()


def check_refused(live: Live, found: dict[str, tuple[str, object]], reason: str) -> None:
    """That each of these jobs was refused by every site, for this reason."""
    for name, (status, detail) in found.items():
        assert status == "FINISHED:FAILED_TO_RUN", (name, detail)
        assert isinstance(detail, list)
        for silo in live.federation.silos:
            (said,) = (each for each in detail if each.startswith(f"{silo}: "))
            assert reason in said, (name, detail)


# --- every party a process


def hand_over(federation: SmallFederation) -> None:
    """What people carry between the parties of a federation whose invite names FLARE."""
    prepare_coordinator(federation.coordinator)
    coordinator = CoordinatorFiles.open(federation.coordinator)
    for silo, path in federation.silos.items():
        files = SiloFiles.open(path)
        _, request = hand_over_request(files, path / REQUEST_FILE)
        package = approve_site(coordinator.state, silo, request.read_bytes())
        StateDir(path).write(SITE_PACKAGE, package)


@dataclass(eq=False)
class FlareStage(Stage):
    """As ``Stage``, but messages go through FLARE; faults are those of the next job's processes."""

    def start(self, *arguments: str | Path, faults: Faults = SOUND) -> Party:
        party = {"join": Path(arguments[-1]).name, "round": inside_flare.COORDINATOR}.get(str(arguments[0]))
        if party is not None:
            inside_flare.place_faults(self.paths, party, faults)
        return super().start(*arguments)

    def kill(self, silo: str) -> None:
        """As a power cut at the silo: the command and all that FLARE started for it."""
        self.paths.silent(SiloId(silo)).touch()
        power_cut(self.serving.pop(SiloId(silo)))

    def hold(self, silo: SiloId, at: str) -> Path:
        """The silo's next job waits at this point, until the file is made whose name this returns."""
        gate = self.paths.gate(silo)
        inside_flare.place_faults(self.paths, silo, Faults(hold_at=at, gate=gate))
        return gate

    def wake(self, silo: SiloId, processes: Sequence[int]) -> None:
        """What was held and stopped goes on where FLARE lets it; the next job is sound."""
        inside_flare.place_faults(self.paths, silo, SOUND)
        self.paths.silent(silo).unlink()
        for pid in processes:
            os.kill(pid, signal.SIGCONT)

    def until(self, holds: Callable[[], object], what: str) -> None:
        until(holds, what, self.patience_seconds)

    def kill_everything(self) -> None:
        """All that any party started."""
        kill_all([pid for party in self.running() for pid in tree(party.process.pid)])
        self.kill_all()

    def job_of(self, party: Party) -> list[int]:
        """The processes of FLARE's for jobs, below a command."""
        return [pid for pid in tree(party.process.pid) if "_process" in " ".join(_words(pid))]

    def flare_of(self, party: Party) -> list[int]:
        """FLARE's server or client below a command, and its jobs; not what only submits."""
        below = tree(party.process.pid)[1:]
        return [pid for pid in below if "submit" not in _words(pid)]


def power_cut(party: Party) -> None:
    """kill -9 of a command and of all that it started, which has no time to notice."""
    kill_all(tree(party.process.pid))
    party.kill()


def kill_all(pids: Sequence[int]) -> None:
    for pid in pids:  # a stopped process answers no signal but this one
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_until_gone(pids)


def _words(pid: int) -> list[str]:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return list(psutil.Process(pid).cmdline())
    return []


@contextmanager
def flare_stage(root: Path, silos: int = 4) -> Iterator[FlareStage]:
    """A federation of so many silos at a FLARE server of this machine, none started."""
    work = root / "work"
    work.mkdir()
    hooks = inside_flare.hook(root / "hooks", work, "recognisable")
    records = [9 + number for number in range(silos)]
    engine = f"nvflare+grpc://localhost:{free_port()}"
    federation = found(root, records=records, privacy=privacy_of_stages(), engine=engine)
    hand_over(federation)
    start_forkserver()
    made = FlareStage(federation, work, Paths(work, hooks), patience_seconds=PATIENCE_SECONDS)
    try:
        yield made
    finally:
        made.kill_everything()
