"""Certificates that have ended, or are of another federation: who says so, and that nothing is trained meanwhile."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cachefl_secure.errors import ConfigError, RoundAborted
from cachefl_secure.federation.budget import silo_budget
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import SiloId
from cachefl_secure.transport.flare import certificates, kits, reaching
from cachefl_secure.transport.flare.certificates import Pair, certified_pair, make_authority
from cachefl_secure.transport.flare.children import Child
from cachefl_secure.transport.flare.engine import FlareEngine, parse_engine
from cachefl_secure.transport.flare.enrolling import (
    approve_site,
    found_engine,
    has_site,
    install_site,
    refresh_coordinator,
    refresh_site,
    request_site,
)
from cachefl_secure.transport.flare.processes import SiteProcess
from cachefl_secure.transport.flare.reaching import Reached, trouble_at
from tests.processes import until
from tests.small_federation import SmallFederation, found
from tests.transport.at_flare import PATIENCE_SECONDS, Live, founded, needs_flare

SILO = SiloId("silo-1")
ENGINE = parse_engine("nvflare+grpc://localhost:8002")
SERVER = f"{kits.SERVER}/startup/server.crt"
SITE = f"{kits.SITE}/startup/client.crt"


@contextlib.contextmanager
def ended_yesterday() -> Iterator[None]:
    """Certificates made meanwhile began two days ago and ended a day later."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "_DAY", 2 * certificates._DAY)
        patch.setattr(certificates, "_YEARS", -0.5 / 365)
        yield


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    federation = found(tmp_path, records=(5, 5, 5))
    found_engine(StateDir(federation.coordinator), ENGINE, "small")
    return federation


def package_for(federation: SmallFederation, silo: SiloId = SILO) -> bytes:
    request = request_site(StateDir(federation.silos[silo]), silo, ENGINE)
    return approve_site(StateDir(federation.coordinator), silo, request)


def test_a_certificate_that_has_ended_is_not_installed_and_one_that_was_is_named_at_the_start(
    federation: SmallFederation,
) -> None:
    site = StateDir(federation.silos[SILO])
    with ended_yesterday():
        ended = package_for(federation)
    with pytest.raises(ConfigError, match=r"certificate: ended on 20..-..-.. by this machine's clock"):
        install_site(site, ended, ENGINE)
    install_site(site, package_for(federation), ENGINE)
    assert has_site(site)
    with ended_yesterday():
        authority = Pair(
            *(StateDir(federation.coordinator).read(f"{kits.CA}/ca.{end}") for end in ("key", "crt"))
        )
        site.write(SITE, certified_pair(authority, SILO, kits.SITE_ROLE).certificate)
    assert not has_site(site), "the package that lies there is looked at again"
    with pytest.raises(
        ConfigError, match=r"ended on .*the coordinator has to send another package"
    ) as refused:
        refresh_site(site)
    assert refused.value.file == str(site.path(SITE))
    install_site(site, package_for(federation), ENGINE)
    refresh_site(site)


def test_a_certificate_that_has_not_begun_is_a_matter_of_clocks(federation: SmallFederation) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certificates, "_DAY", -2 * certificates._DAY)  # begins in two days
        patch.setattr(certificates, "_YEARS", -10)
        early = package_for(federation)
    with pytest.raises(ConfigError, match=r"begins on 20..-..-.. by this machine's clock"):
        install_site(StateDir(federation.silos[SILO]), early, ENGINE)


@pytest.mark.parametrize("place", [SERVER, f"{kits.ADMIN}/startup/client.crt"], ids=["server", "submitter"])
def test_a_certificate_of_the_coordinators_own_that_has_ended_is_named_and_made_anew_when_it_is_removed(
    federation: SmallFederation, place: str
) -> None:
    state = StateDir(federation.coordinator)
    authority = Pair(state.read(f"{kits.CA}/ca.key"), state.read(f"{kits.CA}/ca.crt"))
    with ended_yesterday():
        state.write(place, certified_pair(authority, "localhost", "any").certificate)
    with pytest.raises(ConfigError, match=r"ended on .*; remove the file") as refused:
        refresh_coordinator(state)
    assert refused.value.file == str(state.path(place))
    state.remove(place)
    refresh_coordinator(state)
    name = "localhost" if place == SERVER else kits.SUBMITTER
    key = state.read(place.replace(".crt", ".key"))
    certificates.check_certificate(state.read(place), authority.certificate, name, key)
    assert state.read(f"{kits.CA}/ca.crt") == authority.certificate, "sites know this one"


