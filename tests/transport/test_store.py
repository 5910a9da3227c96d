"""The store on a folder and in memory: objects are whole or absent, and what is wrong is a sentence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.errors import ConfigError, MissingExtra, TransportError
from cachefl_secure.transport.engines import check_engine
from cachefl_secure.transport.store import ObjectStore
from tests.transport.hostile import memory_url

LIMIT = 1 << 20


@pytest.fixture(params=["dir", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    store = ObjectStore.open(f"dir://{tmp_path / 'shared'}" if request.param == "dir" else memory_url())
    store.make()
    return store


def test_what_was_put_is_got_listed_and_removed(store: ObjectStore) -> None:
    assert store.get("a/b/c", limit_bytes=LIMIT) is None
    assert (store.has("a/b/c"), store.names("a/b"), store.folders("a")) == (False, [], [])
    store.put("a/b/c", b"content")
    store.put("a/b/a", b"")
    assert store.get("a/b/c", limit_bytes=LIMIT) == b"content"
    assert store.get("a/b/a", limit_bytes=LIMIT) == b""
    assert (store.has("a/b/c"), store.names("a/b"), store.folders("a")) == (True, ["a", "c"], ["b"])
    assert (store.names("a"), store.folders("a/b")) == ([], [])
    store.put("a/b/c", b"other")
    assert store.get("a/b/c", limit_bytes=LIMIT) == b"other"
    store.remove("a/b/c")
    store.remove("a/b/c")
    assert (store.has("a/b/c"), store.names("a/b")) == (False, ["a"])


def test_two_openings_of_one_url_see_the_same(store: ObjectStore) -> None:
    other = ObjectStore.open(store.url)
    assert other.names("a") == []
    store.put("a/b", b"content")
    assert (other.names("a"), other.get("a/b", limit_bytes=LIMIT)) == (["b"], b"content")


@settings(max_examples=25)
@given(content=st.binary(max_size=3000), limit=st.integers(0, 3000))
def test_an_object_longer_than_the_limit_is_none(content: bytes, limit: int) -> None:
    store = ObjectStore.open(memory_url())
    store.put("a/b", content)
    assert store.get("a/b", limit_bytes=limit) == (content if len(content) <= limit else None)


def test_a_limit_far_beyond_memory_takes_no_memory(store: ObjectStore) -> None:
    store.put("a/b", b"content")
    assert store.get("a/b", limit_bytes=1 << 50) == b"content"
    assert store.get("a/b", limit_bytes=6) is None
    assert store.get("a/b", limit_bytes=7) == b"content"


def test_only_empty_folders_are_removed(tmp_path: Path) -> None:
    store = ObjectStore.open(f"dir://{tmp_path}")
    store.put("a/b", b"content")
    store.remove_folder("a")
    assert store.names("a") == ["b"]
    store.remove("a/b")
    store.remove_folder("a")
    store.remove_folder("a")
    assert list(tmp_path.iterdir()) == []


def test_an_object_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    store, stop, seen = ObjectStore.open(f"dir://{tmp_path}"), threading.Event(), set[bytes | None]()
    contents = [bytes([value]) * (1 << 18) for value in range(8)]

    def look() -> None:
        while not stop.is_set():
            seen.update(store.get(f"a/{name}", limit_bytes=LIMIT) for name in store.names("a"))

    reader = threading.Thread(target=look)
    reader.start()
    end = time.monotonic() + 30.0
    while (
        len(seen - {None}) < 3 and time.monotonic() < end
    ):  # a reader that saw nothing would agree with anything
        for content in contents:
            store.put("a/b", content)
    stop.set()
    reader.join()
    assert seen <= {*contents, None}
    assert len(seen - {None}) >= 3
    assert store.names("a") == ["b"]


def test_what_is_being_written_is_not_seen_before_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = (ObjectStore.open(f"dir://{tmp_path}") for _ in range(2))
    seen: list[tuple[str, list[str], bytes | None]] = []

    def watched(name: str) -> None:
        honest = getattr(os, name)

        def look(*arguments: Any, **named: Any) -> Any:
            seen.append((name, other.names("a"), other.get("a/b", limit_bytes=LIMIT)))
            return honest(*arguments, **named)

        monkeypatch.setattr(os, name, look)

    watched("fsync")
    watched("replace")
    store.put("a/b", b"fir", b"st")
    store.put("a/b", b"sec", b"ond")
    assert seen == [
        ("fsync", [], None),
        ("replace", [], None),
        ("fsync", ["b"], b"first"),
        ("replace", ["b"], b"first"),
    ]
    assert other.get("a/b", limit_bytes=LIMIT) == b"second"


def test_a_write_that_fails_leaves_what_was_there_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore.open(f"dir://{tmp_path}")
    store.put("a/b", b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TransportError, match="No space left on device"):
        store.put("a/b", b"after")
    assert store.get("a/b", limit_bytes=LIMIT) == b"before"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_drafts_of_others_are_not_listed(tmp_path: Path) -> None:
    store = ObjectStore.open(f"dir://{tmp_path}")
    store.put("a/b", b"content")
    (tmp_path / "a" / ".part-0123").write_bytes(b"half")
    assert store.names("a") == ["b"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_is_no_object_and_is_not_waited_for(tmp_path: Path) -> None:
    store = ObjectStore.open(f"dir://{tmp_path}")
    store.put("a/b", b"content")
    os.mkfifo(tmp_path / "a" / "pipe")
    (tmp_path / "a" / "folder").mkdir()
    assert store.names("a") == ["b"]
    assert store.get("a/pipe", limit_bytes=LIMIT) is None
    with pytest.raises(TransportError, match="directory"):
        store.get("a/folder", limit_bytes=LIMIT)


# --- what cannot be reached


class _Away:
    """A file system whose every call fails, with a key in its words."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("AccessDenied for key AKIA-SECRET")

        return fail

    def exists(self, path: str) -> bool:
        return False  # as fsspec's own does, whatever went wrong


