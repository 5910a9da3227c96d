"""Rounds over real FLARE processes on loopback: a server, three sites, and those who would misuse them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefl_secure.errors import ConfigError, RoundAborted, TransportError
from cachefl_secure.federation.budget import silo_budget
from cachefl_secure.federation.inspection import audit_coordinator, audit_silo
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.transport.flare import kits, reports
from cachefl_secure.transport.flare.certificates import certified_pair, make_authority
from cachefl_secure.transport.flare.engine import parse_engine
from cachefl_secure.transport.flare.enrolling import found_engine
from cachefl_secure.transport.flare.processes import ServerProcess
from cachefl_secure.transport.flare.reaching import trouble_at
from tests.claims import REPOSITORY
from tests.small_federation import found
from tests.transport.at_flare import (
    LAST,
    NEEDS_FLARE,
    Live,
    attempts,
    check_refused,
    free_port,
    job,
    running,
    tree,
    wait_until_gone,
    widened,
)

pytestmark = NEEDS_FLARE
SHORT_SECONDS = 30.0
"""Of a deadline that passes."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with running(tmp_path_factory.mktemp("flare")) as made:
        yield made


def test_two_rounds_from_founding_to_audit(live: Live) -> None:
    server = live.serve()
    seen: list[tuple[int, int, str]] = []
    outcomes = live.rounds(2, progress=lambda *step: seen.append(step))
    assert server.exit_reason is None, "a server that ran before goes on"
    assert [outcome.record.round for outcome in outcomes] == [1, 2]
    for outcome in outcomes:
        assert outcome.record.survivors == ("silo-1", "silo-2", "silo-3")
        assert (outcome.enrolled, outcome.attendance.absent) == (3, set())
    assert outcomes[0].cost.local < outcomes[1].cost.local
    assert (12, 12, "rounds") in seen
    assert audit_coordinator(live.federation.coordinator).steps
    for root in live.federation.silos.values():
        assert audit_silo(root, {}).steps
    assert live.told["coordinator"] == []
    for silo in live.federation.silos:
        target = live.engine.target  # the sites were there before the server
        expected = [
            rf"{re.escape(target)} does not answer yet; this silo waits for it",
            rf"{re.escape(target)} answers",
            r"admitted; compare the roster's fingerprint .*",
            r"trained, noised and masked; the update is on its way\. Spent so far: local epsilon .*",
            r"round 1 of 4 is recorded and verified",
            r"trained, noised and masked; the update is on its way\. Spent so far: local epsilon .*",
            r"round 2 of 4 is recorded and verified",
        ]
        assert len(live.told[silo]) == len(expected), live.told[silo]
        assert all(re.fullmatch(*pair) for pair in zip(expected, live.told[silo], strict=True)), live.told[
            silo
        ]


