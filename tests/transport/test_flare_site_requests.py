"""What a hostile server can make a site do with requests about jobs: FLARE's real classes, one process, no network.

The foreign code of these tests writes a marker file.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.transport.flare import kits, processes
from cachefl_secure.transport.flare.engine import parse_engine

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nvflare") is None,
    reason="FLARE is not installed: pip install 'cachefl-secure[nvflare]'",
)

SITE, JOB, OTHER = "silo-1", "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
MANY = 2_000
"""Files of an app that takes long to unpack."""
WAIT_SECONDS = 10.0

ABOUT_NO_JOB = ("train.check_status", "sys.report_version")
BAD_IDS: list[object] = [
    *(
        None,
        "",
        "local",
        "startup",
        "tmp",
        ".",
        "..",
        f"../{JOB}",
        f"{JOB}/app_{SITE}",
        f"{JOB}\n",
        f" {JOB}",
    ),
    *(JOB.replace("-", ""), "A" + JOB[1:], JOB + "0", f"/{JOB}", JOB.encode(), 7, [JOB], {"job_id": JOB}),
]


def archive(files: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as writer:
        for path, content in files.items():
            writer.writestr(path, content)
    return made.getvalue()


OURS = kits.silo_app()
((CONFIG, OUR_CONFIG),) = OURS.items()


@dataclass
class Site:
    """A site's process: FLARE's client engine and its processors of requests, as ``running`` leaves them."""

    root: Path
    engine: Any
    processors: dict[str, Any]
    launched: list[Any] = field(default_factory=list)
    during_launch: Callable[[], None] = lambda: None
    """What happens between FLARE's look at the run folder and the start of the process."""

    def ask(self, topic: str, job: object = None, body: object = "", **headers: object) -> Any:
        """The reply of whoever answers this topic."""
        from nvflare.private.admin_defs import Message

        request = Message(topic=topic, body=body)
        request.set_headers({"job_meta": meta_of(job)} | headers)
        if job is not None:
            request.set_header("job_id", job)
        return self.processors[topic].process(request, self.engine)

    def deploy(self, job: object, upload: object, **meta: object) -> Any:
        return self.ask("train.deploy", job, upload, app_name="silo", job_meta=meta_of(job) | meta)

    def start(self, job: object, body: object = None, **meta: object) -> Any:
        """As FLARE's server asks for it: with the token that the site gave when it was asked for resources."""
        token = self.ask("scheduler.check_resource", job, {}).body.get_header("_resource_reserve_token")
        headers = {"job_meta": meta_of(job) | meta, "_resource_reserve_token": token}
        return self.ask("train.start_job", job, body or {}, **headers)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
        }

    def entries(self) -> set[str]:
        return {path.name for path in self.root.iterdir()}


def meta_of(job: object) -> dict[str, Any]:
    return {"job_id": job, "resource_spec": {}, "submitter_role": "super", "job_clients": []}


def is_refused(reply: Any) -> bool:
    return bool(reply.get_header("_rtnCode") == "_error")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_constant import FLContextKey
    from nvflare.apis.workspace import Workspace
    from nvflare.app_common.resource_managers.gpu_resource_manager import GPUResourceManager
    from nvflare.private.fed.client.client_engine import ClientEngine
    from nvflare.private.fed.client.client_req_processors import ClientRequestProcessors
    from nvflare.private.fed.utils.app_authz import AppAuthzService

    from cachefl_secure.transport.flare.app_check import OnlyOurApp
    from cachefl_secure.transport.flare.running import answer_only_what_rounds_need

    root = tmp_path / "site"
    for path, content in kits.site_files(parse_engine("nvflare+grpc://flare.example.org:8002")).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    (root / "startup/client.key").write_bytes(b"not a real key")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setattr(AppAuthzService, "app_validator", OnlyOurApp())
    monkeypatch.setattr(
        ClientRequestProcessors, "request_processors", list(ClientRequestProcessors.request_processors)
    )
    answer_only_what_rounds_need()
    cell = SimpleNamespace(
        get_internal_listener_url=lambda: "tcp://127.0.0.1:1",
        get_internal_listener_params=dict,
        get_fqcn=lambda: SITE,
    )
    client = SimpleNamespace(
        client_name=SITE,
        client_args={},
        secure_train=True,
        components={"resource_manager": GPUResourceManager(0, 0)},
        cell=cell,
        token="t",
        token_signature="s",
        ssid="i",
        send_request_before_shutdown=lambda **_: None,
    )
    engine = ClientEngine(client, SimpleNamespace(workspace=str(root), set=[]), 0)
    client.engine = engine
    engine.fl_ctx_mgr.private_stickers.update(
        {
            FLContextKey.WORKSPACE_OBJECT: Workspace(str(root), site_name=SITE),
            FLContextKey.SERVER_CONFIG: [{"service": {"scheme": "grpc", "target": "flare.example.org:8002"}}],
        }
    )
    processors = {
        topic: each for each in ClientRequestProcessors.request_processors for topic in each.get_topics()
    }
    made = Site(root, engine, processors)
    launcher = a_launcher(made)
    monkeypatch.setattr(
        engine,
        "fire_event",
        lambda kind, ctx: launcher.handle_event(kind, ctx) if kind == EventType.BEFORE_JOB_LAUNCH else None,
    )
    yield made
    for handle in made.launched:
        handle.wait()