CALLS: dict[str, Callable[[ObjectStore], object]] = {
    "put": lambda store: store.put("a/b", b"content"),
    "get": lambda store: store.get("a/b", limit_bytes=LIMIT),
    "has": lambda store: store.has("a/b"),
    "names": lambda store: store.names("a"),
    "folders": lambda store: store.folders("a"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_store_that_cannot_be_reached_is_a_transport_error_without_its_words(call: str) -> None:
    opened = ObjectStore.open(memory_url())
    store = ObjectStore(opened.url, None, _Away(), opened._root, True)
    with pytest.raises(TransportError) as failed:
        CALLS[call](store)
    assert "SECRET" not in str(failed.value)
    store.remove("a/b")  # best effort, and no error


def test_a_folder_that_may_not_be_written_is_a_transport_error(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_bytes(b"a file")
    store = ObjectStore.open(f"dir://{tmp_path}/occupied")
    with pytest.raises(TransportError):
        store.put("a/b", b"content")


# --- URLs


@pytest.mark.parametrize(
    "url",
    [
        "",
        "shared/fed",
        "/shared/fed",
        "dir://",
        "dir:///",
        "dir://host/share",
        "dir:shared",
        "dir://shared",
        "nosuch://bucket",
        "C:\\shared",
        "://",
        "s3",
        "dir",
        "http//x",
        "dir://[::1",
        "nosuch://[::1",
        "DIR:///shared",
        " dir:///shared",
        "dir:/shared",
        " s3://bucket",
        "S3://bucket",
        "s3:bucket/folder",
        "s3://",
        "s3::dir:///x",
    ],
)
def test_what_is_no_place_for_messages_is_a_sentence(url: str) -> None:
    for refuse in (ObjectStore.open, check_engine):
        if refuse is check_engine and not url:
            continue  # no engine at all is one machine
        with pytest.raises(ConfigError) as refused:
            refuse(url)
        assert refused.value.field == url
        assert refused.value.reason


@settings(max_examples=200)
@given(st.text(max_size=40) | st.text(alphabet="dir:/s3.[]@%x0", max_size=16))
def test_any_text_as_a_url_is_opened_or_a_documented_error(url: str) -> None:
    try:
        ObjectStore.open(url)
    except (ConfigError, MissingExtra):
        return


@pytest.mark.parametrize(("url", "extra"), [("s3://b/f", "s3"), ("gs://b/f", "gcs"), ("az://b/f", "azure")])
def test_a_missing_package_is_a_missing_extra(monkeypatch: pytest.MonkeyPatch, url: str, extra: str) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("install it")

    monkeypatch.setattr(fsspec, "url_to_fs", absent)
    with pytest.raises(MissingExtra) as missing:
        ObjectStore.open(url)
    assert missing.value.extra == extra


def test_options_that_the_scheme_does_not_take_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TypeError("unexpected keyword: secret=AKIA")

    monkeypatch.setattr(fsspec, "url_to_fs", refuse)
    with pytest.raises(ConfigError) as refused:
        ObjectStore.open("s3://bucket/folder")
    assert "AKIA" not in str(refused.value)
