"""Five hosts with addresses of their own, a network namespace each: a coordinator and four silos, one cut off in a round."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cachefl_secure.federation.inspection import audit_coordinator, audit_silo
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import SiloId
from tests.claims import REPOSITORY
from tests.small_federation import found
from tests.transport.at_flare import NEEDS_FLARE, hand_over

pytestmark = NEEDS_FLARE
PATIENCE_SECONDS = 400.0
DEADLINE_SECONDS = 60.0
NETWORK = "10.213.77"
CUT_OFF = SiloId("silo-4")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@dataclass
class Hosts:
    """Namespaces on one bridge. The coordinator is host 1, silo-1 host 2 and so on."""

    prefix: str
    made: list[str] = field(default_factory=list)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Hosts:
        ip("link", "add", self.prefix, "type", "bridge")
        ip("link", "set", self.prefix, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self.prefix], check=False, capture_output=True)

    def add(self, number: int) -> str:
        """The namespace's name."""
        name, outside = f"{self.prefix}n{number}", f"{self.prefix}v{number}"
        ip("netns", "add", name)
        self.made.append(name)
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", outside, "master", self.prefix, "up")
        ip("-n", name, "addr", "add", f"{NETWORK}.{number}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def cut_off(self, number: int) -> None:
        ip("link", "set", f"{self.prefix}v{number}", "down")

    def start(self, number: int, log: Path, *words: str | Path) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "cli"))),
        }
        command = [
            "ip",
            "netns",
            "exec",
            f"{self.prefix}n{number}",
            sys.executable,
            "-m",
            "cachefl_secure_cli",
        ]
        with log.open("wb") as said:
            process = subprocess.Popen(
                [*command, *map(str, words)], stdout=said, stderr=said, env=environment
            )
        self.processes.append(process)
        return process


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` on this machine")
    made = Hosts(f"cf{os.getpid() % 100000}")
    try:
        with made:
            for number in range(1, 6):
                made.add(number)
            yield made
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no network namespaces: {error.stderr.strip()}")


def until(holds: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_silo_that_is_cut_off_in_a_round_does_not_stop_the_others(hosts: Hosts, tmp_path: Path) -> None:
    federation = found(tmp_path, records=(12, 20, 9, 15), engine=f"nvflare+grpc://{NETWORK}.1:8002")
    hand_over(federation)
    invite = federation.coordinator / "invite.toml"
    for number, (silo, path) in enumerate(sorted(federation.silos.items()), 2):
        hosts.start(number, tmp_path / f"{silo}.log", "join", invite, path)
    log, state = tmp_path / "coordinator.log", StateDir(federation.coordinator)
    patience = ("--deadline", str(DEADLINE_SECONDS), "--gather", "60")
    round_command = hosts.start(1, log, "round", federation.coordinator, "-n", "2", "--json", *patience)

    def begun() -> bool:
        assert round_command.poll() is None, log.read_text()
        return state.has("rounds/0002/attempt")

    until(begun, "round 2 begins")
    hosts.cut_off(5)
    assert round_command.wait(PATIENCE_SECONDS) == 0, log.read_text()
    said = log.read_text()
    first, second = json.loads(said[said.index("{\n") : said.rindex("}") + 1])["result"]["rounds"]
    others = sorted(set(federation.silos) - {CUT_OFF})
    assert first["survivors"] == sorted(federation.silos)
    assert [silo for silo in second["survivors"] if silo != CUT_OFF] == others
    assert CUT_OFF in second["absent"]
    assert audit_coordinator(federation.coordinator).steps
    for silo in others:
        assert audit_silo(federation.silos[SiloId(silo)], {}).steps
