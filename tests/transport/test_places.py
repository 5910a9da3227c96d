"""A place for messages is tried out before minutes are spent on it, and one that is not the federation's is named."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cachefl_secure.errors import PlaceUnusable, TransportError, WrongPlace
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.names import SiloId
from cachefl_secure.transport import mailbox_federation
from cachefl_secure.transport.contacts import check_place
from cachefl_secure.transport.coordinating import run_over
from cachefl_secure.transport.engines import check_engine, serve_at
from cachefl_secure.transport.mailbox_enrolment import PLACE_FILE, ask_to_join
from cachefl_secure.transport.store import ObjectStore
from cachefl_secure_cli.main import app
from tests.processes import until
from tests.small_federation import SmallFederation, found, found_coordinator
from tests.transport.at_an_engine import name_engine, run_rounds, serving
from tests.transport.hostile import memory_url


def invoke(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    place = tmp_path / "shared"
    place.mkdir()
    return place


@pytest.fixture
def federation(tmp_path: Path, shared: Path) -> SmallFederation:
    return found(tmp_path, records=(12, 20, 9), engine=f"dir://{shared}")


def unmount(place: Path) -> Path:
    """What is left of a share is its mount point, which exists and is empty. Returns where the share is now."""
    away = place.rename(place.with_name("away"))
    place.mkdir()
    return away


def check_a_round(federation: SmallFederation) -> None:
    with serving(federation):
        run_rounds(federation)
    assert CoordinatorFiles.open(federation.coordinator).chain().position.round == 1


# --- before a federation is founded


def test_a_place_that_can_be_used_is_left_as_it_was(shared: Path) -> None:
    (shared / "of-others").write_bytes(b"theirs")
    check_engine(f"dir://{shared}", founding=True)
    assert [path.name for path in shared.iterdir()] == ["of-others"]
    store = ObjectStore.open(memory_url())
    store.try_out()
    assert store.names("trial") == []


@pytest.mark.parametrize("wrong", ["read-only", "in the way", "forgets", "hides"])
def test_init_looks_at_its_engine_before_it_makes_images(
    tmp_path: Path, shared: Path, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    match wrong:
        case "read-only":
            monkeypatch.setattr(
                ObjectStore, "_write", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only"))
            )
        case "in the way":
            (shared / "trial").write_bytes(b"a file")
        case "forgets":
            monkeypatch.setattr(ObjectStore, "get", lambda *_, **__: None)
        case "hides":
            monkeypatch.setattr(ObjectStore, "names", lambda *_, **__: [])
    result = invoke("init", tmp_path / "coordinator", "--engine", f"dir://{shared}")
    assert result.exit_code == 8
    assert f"dir://{shared}: " in result.stderr
    assert "hint: nothing was made yet: mount the folder or make the bucket" in result.stderr
    assert not (tmp_path / "coordinator").exists()
    with pytest.raises(PlaceUnusable):
        check_engine(f"dir://{shared}", founding=True)


# --- whose place it is


def test_a_silo_knows_the_place_once_the_federation_is_founded_there(federation: SmallFederation) -> None:
    """Before the coordinator's first round, and by whichever path the silo has to it."""
    files = SiloFiles.open(federation.silos[SiloId("silo-1")])
    ask_to_join(files, b"a request")
    own = federation.coordinator.parent / "mnt"
    own.symlink_to(federation.coordinator.parent / "shared", target_is_directory=True)
    check_engine(f"dir://{own}", plan=federation.plan)


def test_an_empty_mount_point_is_named_to_whoever_joins_and_nothing_is_written_there(
    tmp_path: Path, federation: SmallFederation, shared: Path
) -> None:
    unmount(shared)
    invite = federation.coordinator / "invite.toml"
    result = invoke("join", invite, "--data", tmp_path, "--name", "late", "--clip", f"local-dir:{tmp_path}")
    assert result.exit_code == 8
    assert "nothing of this federation is there (is it mounted?)" in result.stderr
    assert "hint: mount it" in result.stderr
    assert not (tmp_path / "late").exists()
    with pytest.raises(WrongPlace):
        ask_to_join(SiloFiles.open(federation.silos[SiloId("silo-1")]), b"a request")
    assert list(shared.iterdir()) == []