def test_a_site_listens_on_its_loopback_address_only(live: Live) -> None:
    import psutil

    for site in live.sites.values():
        assert site.pid is not None
        for pid in tree(site.pid):
            connections = psutil.Process(pid).net_connections("inet")
            listening = {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
            assert listening <= {"127.0.0.1", "::1"}


def test_the_server_talks_to_nobody_without_a_certificate_of_this_federation(live: Live) -> None:
    live.serve()
    authority = live.coordinator.path(f"{kits.CA}/ca.crt")
    stranger = certified_pair(make_authority("another"), "silo-1", kits.SITE_ROLE)
    folder = live.federation.coordinator.parent
    (folder / "stranger.crt").write_bytes(stranger.certificate)
    (folder / "stranger.key").write_bytes(stranger.key)
    own = live.site_folder(LAST) / "startup"
    for certificate, key, is_heard in (
        (None, None, False),
        (folder / "stranger.crt", folder / "stranger.key", False),
        (own / "client.crt", own / "client.key", True),
    ):
        context = ssl.create_default_context(cafile=str(authority))
        context.set_alpn_protocols(["h2"])
        if certificate is not None:
            context.load_cert_chain(certificate, key)
        with socket.create_connection((live.engine.host, live.engine.port), timeout=10.0) as plain:
            assert heard(context, plain, live.engine.host) is is_heard
    stranger_site = folder / "stranger"
    for path, content in kits.key_files("client", stranger, authority.read_bytes()).items():
        (stranger_site / path).parent.mkdir(parents=True, exist_ok=True)
        (stranger_site / path).write_bytes(content)
    assert "this site's certificate" in trouble_at(live.engine, stranger_site)
    assert trouble_at(live.engine, live.site_folder(LAST)) == ""


def heard(context: ssl.SSLContext, plain: socket.socket, host: str) -> bool:
    """Whether the server goes on after the handshake, in which a client without certificate is not yet refused."""
    try:
        with context.wrap_socket(plain, server_hostname=host) as line:
            return line.recv(1) != b""  # HTTP/2: the server's settings
    except (ssl.SSLError, ConnectionError):
        return False


def test_a_silo_killed_in_a_phase_ends_it_by_our_deadline_and_comes_back(live: Live) -> None:
    live.serve()
    killed: list[float] = []

    def kill_after_key_lists(done: int, total: int, what: str) -> None:
        if (done, what) == (1, "rounds") and not killed:
            pid = live.sites[LAST].pid
            assert pid is not None
            for each in tree(pid):
                os.kill(each, signal.SIGKILL)
            killed.append(time.monotonic())

    with pytest.raises(RoundAborted) as aborted:
        live.rounds(1, progress=kill_after_key_lists, deadline_seconds=SHORT_SECONDS)
    assert (aborted.value.present, aborted.value.threshold) == (2, 3)
    assert time.monotonic() - killed[0] < 2 * SHORT_SECONDS + 20.0
    assert any(text.startswith("silo-3: no answer") for text in live.told["coordinator"])
    assert any("ended by SIGKILL; again in" in text for text in live.told[LAST])
    (outcome,) = live.rounds(1)  # the silo was started again, and answers under its lock and from its journal
    assert (outcome.record.round, len(outcome.record.survivors)) == (3, 3)
    assert audit_silo(live.federation.silos[LAST], {}).steps


def test_our_server_refuses_what_only_a_project_admin_may(live: Live, tmp_path: Path) -> None:
    live.serve()
    evil = job(tmp_path, "with-code", {"coordinator/custom/evil.py": b"open('evil-was-here', 'w')\n"})
    found = attempts(live, tmp_path, "project_admin", [evil], "")
    assert found["with-code"][0] == "refused"
    assert "authorized" in str(found["with-code"][1])


def test_a_job_that_is_submitted_again_begins_no_round(live: Live, tmp_path: Path) -> None:
    """As whoever holds the server may do at any time: the job is ours, and its order is over."""
    live.serve()
    orders = live.coordinator.path(kits.ORDERS)
    if not orders.is_dir():
        live.rounds(1)
    last = max(orders.iterdir(), key=lambda folder: folder.stat().st_mtime)
    shutil.copytree(last / "job", tmp_path / "again")

    def held() -> list[object]:
        rounds = sorted(path.name for path in live.coordinator.path("rounds").rglob("*"))
        return [rounds, *(silo_budget(path).rounds_charged for path in live.federation.silos.values())]

    before = held()
    found = attempts(live, tmp_path, "lead", [tmp_path / "again"])
    assert found["again"][0] == "FINISHED:COMPLETED"
    *_, failure, _ = reports.Tail(last / reports.JOB_FILE).lines()
    assert isinstance(failure, reports.Failed)
    assert "is over" in str(reports.error_of(failure))
    assert held() == before


def test_sites_refuse_every_job_but_ours_whatever_the_server_permits(live: Live, tmp_path: Path) -> None:
    config = "silo/config/config_fed_client.json"
    ours = kits.silo_app()["config/config_fed_client.json"]
    trainer = b"nvflare.app_common.np.np_trainer.NPTrainer"
    evil = b"open('evil-was-here', 'w')\n"
    jobs = [
        job(tmp_path, "with-code", {"silo/custom/evil.py": evil, "coordinator/custom/evil.py": evil}),
        job(tmp_path, "other-class", {config: ours.replace(kits.EXECUTOR.encode(), trainer)}),
        job(tmp_path, "one-file-more", {"silo/config/more.json": b"{}"}),
        job(tmp_path, "one-byte-more", {config: ours + b"\n"}),
    ]
    before = {silo: set(live.site_folder(silo).iterdir()) for silo in live.federation.silos}
    with widened(live):
        # "super" passes every policy of FLARE, also those of sites: only our check of the app is left.
        tried = {
            "project_admin": ("is not authorized for", jobs[:1]),
            "lead": ("the app ", jobs[1:]),
            "super": ("the app ", jobs[:2]),
        }
        for role, (reason, of_role) in tried.items():
            found = attempts(live, tmp_path, role, of_role)
            assert set(found) == {each.name for each in of_role}
            check_refused(live, found, reason)
    for silo, entries in before.items():
        new = [path for path in set(live.site_folder(silo).iterdir()) - entries if path.is_dir()]
        assert new == [], "no app was left at a site"
        assert not list(live.federation.silos[silo].rglob("evil*"))


def test_a_site_answers_no_request_but_those_of_a_round() -> None:
    program = (
        "from cachefl_secure.transport.flare import running\n"
        "from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors as C\n"
        "print(*sorted(topic for each in C.request_processors for topic in each.get_topics()))\n"
        "running.answer_only_what_rounds_need()\n"
        "print(*sorted(topic for each in C.request_processors for topic in each.get_topics()))\n"
        "print(*sorted({type(each).__module__ for each in C.request_processors}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    before, after, modules = (line.split() for line in run.stdout.splitlines())
    assert set(before) - set(after) >= {
        "sys.shell",
        "sys.info",
        "sys.report_env",
        "scheduler.cancel_resource",
    }
    assert after == [
        *("scheduler.check_resource", "sys.report_version", "train.abort", "train.abort_task"),
        *("train.check_status", "train.deploy", "train.notify_job_status", "train.start_job"),
    ]
    assert modules == ["cachefl_secure.transport.flare.site_requests"], "each looks at the id first"


def test_the_executor_opens_its_silo_under_the_lock_and_tells_its_operator_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_constant import FLContextKey, ReturnCode
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.apis.signal import Signal
    from nvflare.apis.workspace import Workspace

    from cachefl_secure.transport.flare import locking
    from cachefl_secure.transport.flare.executor import SiloExecutor

    monkeypatch.setattr(locking, "_PATIENCE_SECONDS", 0.1)
    state = StateDir(found(tmp_path, records=(5, 5, 5)).silos[LAST])
    site = state.path(kits.SITE)
    for name in ("local", "startup"):
        (site / name).mkdir(parents=True)
    context = FLContext()
    context.set_prop(FLContextKey.WORKSPACE_OBJECT, Workspace(str(site)), private=True)

    def ask(executor: SiloExecutor, task: str = kits.TASK, **fields: object) -> Shareable:
        request = Shareable()
        request.update(fields)
        return executor.execute(task, request, context, Signal())

    executor = SiloExecutor()
    with state.lock():
        assert ask(executor, phase="hello", content=b"").get_return_code() == ReturnCode.EXECUTION_EXCEPTION
    assert "another cachefl-secure process works here" in (site / kits.SITE_REPORTS).read_text()
    answer = ask(executor, phase="hello", content=b"no letter")
    assert answer.get_return_code() == ReturnCode.OK
    assert {key for key in answer if not key.startswith("__")} == {kits.CONTENT}
    assert b"malformed" in answer[kits.CONTENT] or b"protocol" in answer[kits.CONTENT]
    with pytest.raises(ConfigError), state.lock():
        pass
    for bad in ({}, {"phase": 1, "content": b""}, {"phase": "hello", "content": "text"}):
        assert ask(executor, **bad).get_return_code() == ReturnCode.BAD_TASK_DATA
    assert ask(executor, "train", phase="hello", content=b"").get_return_code() == ReturnCode.BAD_TASK_DATA
    executor.handle_event(EventType.END_RUN, context)
    with state.lock():
        pass


def test_a_port_that_is_taken_is_said_before_flare_starts(live: Live) -> None:
    live.stop_server()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", live.engine.port))
        other.listen()
        with pytest.raises(TransportError, match="cannot be used"), ServerProcess(live.coordinator):
            pass
        with pytest.raises(TransportError, match="cannot be used"):
            live.rounds(1)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name
)
def test_a_command_that_is_ended_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cachefl_secure.transport.flare.children import Child\n"
        "child = Child('server', Path(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    federation = found(tmp_path, records=(5, 5, 5))
    state = StateDir(federation.coordinator)
    found_engine(state, parse_engine(f"nvflare+tcp://localhost:{free_port()}"), "small")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", program, str(state.path(kits.SERVER))]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(2.0)
        everything = tree(child)
        parent.send_signal(number)
    wait_until_gone(everything)


def test_flare_wrote_nothing_private(live: Live) -> None:
    """After all of the above: what stands in files of FLARE's at a silo, beside its key."""
    for silo, root in live.federation.silos.items():
        private = {
            (root / name).read_bytes()
            for name in ("keys/signing.key", "keys/storage.key", "keys/commitment.salt")
        }
        features = (root / "features.safetensors").read_bytes()
        for path in (root / kits.ROOT).rglob("*"):
            if path.is_file() and path.name != "client.key":
                content = path.read_bytes()
                assert not any(key in content or key.hex().encode() in content for key in private), path
                assert features[-64:] not in content, path
        assert not (live.site_folder(silo) / "error_log.txt").exists()


def test_threads_of_ours_end(live: Live) -> None:
    assert sum(thread.name == "site" for thread in threading.enumerate()) == len(live.sites)