def test_a_founding_that_was_interrupted_leaves_no_certificate_of_an_authority_that_is_gone(
    federation: SmallFederation,
) -> None:
    state = StateDir(federation.coordinator)
    state.remove(f"{kits.CA}/ca.crt")  # written last
    found_engine(state, ENGINE, "small")
    authority, key = (state.read(f"{kits.CA}/ca.crt"), state.read(SERVER.replace(".crt", ".key")))
    certificates.check_certificate(state.read(SERVER), authority, "localhost", key)


def test_an_authority_that_has_ended_is_named(federation: SmallFederation) -> None:
    state = StateDir(federation.coordinator)
    with ended_yesterday():
        state.write(f"{kits.CA}/ca.crt", make_authority("small").certificate)
    with pytest.raises(ConfigError, match=r"ended on .*has to be founded anew"):
        refresh_coordinator(state)


# --- what a site tells its operator of the server that it finds


class Listening:
    """A TLS server on loopback that asks for a client's certificate, and then says one byte."""

    def __init__(
        self, folder: Path, own: Pair, authority: bytes, *, speaks: bool = True, port: int = 0
    ) -> None:
        for name, content in (("key", own.key), ("crt", own.certificate), ("ca", authority)):
            (folder / f"listening.{name}").write_bytes(content)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "listening.crt", folder / "listening.key")
        self._context.load_verify_locations(folder / "listening.ca")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._speaks, self._socket = speaks, socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._serve)

    @property
    def engine(self) -> FlareEngine:
        return FlareEngine("grpc", "localhost", self._socket.getsockname()[1])

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._socket.accept()
                with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as line:
                    if self._speaks:
                        line.sendall(b"x")
                    line.recv(1)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return tmp_path / "site"


def written(site: Path, own: Pair, authority: bytes) -> None:
    for path, content in kits.key_files("client", own, authority).items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)


@pytest.mark.parametrize(
    ("server", "client", "expected"),
    [
        ("good", "good", ""),
        ("silent", "good", ""),
        ("ended", "good", "shows a certificate that does not hold here: certificate has expired"),
        (
            "of another federation",
            "good",
            "shows a certificate that does not hold here: (self-signed|unable to get local).*",
        ),
        ("for another host", "good", "shows a certificate that does not hold here: Hostname mismatch.*"),
        ("good", "ended", "refuses this site's certificate: .* alert certificate expired"),
        ("good", "of another federation", "refuses this site's certificate: .* alert unknown ca"),
    ],
)
def test_a_site_says_which_certificate_is_at_fault(
    tmp_path: Path, site: Path, server: str, client: str, expected: str
) -> None:
    authority, stranger = make_authority("small"), make_authority("another")

    def pair(kind: str, name: str) -> Pair:
        issuer = stranger if kind == "of another federation" else authority
        host = "elsewhere.example" if kind == "for another host" else name
        with ended_yesterday() if kind == "ended" else contextlib.nullcontext():
            return certified_pair(issuer, host, "any")

    written(site, pair(client, SILO), authority.certificate)
    own = pair(server, "localhost")
    with Listening(tmp_path, own, authority.certificate, speaks=server != "silent") as listening:
        said = trouble_at(listening.engine, site)
    assert re.fullmatch(expected, said), said


