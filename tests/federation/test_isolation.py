"""Separate directories for every party, and nothing private in what leaves one."""

from __future__ import annotations

import stat
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cachefl_secure.cache.features import load_features
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.names import SiloId
from cachefl_secure.privacy import training
from cachefl_secure.privacy.training import train_privately
from cachefl_secure.transport.in_process import InProcessNetwork
from cachefl_secure.transport.local_federation import run_local_rounds
from cachefl_secure.updates import NoisedUpdate, PrivateUpdate
from tests.small_federation import SmallFederation, found

_opened: list[tuple[str, str]] | None = (
    None  # (thread, path); audit hooks cannot be removed, so it is switched
)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _opened is not None and event in ("open", "os.rename", "os.remove", "os.listdir", "os.scandir"):
        _opened.append((threading.current_thread().name, str(arguments[0])))


sys.addaudithook(_watch)


@pytest.fixture
def opened() -> Iterator[list[tuple[str, str]]]:
    global _opened
    _opened = []
    yield _opened
    _opened = None


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    return found(tmp_path)


def run(federation: SmallFederation, number: int = 2) -> None:
    silos = list(federation.silos.values())
    run_local_rounds(
        federation.coordinator, silos, number, deadline_seconds=60.0, progress=silent, tell=lambda _: None
    )


def test_neither_side_opens_a_file_of_the_other(
    federation: SmallFederation, opened: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the silos serve, in threads that carry their names; the coordinator runs in the main thread."""
    serving: list[int] = []
    genuine = InProcessNetwork.exchange

    def exchange(
        self: InProcessNetwork, phase: str, requests: Mapping[SiloId, bytes], deadline: float
    ) -> dict[SiloId, bytes]:
        serving.append(len(opened))
        return genuine(self, phase, requests, deadline)

    monkeypatch.setattr(InProcessNetwork, "exchange", exchange)
    run(federation)
    during = opened[serving[0] : serving[-1]]
    own = {silo: str(path) for silo, path in federation.silos.items()}
    seen = set()
    for thread, path in during:
        for silo, root in own.items():
            if path.startswith(root + "/"):
                assert thread == silo, f"{thread} touched {silo}'s directory"
                seen.add(silo)
        if path.startswith(str(federation.coordinator) + "/"):
            assert thread == "MainThread", f"{thread} touched the coordinator's directory"
    assert seen == set(own)  # the watch saw something at all


@pytest.mark.claim("C15")
def test_keys_and_features_are_readable_by_their_owner_only(federation: SmallFederation) -> None:
    run(federation)
    for root in (federation.coordinator, *federation.silos.values()):
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        private = [*(root / "keys").iterdir(), *root.glob("features*"), *root.glob("ledger/*")]
        assert private
        assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}


@pytest.mark.claim("C15")
def test_no_feature_update_or_key_of_a_silo_is_in_what_it_sends_or_in_an_unsealed_file(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    updates: list[NoisedUpdate] = []
    genuine = InProcessNetwork.exchange

    def exchange(
        self: InProcessNetwork, phase: str, requests: Mapping[SiloId, bytes], deadline: float
    ) -> dict[SiloId, bytes]:
        answers = genuine(self, phase, requests, deadline)
        sent.extend(answers.values())
        return answers

    def recording(*arguments: Any, **options: Any) -> NoisedUpdate:
        updates.append(train_privately(*arguments, **options))
        return updates[-1]

    monkeypatch.setattr(InProcessNetwork, "exchange", exchange)
    monkeypatch.setattr(training, "train_privately", recording)
    run(federation)
    planted = [value for update in updates for value in _needles(bytes_of(update), 8)]
    for path in federation.silos.values():
        files = SiloFiles.open(path)
        planted += [key.reveal() for key in (files.state.signing_key(), files.state.storage_key())]
        planted += _needles(load_features(path / "features.safetensors")[0].features.numpy().tobytes(), 16)
    assert len(updates) == 10
    haystack = [*sent, *_files(federation)]
    for needle in planted:
        for form in (needle, needle.hex().encode()):
            assert not any(form in hay for hay in haystack)


def bytes_of(update: NoisedUpdate) -> bytes:
    return (update.values if isinstance(update, PrivateUpdate) else update.integers).tobytes()


def _needles(content: bytes, size: int) -> list[bytes]:
    """A few stretches of the secret, long enough not to occur by chance."""
    return [content[start : start + size] for start in range(0, len(content), max(size, len(content) // 16))]


def _files(federation: SmallFederation) -> list[bytes]:
    """Every file but the silos' own key and feature files."""
    return [
        path.read_bytes()
        for root in (federation.coordinator, *federation.silos.values())
        for path in root.rglob("*")
        if path.is_file()
        and not (
            root != federation.coordinator and ("keys" in path.parts or path.name.startswith("features"))
        )
    ]