def a_launcher(site: Site) -> Any:
    """The launcher that a site's files name, except that the process which it starts does nothing itself."""
    files = kits.site_files(parse_engine("nvflare+grpc://flare.example.org:8002"))
    components = json.loads(files["local/resources.json"])["components"]
    (path,) = (each["path"] for each in components if each["id"] == "process_launcher")
    module, name = path.rsplit(".", 1)
    base = getattr(importlib.import_module(module), name)

    def launch_job(self: Any, job_meta: dict[str, Any], fl_ctx: Any) -> Any:
        site.launched.append(base.launch_job(self, job_meta, fl_ctx))
        return site.launched[-1]

    def get_command(self: Any, job_meta: dict[str, Any], fl_ctx: Any) -> str:
        site.during_launch()
        return f"{sys.executable} -c pass"

    return type("Launcher", (base,), {"launch_job": launch_job, "get_command": get_command})()


def marking(marker: Path) -> dict[str, bytes]:
    """An app with code that runs when an interpreter starts, and so many files that unpacking takes long."""
    code = f"open({str(marker)!r}, 'w')\n".encode()
    return {**OURS, "custom/sitecustomize.py": code, **{f"custom/{i}": b"" for i in range(MANY)}}


# --- what is deployed


def test_our_app_is_deployed_and_starts_once(site: Site) -> None:
    before = site.files()
    assert not is_refused(
        site.deploy(JOB, archive({"config/": b"", **OURS, "config/.__nvfl_sig.json": b"{}"}))
    )
    new = {path: content for path, content in site.files().items() if path not in before}
    assert new.pop(f"{JOB}/app_{SITE}/{CONFIG}") == OUR_CONFIG
    assert set(new) == {f"{JOB}/meta.json", f"{JOB}/fl_app.txt"}, "not even the signature is the server's"
    assert (site.root / JOB).stat().st_mode & 0o077 == 0
    assert not is_refused(site.start(JOB))
    assert len(site.launched) == 1
    assert is_refused(site.start(JOB))
    assert is_refused(site.deploy(JOB, archive(OURS))), "an id is used once"
    assert len(site.launched) == 1


@pytest.mark.parametrize(
    "upload",
    [
        *(b"", b"no archive", archive(OURS)[:-9], None, "text", archive({})),
        archive({**OURS, "custom/sitecustomize.py": b""}),
        archive({**OURS, "custom/": b""}),
        archive({**OURS, "config/more.json": b"{}"}),
        archive({CONFIG: OUR_CONFIG + b"\n"}),
        archive({**OURS, f"../../{OTHER}/app_{SITE}/custom/sitecustomize.py": b""}),
        archive({**OURS, f"/{CONFIG}": OUR_CONFIG}),
        archive({**OURS, ".__nvfl_sig.json/custom": b""}),
        archive({CONFIG: b" " * (64 << 20)}, zipfile.ZIP_DEFLATED),
        archive({**OURS, **{f"config/{i}": b"" for i in range(MANY)}}),
        archive(OURS, zipfile.ZIP_LZMA),
    ],
)
def test_of_any_other_app_nothing_is_written_not_even_for_a_moment(site: Site, upload: object) -> None:
    before, seen, done = site.files(), set(site.entries()), threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.update(site.entries())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        assert is_refused(site.deploy(JOB, upload))
    finally:
        done.set()
        watching.join()
    assert seen == {"local", "startup"}
    assert site.files() == before
    assert is_refused(site.start(JOB))
    assert site.launched == []


def test_code_that_is_there_only_until_it_was_looked_at_does_not_run(site: Site, tmp_path: Path) -> None:
    """FLARE unpacks into the run folder and looks afterwards. A start that falls between ran the code."""
    marker = tmp_path / "foreign-code-ran"
    site.deploy(JOB, archive(OURS))
    is_launching = threading.Event()

    def wait_for_code() -> None:
        is_launching.set()
        until = time.monotonic() + 1.5
        code = site.root / JOB / f"app_{SITE}" / "custom/sitecustomize.py"
        while time.monotonic() < until and not (code.is_file() and code.stat().st_size):
            time.sleep(0.001)

    site.during_launch = wait_for_code
    starting = threading.Thread(target=site.start, args=(JOB,))
    starting.start()
    assert is_launching.wait(WAIT_SECONDS)
    reply = site.deploy(JOB, archive(marking(marker)))
    starting.join()
    for handle in site.launched:
        handle.wait()
    assert not marker.exists(), "foreign code ran"
    assert is_refused(reply)


