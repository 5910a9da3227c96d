"""A shared folder in which a stranger may write: links lead nowhere, requests are kept by what they say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cachefl_secure.crypto.sign import SigningKey, fingerprint
from cachefl_secure.crypto.spoken import in_words
from cachefl_secure.errors import ConfigError, TransportError
from cachefl_secure.federation.confirming import ask_for_new_key
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.enrolment import write_join_request
from cachefl_secure.federation.roster_files import pending_change
from cachefl_secure.federation.silo_files import REQUEST_FILE, SiloFiles
from cachefl_secure.federation.witnesses import receipts_of
from cachefl_secure.names import SiloId
from cachefl_secure.transport.mailbox import CoordinatorMailbox
from cachefl_secure.transport.mailbox_enrolment import collect_requests, coordinator_sender, post_request
from cachefl_secure.transport.mailbox_federation import identities_of
from cachefl_secure.transport.store import ObjectStore, check_url
from cachefl_secure_cli.failures import say
from cachefl_secure_cli.main import app
from tests.changing import confirm, key_of, propose, run
from tests.small_federation import found, found_coordinator, join_with_random_features

LIMIT = 1 << 20


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_bytes(b"keep me")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    store = ObjectStore.open(f"dir://{tmp_path}/shared")
    store.make()
    return store


@pytest.mark.claim("C14")
def test_no_link_in_a_shared_folder_is_followed(store: ObjectStore, outside: Path, tmp_path: Path) -> None:
    os.symlink(outside, tmp_path / "shared" / "a")
    (tmp_path / "shared" / "b").mkdir()
    os.symlink(outside / "precious", tmp_path / "shared" / "b" / "c")
    for attempt in (
        lambda: store.put("a/x", b"1"),
        lambda: store.get("a/precious", limit_bytes=LIMIT),
        lambda: store.names("a"),
        lambda: store.get("b/c", limit_bytes=LIMIT),
    ):
        with pytest.raises(TransportError):
            attempt()
    store.remove("a/precious")
    store.remove_folder("a")
    assert store.names("b") == []
    assert not store.has("b/c")
    assert sorted(path.name for path in outside.iterdir()) == ["precious"]


def test_clearing_an_exchange_removes_nothing_outside_the_store(
    store: ObjectStore, outside: Path, tmp_path: Path
) -> None:
    files = CoordinatorFiles.open(found_coordinator(tmp_path / "coordinator"))
    below = tmp_path / "shared" / files.plan.id
    below.mkdir()
    for name in ("from", "to"):
        os.symlink(outside, below / name)
    silo, key = SiloId("silo-1"), SigningKey.generate().public_key
    mailbox = CoordinatorMailbox(
        store, coordinator_sender(files), files.state, lambda: {silo: (key,)}, limit_bytes=LIMIT
    )
    with pytest.raises(TransportError):
        mailbox.exchange("hello", {silo: b"content"}, 0.05)
    assert (outside / "precious").read_bytes() == b"keep me"


def test_a_name_with_dots_reaches_nothing(store: ObjectStore) -> None:
    with pytest.raises(TransportError):
        store.put("../x", b"1")
    assert store.get("a/../x", limit_bytes=LIMIT) is None


@pytest.mark.claim("C16")
def test_a_strangers_request_takes_no_other_requests_place(tmp_path: Path) -> None:
    """Whatever it is called in the store: a copy is named by its content and never replaced."""
    root = found_coordinator(tmp_path / "coordinator", engine=f"dir://{tmp_path}/shared")
    files = CoordinatorFiles.open(root)
    store, said = ObjectStore.open(files.engine), list[str]()
    store.make()
    honest = join_with_random_features(tmp_path / "clinic-1", root, SiloId("clinic-1"), 9, seed=1)
    request = (honest / REQUEST_FILE).read_bytes()
    post_request(store, files.plan, SiloId("clinic-1"), request)
    (name,) = store.names(
        folder := f"{files.plan.id}/requests/" + store.folders(f"{files.plan.id}/requests")[0]
    )
    forged = write_join_request(SiloId("clinic-l"), files.plan, SigningKey.generate())
    store.put(f"{folder}/{name.removesuffix('.toml')}x.toml", forged)
    store.put(f"{folder}/clinic-1.again.toml", request + b"\n")  # the same key is no second silo
    store.put(f"{folder}/\x1b[2J.toml", b"\xff")
    waiting = collect_requests(files, said.append, files.state.path("requests"))
    assert sorted(waiting) == ["clinic-1", "clinic-l"]
    (candidate,) = files.candidates([waiting[SiloId("clinic-1")]])
    assert candidate.member.public_key == SiloFiles.open(honest).state.signing_key().public_key
    assert said == ["1 files among the requests are no requests for this federation; they are left out"]
    second = write_join_request(SiloId("clinic-1"), files.plan, SigningKey.generate())
    post_request(store, files.plan, SiloId("clinic-1"), second)
    assert "clinic-1" not in collect_requests(files, said.append, files.state.path("requests"))
    assert "asks with 2 keys" in said[-1]


def test_what_strangers_wrote_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[2Jb\nc")
    assert capsys.readouterr().err == "cachefl-secure: a?[2Jb?c\n"


@pytest.mark.claim("C15")
def test_a_url_with_a_password_is_refused_and_not_repeated() -> None:
    for url in ("s3://KEY:SECRET@bucket/x", "sftp://me:SECRET@host/x"):
        with pytest.raises(ConfigError) as refused:
            check_url(url)
        assert "SECRET" not in str(refused.value)


@pytest.mark.claim("C16")
def test_an_old_key_speaks_for_a_silo_until_it_has_signed_under_the_new_roster(tmp_path: Path) -> None:
    federation, silo = found(tmp_path), SiloId("silo-2")
    run(federation)
    files, path = CoordinatorFiles.open(federation.coordinator), federation.silos[silo]
    old = key_of(path).public_key
    request, _ = ask_for_new_key(SiloFiles.open(path))
    propose(federation, [request])
    confirm(federation, sorted(federation.silos)[:4])
    run(federation)
    new = key_of(path).public_key
    assert list(identities_of(files.rosters())[silo]) == [old, new]
    assert list(identities_of(files.rosters(), receipts_of(files))[silo]) == [new]


@pytest.mark.claim("C16")
def test_who_waits_at_the_store_is_admitted_by_the_way_of_nothing(tmp_path: Path) -> None:
    """Not with --yes alone, since a stranger may have asked in between, and not with --remove."""

    def admit(*words: str) -> tuple[int, str]:
        ran = CliRunner().invoke(app, ["admit", str(federation.coordinator), *words])
        return ran.exit_code, ran.output

    federation = found(tmp_path, engine=f"dir://{tmp_path}/shared")
    files = CoordinatorFiles.open(federation.coordinator)
    store = ObjectStore.open(files.engine)
    store.make()
    honest, stranger = SigningKey.generate(), SigningKey.generate()
    for silo, key in ((SiloId("clinic-1"), honest), (SiloId("stranger"), stranger)):
        post_request(store, files.plan, silo, write_join_request(silo, files.plan, key))
    heard = ("--expect", in_words(fingerprint(honest.public_key)))
    assert admit("--yes")[0] == 2
    code, said = admit("--yes", *heard)
    assert (code, "is not among the fingerprints expected" in said) == (7, True)
    assert pending_change(files.state, files.rosters()) is None
    code, said = admit("--yes", "--silo", "clinic-1", "--remove", "silo-5", *heard)
    assert (code, "clinic-1" in said, "stranger" in said) == (0, True, False)
    assert admit("--withdraw")[0] == 0
    code, said = admit("--yes", "--remove", "silo-5")
    assert (code, "clinic-1" in said, "stranger" in said) == (0, False, False)
