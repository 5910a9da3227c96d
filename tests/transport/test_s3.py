"""The mailbox over S3's own protocol: moto's server on loopback, reached as operators configure fsspec."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("moto", reason="moto is not installed: pip install 'cachefl-secure[dev]'")
pytest.importorskip("flask", reason="moto's server is not installed: pip install 'cachefl-secure[dev]'")
pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'cachefl-secure[s3]'")

import fsspec.config
from typer.testing import CliRunner

from cachefl_secure.errors import TransportError
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.inspection import audit_coordinator, audit_silo
from cachefl_secure.federation.witnesses import witnessed_heads
from cachefl_secure.transport.engines import check_engine
from cachefl_secure.transport.store import ObjectStore
from cachefl_secure_cli.main import app
from tests.claims import REPOSITORY
from tests.small_federation import found
from tests.transport.at_an_engine import name_engine, run_rounds, serving

LIMIT = 1 << 20


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A server with one empty bucket; the environment that reaches it, and which holds in this process too."""
    from moto.server import ThreadedMotoServer

    monkeypatch.setattr(logging.getLogger("werkzeug"), "disabled", True)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "FSSPEC_S3_KEY": "an-access-key",
        "FSSPEC_S3_SECRET": "a-secret-key",
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}",
    }
    configured: dict[str, dict[str, object]] = {}
    fsspec.config.set_conf_env(configured, environment)
    # Other processes read their environment; in this one fsspec did so when it was imported.
    monkeypatch.setitem(fsspec.config.conf, "s3", configured["s3"])
    with contextlib.suppress(FileExistsError):  # moto's servers of one process have the same buckets
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("federation")
    yield environment
    server.stop()


def test_an_object_store_keeps_what_a_mailbox_needs(bucket: dict[str, str]) -> None:
    store, other = ObjectStore.open("s3://federation/fed"), ObjectStore.open("s3://federation/fed")
    assert (store.get("a/b", limit_bytes=LIMIT), store.has("a/b"), store.names("a")) == (None, False, [])
    content = bytes(range(256)) * 1024
    store.put("a/b", content)
    store.put("a/empty", b"")
    assert other.get("a/b", limit_bytes=len(content)) == content
    assert other.get("a/b", limit_bytes=len(content) - 1) is None
    assert other.get("a/empty", limit_bytes=LIMIT) == b""
    assert (other.has("a/b"), other.names("a"), other.folders("")) == (True, ["b", "empty"], ["a"])
    store.put("a/c", b"c")
    assert other.names("a") == ["b", "c", "empty"]  # nothing is remembered from the look before
    other.remove("a/b")
    other.remove_folder("a")
    assert (store.has("a/b"), store.get("a/b", limit_bytes=LIMIT), store.names("a")) == (
        False,
        None,
        ["c", "empty"],
    )


def test_a_bucket_that_is_not_there_is_a_transport_error(bucket: dict[str, str]) -> None:
    store = ObjectStore.open("s3://no-such-bucket/fed")
    with pytest.raises(TransportError) as failed:
        store.put("a/b", b"content")
    assert bucket["FSSPEC_S3_SECRET"] not in str(failed.value)


def test_a_server_that_is_not_there_is_a_transport_error(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = {"key": "k", "secret": "s", "endpoint_url": "http://127.0.0.1:9"}
    monkeypatch.setitem(
        fsspec.config.conf, "s3", {**nowhere, "config_kwargs": {"retries": {"max_attempts": 0}}}
    )
    store = ObjectStore.open("s3://federation/fed")
    monkeypatch.setattr(type(store._files), "retries", 1)
    for call in (lambda: store.put("a/b", b""), lambda: store.names("a"), lambda: store.has("a/b")):
        with pytest.raises(TransportError):
            call()


@pytest.mark.parametrize("missing", ["bucket", "server"])
def test_init_finds_before_it_makes_images_that_its_store_is_not_there(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "bucket":
        request.getfixturevalue("bucket")
    else:
        nobody = {"key": "k", "secret": "a-secret-key", "endpoint_url": "http://127.0.0.1:9"}
        no_retries = {"config_kwargs": {"retries": {"max_attempts": 0}}}
        monkeypatch.setitem(fsspec.config.conf, "s3", {**nobody, **no_retries})
    words = ["init", str(tmp_path / "coordinator"), "--engine", "s3://no-such-bucket/fed"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 8
    said = result.stderr.replace("\n", " ")
    assert "s3://no-such-bucket/fed: cannot be written and read (" in said
    assert "make the bucket" in said
    assert "FSSPEC_S3_KEY" in said
    assert "a-secret-key" not in said
    assert not (tmp_path / "coordinator").exists()


def test_a_bucket_that_can_be_used_is_tried_out_and_left_as_it_was(bucket: dict[str, str]) -> None:
    check_engine("s3://federation/tried", founding=True)
    store = ObjectStore.open("s3://federation/tried")
    assert (store.names(""), store.folders("")) == ([], [])


def test_another_process_reaches_the_bucket_by_its_environment(bucket: dict[str, str]) -> None:
    ObjectStore.open("s3://federation/other").put("a/b", b"content")
    script = (
        "from cachefl_secure.transport.store import ObjectStore\n"
        "store = ObjectStore.open('s3://federation/other')\n"
        "store.put('a/c', store.get('a/b', limit_bytes=9) + b' seen')\n"
    )
    environment = {**os.environ, **bucket, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    assert ObjectStore.open("s3://federation/other").get("a/c", limit_bytes=99) == b"content seen"


def test_three_silos_have_a_secure_and_private_round_that_audit_verifies(
    tmp_path: Path, bucket: dict[str, str]
) -> None:
    federation = found(tmp_path, records=(12, 20, 9))
    name_engine(federation, "s3://federation/shared")
    with serving(federation):
        run_rounds(federation)
    witnessed = witnessed_heads([federation.coordinator, *federation.silos.values()])
    audits = [audit_coordinator(federation.coordinator)]
    audits += [audit_silo(path, witnessed) for path in federation.silos.values()]
    assert [len(audit.steps) > 3 for audit in audits] == [True] * 4
    (verified,) = CoordinatorFiles.open(federation.coordinator).chain().verified
    assert set(verified.record.survivors) == set(federation.silos)
    store, plan = ObjectStore.open("s3://federation/shared"), federation.plan
    assert store.folders(plan.id) == ["contacts", "requests"]  # what is left when all is read