def test_a_job_that_was_deployed_by_an_earlier_process_does_not_start(site: Site) -> None:
    run = site.root / JOB
    (run / f"app_{SITE}/config").mkdir(parents=True)
    (run / f"app_{SITE}" / CONFIG).write_bytes(OUR_CONFIG)
    (run / "meta.json").write_text(json.dumps(meta_of(JOB)))
    assert is_refused(site.start(JOB))
    assert is_refused(site.deploy(JOB, archive(OURS)))
    assert (run / "meta.json").is_file(), "nothing is removed for the server's sake"
    assert site.launched == []


# --- ids


@pytest.mark.parametrize("job", BAD_IDS, ids=repr)
def test_an_id_that_flare_does_not_make_is_refused_by_everything(site: Site, job: object) -> None:
    before, entries = site.files(), site.entries()
    topics = {topic for topic in site.processors if topic not in ABOUT_NO_JOB}
    assert len(topics) >= 6
    replies = {topic: site.ask(topic, job, archive(OURS), job_status="started") for topic in sorted(topics)}
    assert (site.files(), site.entries()) == (before, entries), "the policy and the key are where they were"
    assert not replies.pop("scheduler.check_resource").body.get_header("_is_resource_enough")
    assert [topic for topic, reply in replies.items() if not is_refused(reply)] == []
    assert site.launched == []


def test_a_request_about_no_job_names_none(site: Site) -> None:
    for topic in set(site.processors) & {
        "train.check_status",
        "sys.report_version",
        "resource_manager.version",
    }:
        assert not is_refused(site.ask(topic))
        for job in ("local", JOB):
            assert is_refused(site.ask(topic, job))


def test_ids_are_those_that_are_cleared_away(site: Site) -> None:
    from cachefl_secure.transport.flare import site_requests

    assert site_requests._JOB.pattern == processes._RUN.pattern


# --- what else a job may say


EVIL_META: dict[str, object] = {
    "byoc": True,
    "launcher_spec": {"default": {"docker": {"image": "evil"}}},
    "resource_spec": {SITE: {"num_of_gpus": 4}},
    "scope": "evil",
    "study": "evil",
    "job_clients": [{"client_name": "evil"}],
    "custom": "evil",
}


def test_nothing_that_the_server_says_about_a_job_is_kept(site: Site) -> None:
    site.deploy(JOB, archive(OURS), **EVIL_META)
    reply = site.start(JOB, {"num_of_gpus": 4}, **EVIL_META)
    assert not is_refused(reply)
    assert json.loads((site.root / JOB / "meta.json").read_bytes()) == {
        "job_id": JOB,
        "name": "cachefl-secure",
        "resource_spec": {},
        "job_clients": [],
    }
    assert b"evil" not in b"".join(site.files().values())


def test_a_job_that_wants_resources_is_told_that_there_are_none(site: Site) -> None:
    for wanted, is_enough in (({}, True), ({"num_of_gpus": 1}, False), ("x", False)):
        reply = site.ask("scheduler.check_resource", JOB, wanted)
        assert reply.body.get_header("_is_resource_enough") is is_enough
        assert reply.body.get_header("_resource_reserve_token") == ""


def test_a_job_imports_from_where_its_site_does(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setenv("PYTHONPATH", "of-the-site")

    def spawn(command: list[str], environment: dict[str, str]) -> Any:
        seen.append(environment)
        return SimpleNamespace(wait=lambda: None, poll=lambda: 0, terminate=lambda: None)

    for module in (
        "nvflare.app_common.job_launcher.process_launcher",
        "cachefl_secure.transport.flare.site_requests",
    ):
        monkeypatch.setattr(f"{module}.spawn_process", spawn)
    site.deploy(JOB, archive(OURS))
    assert not is_refused(site.start(JOB))
    (environment,) = seen
    assert environment["PYTHONPATH"] == "of-the-site"
    assert not any("custom" in value and JOB in value for value in environment.values())


def test_a_custom_folder_is_never_started(site: Site) -> None:
    site.deploy(JOB, archive(OURS))
    (site.root / JOB / f"app_{SITE}/custom").mkdir()
    with pytest.raises(LocalProtocolError, match="custom"):
        site.start(JOB)
    assert site.launched == []


# --- how much


def test_jobs_that_never_start_do_not_pile_up(site: Site) -> None:
    ids = [f"{JOB[:-2]}{i:02x}" for i in range(20)]
    for job in ids:
        assert not is_refused(site.deploy(job, archive(OURS)))
    assert site.entries() == {"local", "startup", *ids[-8:]}
    assert is_refused(site.start(ids[0]))
    assert not is_refused(site.start(ids[-1]))


def test_a_server_cannot_start_as_many_jobs_as_it_likes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.deploy(JOB, archive(OURS))
    monkeypatch.setattr(site.engine, "get_all_job_ids", lambda: ["x"] * 8)
    assert is_refused(site.start(JOB))
    monkeypatch.setattr(site.engine, "get_all_job_ids", list)
    assert not is_refused(site.start(JOB))
