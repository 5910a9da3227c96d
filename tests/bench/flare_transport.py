"""What our channel adds to FLARE: 3 silos on this machine, 64 MiB to each and 64 MiB back, over mutual TLS.

    python tests/bench/flare_transport.py              about three minutes; needs `pip install '.[nvflare]'`
    python tests/bench/flare_transport.py --mib 8 --scheme tcp

Three jobs on the same server and sites carry the same bytes: FLARE's controller and executor with nothing of ours,
as they come; the same asking for tasks as often as we do; and our channel with our executor, whose silo gives
back what it gets. Elapsed is one exchange, the median of several after one that is not counted. Memory is the
peak of the resident pages of a party's processes, summed, while its job ran. Bytes are those on the loopback
device, each counted once more where FLARE's server hands it on to the process of the job. The sites' check of the app and the list of classes are opened for this bench only.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

try:
    import psutil
    from nvflare.apis.controller_spec import ClientTask, Task
    from nvflare.apis.executor import Executor
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.impl.controller import Controller
    from nvflare.apis.shareable import Shareable
    from nvflare.apis.signal import Signal
except ModuleNotFoundError:
    print("FLARE is not installed, so there is nothing to compare: pip install '.[nvflare]'", file=sys.stderr)
    raise SystemExit(0) from None

from cachefl_secure.names import SiloId
from cachefl_secure.transport.flare import kits
from cachefl_secure.transport.flare.certificates import certified_pair, make_authority
from cachefl_secure.transport.flare.children import Child
from cachefl_secure.transport.flare.controller import TaskChannel
from cachefl_secure.transport.flare.engine import FlareEngine, parse_engine
from cachefl_secure.transport.flare.executor import SiloExecutor

SILOS = [SiloId(f"silo-{number}") for number in (1, 2, 3)]
GOAL = 1.3
DEADLINE_SECONDS = 300.0
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``met`` is None where there is no target."""

    name: str
    value: float
    unit: str
    against: str = ""
    target: str = ""
    met: bool | None = None


# --- what runs inside the jobs


class _Timed(Controller):  # type: ignore[misc]
    """Exchanges the same bytes several times and writes down how long each took."""

    def __init__(self, mib: int, runs: int, out: str) -> None:
        super().__init__(task_check_period=kits.POLL_SECONDS)
        self._payload, self._runs, self._out = secrets.token_bytes(mib << 20), runs, out

    def start_controller(self, fl_ctx: FLContext) -> None: ...

    def stop_controller(self, fl_ctx: FLContext) -> None: ...

    def process_result_of_unknown_task(self, *_: object) -> None: ...

    def exchange(self, context: FLContext, abort: Signal) -> Mapping[str, bytes]:
        raise NotImplementedError

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        seconds, on_wire = [], []
        for _ in range(self._runs + 1):
            before, started = psutil.net_io_counters(pernic=True)["lo"].bytes_sent, time.perf_counter()
            answers = self.exchange(fl_ctx, abort_signal)
            seconds.append(time.perf_counter() - started)
            on_wire.append(psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before)
            assert {silo: answer == self._payload for silo, answer in answers.items()} == dict.fromkeys(
                SILOS, True
            )
        Path(self._out).write_text(json.dumps({"seconds": seconds[1:], "bytes": on_wire[1:]}))


class PlainController(_Timed):
    """FLARE as it is."""

    def exchange(self, context: FLContext, abort: Signal) -> Mapping[str, bytes]:
        answers: dict[str, bytes] = {}

        def on_result(client_task: ClientTask, fl_ctx: FLContext) -> None:
            answers[client_task.client.name] = client_task.result[kits.CONTENT]
            client_task.result = None

        request = Shareable()
        request[kits.CONTENT] = self._payload
        task = Task(name=kits.TASK, data=request, timeout=int(DEADLINE_SECONDS), result_received_cb=on_result)
        self.broadcast_and_wait(
            task, context, targets=list(SILOS), min_responses=len(SILOS), abort_signal=abort
        )
        return answers


class PlainExecutor(Executor):  # type: ignore[misc]
    """Gives back what it gets."""

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        reply = Shareable()
        reply[kits.CONTENT] = shareable[kits.CONTENT]
        return reply


class OurController(_Timed):
    """Our channel."""

    def exchange(self, context: FLContext, abort: Signal) -> Mapping[str, bytes]:
        channel = TaskChannel(self, context, abort)
        answers = channel.exchange("share", dict.fromkeys(SILOS, self._payload), DEADLINE_SECONDS)
        return {str(silo): answer for silo, answer in answers.items()}


class _Echo:
    silo = SiloId("echo")

    def handle(self, phase: str, content: bytes) -> bytes:
        return content

    def take_trouble(self) -> None:
        return None


class OurExecutor(SiloExecutor):
    """Our executor, with a silo that gives back what it gets."""

    def _open(self, site: Path) -> Any:
        return _Echo()


# --- the parties


@dataclass
class Parties:
    """A server, an administrator and three sites in folders of their own."""

    root: Path
    engine: FlareEngine
    children: dict[str, Child] = field(default_factory=dict)

    def __enter__(self) -> Parties:
        authority = make_authority("bench")
        server, admin = self.root / "server", self.root / "admin"
        pair = certified_pair(authority, self.engine.host, kits.SERVER_ROLE)
        self._write(
            server,
            kits.server_files(self.engine, server),
            kits.key_files("server", pair, authority.certificate),
        )
        pair = certified_pair(authority, kits.SUBMITTER, kits.SUBMITTER_ROLE)
        self._write(
            admin, kits.admin_files(self.engine), kits.key_files("client", pair, authority.certificate)
        )
        self.children["server"] = Child("server", server)
        for silo in SILOS:
            pair = certified_pair(authority, silo, kits.SITE_ROLE)
            files = kits.key_files("client", pair, authority.certificate)
            self._write(self.root / silo, kits.site_files(self.engine), files)
            self.children[silo] = Child("site", self.root / silo, [silo])
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.stop()

    def _write(self, folder: Path, *several: Mapping[str, bytes]) -> None:
        for files in several:
            for path, content in files.items():
                if path == "local/resources.json":
                    opened = {**json.loads(content), "class_allow_list": [f"{Path(__file__).stem}."]}
                    opened.pop("app_validator", None)
                    content = json.dumps(opened).encode()
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)