def test_a_site_tells_each_trouble_once_and_when_it_is_over(tmp_path: Path, site: Path) -> None:
    authority = make_authority("small")
    with ended_yesterday():
        ended = certified_pair(authority, SILO, "any")
    written(site, ended, authority.certificate)
    own, said = certified_pair(authority, "localhost", "any"), list[str]()
    with Listening(tmp_path, own, authority.certificate) as listening:
        reached = Reached(listening.engine, site, said.append)

        def look() -> None:
            reached._next = 0.0
            reached.look()

        look()
        look()
        written(site, certified_pair(authority, SILO, "any"), authority.certificate)
        look()
        look()
        written(site, ended, authority.certificate)
        look()
        target = listening.engine.target
    look()  # that nobody listens between rounds is no trouble
    refused, answers, again = said
    assert re.fullmatch(f"{target} refuses this site's certificate: .* alert certificate expired", refused)
    assert (answers, again) == (f"{target} answers", refused)


def test_a_server_that_closes_the_line_is_told_of_when_it_does_so_again(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may just be ending; FLARE's server refuses a certificate like this, without a word."""
    said = list[str]()
    reached = Reached(ENGINE, site, said.append)
    closed, away = reaching._CLOSED, reaching._AWAY
    for seen in ("", closed, "", closed, away, closed, closed):
        monkeypatch.setattr(reaching, "trouble_at", lambda *_, seen=seen: seen)
        reached._next = 0.0
        reached.look()
    assert said == [f"{ENGINE.target} {reaching._CLOSED}"]


# --- and FLARE itself


def until_told(live: Live, silo: SiloId, sentence: str) -> None:
    until(lambda: sentence in live.told[silo], f"{silo} is told: {sentence}", PATIENCE_SECONDS)


@needs_flare
@pytest.mark.slow
def test_nothing_is_trained_where_a_certificate_has_ended_and_all_is_well_with_a_new_one(
    tmp_path: Path,
) -> None:
    with founded(tmp_path) as live:
        server, silos = live.coordinator, sorted(live.federation.silos)
        authority = Pair(server.read(f"{kits.CA}/ca.key"), server.read(f"{kits.CA}/ca.crt"))
        last = StateDir(live.federation.silos[silos[-1]])
        good = {SERVER: server.read(SERVER), SITE: last.read(SITE)}
        with ended_yesterday():
            own = Pair(*(server.read(f"{kits.SERVER}/startup/server.{end}") for end in ("key", "crt")))
            public = certificates._private(own.key).public_key()
            server.write(SERVER, certificates.certify(authority, live.engine.host, kits.SERVER_ROLE, public))
            key = certificates._private(last.read(f"{kits.SITE}/startup/client.key")).public_key()
            last.write(SITE, certificates.certify(authority, silos[-1], kits.SITE_ROLE, key))

        with pytest.raises(ConfigError, match=r"server\.crt: the certificate ended on"):
            live.rounds(1)
        for silo in silos[:-1]:
            live.start_site(silo)
        careless = Child("server", server.path(kits.SERVER))  # as if nobody had looked
        assert careless.wait(PATIENCE_SECONDS), "FLARE's own server ends, too, but only its log says why"
        careless.stop()
        ended = Pair(own.key, server.read(SERVER))
        expired = f"{live.engine.target} shows a certificate that does not hold here: certificate has expired"
        with Listening(tmp_path, ended, authority.certificate, port=live.engine.port):
            for silo in silos[:-1]:
                until_told(live, silo, expired)
        server.write(SERVER, good[SERVER])
        with (
            pytest.raises(ConfigError, match=r"client\.crt: the certificate ended on"),
            SiteProcess(last.root, tell=print),
        ):
            pass
        careless = Child("site", last.path(kits.SITE), [silos[-1]])
        try:
            with pytest.raises(RoundAborted) as aborted:
                live.rounds(1, connect_seconds=60.0)
        finally:
            careless.stop()
        assert (aborted.value.present, aborted.value.threshold) == (2, 3)
        assert f"{silos[-1]}: not connected" in live.told["coordinator"]
        for silo in silos[:-1]:
            until_told(live, silo, f"{live.engine.target} answers")
        assert [silo_budget(path).rounds_charged for path in live.federation.silos.values()] == [0, 0, 0]

        install_site(last, live.package(silos[-1]), live.engine)
        live.start_site(silos[-1])
        (outcome,) = live.rounds(1, connect_seconds=120.0)
        assert list(outcome.record.survivors) == silos