def test_an_empty_mount_point_is_named_to_the_coordinator_and_nothing_is_written_there(
    federation: SmallFederation, shared: Path
) -> None:
    away = unmount(shared)
    for words in (["round", "--gather", "0.2"], ["admit"]):
        result = invoke(words[0], federation.coordinator, *words[1:])
        assert result.exit_code == 8
        assert "(is it mounted?)" in result.stderr
    assert "cannot be reached" in invoke("status", federation.coordinator).stdout
    assert list(shared.iterdir()) == []
    shared.rmdir()
    away.rename(shared)
    check_a_round(federation)


def test_a_share_that_goes_while_a_silo_serves_is_told_and_waited_for(
    federation: SmallFederation, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachefl_secure.transport.mailbox._ANNOUNCE_SECONDS", 0.3)  # seldom while it goes
    silo, said, stop = federation.silos[SiloId("silo-1")], list[str](), threading.Event()
    serving_it = threading.Thread(target=serve_at, args=(silo,), kwargs={"stop": stop, "tell": said.append})
    serving_it.start()
    try:
        until(
            lambda: ObjectStore.open(f"dir://{shared}").names(f"{federation.plan.id}/contacts/silo-1"),
            "it serves",
        )
        away = unmount(shared)
        until(lambda: any("(is it mounted?)" in sentence for sentence in said), "it says so")
        shared.rmdir()  # empty: nothing was written beside the share
        away.rename(shared)
        until(lambda: "the store is back" in said, "it goes on")
    finally:
        stop.set()
        serving_it.join()


def test_a_round_whose_share_goes_says_so_and_not_that_silos_are_silent(
    federation: SmallFederation, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def after_it_has_gone(*words: Any) -> list[RoundOutcome]:
        unmount(shared)
        return run_over(*words)

    monkeypatch.setattr(mailbox_federation, "run_over", after_it_has_gone)
    result = invoke("round", federation.coordinator, "--gather", "0.2", "--deadline", "1")
    assert result.exit_code == 8
    assert "(is it mounted?)" in result.stderr


def test_a_place_that_lost_only_the_coordinators_card_is_used_and_the_card_left_again(
    federation: SmallFederation, shared: Path
) -> None:
    """By a stranger, or by a store that loses things: silos are waited for, not given up."""
    silo = SiloFiles.open(federation.silos[SiloId("silo-1")])
    ask_to_join(silo, b"a request")
    shutil.rmtree(shared / federation.plan.id / "contacts" / "coordinator")
    assert invoke("admit", federation.coordinator, "--silo", "silo-1").exit_code == 7  # nobody waits, says it
    check_a_round(federation)


def test_a_place_that_was_emptied_on_purpose_is_begun_anew(federation: SmallFederation, shared: Path) -> None:
    unmount(shared)
    (federation.coordinator / PLACE_FILE).unlink()
    assert invoke("round", federation.coordinator, "-n", "0", "--gather", "0.2").exit_code == 0
    check_a_round(federation)


def test_a_federation_that_moves_to_an_empty_place_takes_it(
    tmp_path: Path, federation: SmallFederation, shared: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    name_engine(federation, f"dir://{tmp_path}/elsewhere")
    check_a_round(federation)
    assert [path.name for path in (shared / federation.plan.id).iterdir()] == ["contacts"]


def test_a_card_that_a_stranger_left_is_no_sign_of_the_federation_to_a_silo(
    tmp_path: Path, federation: SmallFederation
) -> None:
    other = ObjectStore.open(memory_url())
    genuine = ObjectStore.open(f"dir://{tmp_path / 'shared'}")
    folder = f"{federation.plan.id}/contacts/coordinator"
    (name,) = genuine.names(folder)
    card = genuine.get(f"{folder}/{name}", limit_bytes=1024) or b""
    other.put(f"{folder}/{name}", card[:-1] + bytes([card[-1] ^ 1]))
    with pytest.raises(WrongPlace):
        check_engine_at(other, federation)
    other.put(f"{folder}/{name}", card)
    check_engine_at(other, federation)


def check_engine_at(store: ObjectStore, federation: SmallFederation) -> None:
    check_place(store, federation.plan.id, federation.plan.coordinator_key)


def test_an_engine_that_went_while_init_was_at_work_is_found_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator = found_coordinator(tmp_path / "coordinator")
    federation = SmallFederation(coordinator, {})
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "_write", lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
        with pytest.raises(TransportError):
            name_engine(federation, f"dir://{tmp_path}/shared")
    (tmp_path / "shared").mkdir()
    assert invoke("status", coordinator).exit_code == 0
    check_engine(CoordinatorFiles.open(coordinator).engine, plan=federation.plan)