def job(folder: Path, kind: str, poll_seconds: float, arguments: Mapping[str, object]) -> Path:
    """The files of a job, with these classes instead of ours."""
    stem = Path(__file__).stem
    for path, content in kits.job_files("0" * 32, list(SILOS)).items():
        value = json.loads(content)
        for workflow in value.get("workflows", ()):
            workflow.update(path=f"{stem}.{kind}Controller", args=arguments)
        for executor in value.get("executors", ()):
            executor["executor"]["path"] = f"{stem}.{kind}Executor"
        if "server" in value:
            value["server"]["task_request_interval"] = poll_seconds
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(value))
    return folder


class Memory(threading.Thread):
    """The peak of the resident pages of each party's processes, looked at five times a second."""

    def __init__(self, parties: Parties) -> None:
        super().__init__(daemon=True)
        self.peak = dict.fromkeys(parties.children, 0)
        self._parties, self._over = parties, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.2):
            for party, child in self._parties.children.items():
                self.peak[party] = max(self.peak[party], _resident(child.pid))

    def stop(self) -> None:
        self._over.set()
        self.join()


def _resident(pid: int) -> int:
    total = 0
    try:
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    except psutil.NoSuchProcess:
        return total
    return total


@dataclass(frozen=True)
class Measured:
    seconds: float
    server_mib: float
    site_mib: float
    wire_mib: float


def measure(parties: Parties, name: str, kind: str, poll_seconds: float, mib: int, runs: int) -> Measured:
    """One job from its submission to its end."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    out = parties.root / f"{name}.json"
    folder = job(parties.root / name, kind, poll_seconds, {"mib": mib, "runs": runs, "out": str(out)})
    os.chdir(parties.root / "admin")  # FLARE searches the working directory for more configuration
    session = new_secure_session(kits.SUBMITTER, str(parties.root / "admin"), timeout=60.0)
    while {client.name for client in session.get_system_info().client_info} != set(SILOS):
        time.sleep(1.0)
    memory = Memory(parties)
    memory.start()
    submitted = session.submit_job(str(folder))
    while not str(meta := session.get_job_meta(submitted)).count("FINISHED"):
        time.sleep(1.0)
    memory.stop()
    session.close()
    if not out.exists():
        raise SystemExit(f"{name}: {meta}")
    result = json.loads(out.read_text())
    return Measured(
        median(result["seconds"]),
        memory.peak["server"] / 2**20,
        max(memory.peak[silo] for silo in SILOS) / 2**20,
        median(result["bytes"]) / 2**20,
    )


def figures(mib: int, runs: int, scheme: str) -> list[Figure]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        tempfile.TemporaryDirectory() as root,
        Parties(Path(root), parse_engine(f"nvflare+{scheme}://localhost:{port}")) as parties,
    ):
        default = measure(parties, "default", "Plain", 2.0, mib, runs)
        plain = measure(parties, "plain", "Plain", kits.POLL_SECONDS, mib, runs)
        ours = measure(parties, "ours", "Our", kits.POLL_SECONDS, mib, runs)
    return [
        figure for quantity in QUANTITIES.items() for figure in _compared(*quantity, ours, plain, default)
    ]


QUANTITIES = {
    "seconds": ("elapsed", "s"),
    "server_mib": ("peak memory, server", "MiB"),
    "site_mib": ("peak memory, a site", "MiB"),
    "wire_mib": ("bytes on the wire", "MiB"),
}


def _compared(
    field: str, label: tuple[str, str], ours: Measured, plain: Measured, default: Measured
) -> list[Figure]:
    (name, unit), own = label, getattr(ours, field)
    made = [Figure(f"{name}, ours", round(own, 2), unit)]
    for against, other in (("FLARE, as often", plain), ("FLARE, as it comes", default)):
        value = getattr(other, field)
        ratio = round(own / value, 3)
        made += [
            Figure(f"{name}, {against}", round(value, 2), unit),
            Figure(f"{name}, ratio", ratio, "x", against, f"<= {GOAL}", ratio <= GOAL),
        ]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=64, help="size of each request and answer")
    parser.add_argument("--runs", type=int, default=5, help="exchanges that are counted")
    parser.add_argument("--scheme", choices=("grpc", "http", "tcp"), default="grpc")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    paths = [str(_HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    made = figures(arguments.mib, arguments.runs, arguments.scheme)
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in made], indent=1))
    else:
        show(made)
    sys.stdout.flush()
    os._exit(0)  # FLARE's session leaves threads


def show(made: list[Figure]) -> None:
    print(f"| {'':42} | {'figure':>10} {'':5} | {'against':18} | {'goal':8} | |")
    print("| --- | --- | --- | --- | --- |")
    for figure in made:
        met = {True: "met", False: "missed", None: ""}[figure.met]
        print(
            f"| {figure.name:42} | {figure.value:10g} {figure.unit:5} | {figure.against:18} | {figure.target:8} | {met} |"
        )


if __name__ == "__main__":
    main()
