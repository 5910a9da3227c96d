"""Keys and certificates: made at the coordinator for itself, asked for by a silo, carried by people both ways.

A silo's request is signed with the silo's key, which the roster names; the package that answers it is signed
with the coordinator's, which the silo confirmed when it joined. So nobody has to compare another fingerprint,
and the files may travel as join requests do.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from cachefl_secure.crypto.sign import verify
from cachefl_secure.errors import BadSignature, ConfigError, TransportError
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.roster_files import pending_change
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.fields import Hex64
from cachefl_secure.names import COORDINATOR, PublicKeyHex, SiloId, parse_silo_id
from cachefl_secure.transport.flare import kits
from cachefl_secure.transport.flare.certificates import (
    Pair,
    certificate_fingerprint,
    certified_pair,
    certify,
    check_certificate,
    check_dates,
    make_authority,
    make_key,
    make_request,
    public_key_of_request,
)
from cachefl_secure.transport.flare.engine import FlareEngine, parse_engine

ENGINE_FILE = f"{kits.ROOT}/engine"
"""The URL that this directory's files were made for, as text."""

_SERVER_CERTIFICATE = f"{kits.SERVER}/startup/server.crt"
_ADMIN_CERTIFICATE = f"{kits.ADMIN}/startup/client.crt"
_SITE_CERTIFICATE = f"{kits.SITE}/startup/client.crt"

_REQUEST_PURPOSE, _PACKAGE_PURPOSE = "cachefl-secure/flare-request/1", "cachefl-secure/flare-package/1"
_MAX_BYTES = 1 << 16
_MAX_NAME = 64  # of X.509
_RESERVED = frozenset({"server", "all", "admin", *("yes", "true", "t", "y", "no", "false", "f", "n")})
"""Names with a meaning to FLARE, which reads the last ones, and numbers, as values."""

T = TypeVar("T", bound=msgspec.Struct)
_Pem = Annotated[str, Meta(max_length=8192)]


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: Literal[1] = 1
    silo: str
    silo_key: Hex64
    request: _Pem
    signature: str = ""


class _Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: Literal[1] = 1
    silo: str
    engine: str
    certificate: _Pem
    authority: _Pem
    signature: str = ""


def found_engine(state: StateDir, engine: FlareEngine, federation_name: str) -> str:
    """Makes the federation's certificate authority and the coordinator's two kits; the authority's fingerprint.

    Run again it makes nothing new: a second authority would shut out every site. Another engine URL of the same
    host name is taken over, at the coordinator only.

    Raises:
        ConfigError: the files were made for another host, or cannot be written.
    """
    made = state.has(f"{kits.CA}/ca.crt")
    if made and engine_of(state).host != engine.host:
        path = str(state.path(ENGINE_FILE))
        raise ConfigError(path, "", f"this engine was founded for the host {engine_of(state).host}")
    authority = _authority(state) if made else make_authority(federation_name[:_MAX_NAME] or kits.PROJECT)
    if not made:
        _make_pairs(state, engine, authority)
        state.write(f"{kits.CA}/ca.key", authority.key, private=True)
        state.write(f"{kits.CA}/ca.crt", authority.certificate)  # last: it says that all is there
    state.write(ENGINE_FILE, engine.url.encode())
    refresh_coordinator(state)
    return certificate_fingerprint(authority.certificate)


def request_site(state: StateDir, silo: SiloId, engine: FlareEngine) -> bytes:
    """Makes the site's private key, here, and returns the request to carry to the coordinator.

    Run again it asks with the same key. The request is text, holds nothing private, and is signed by the silo.

    Raises:
        ConfigError: the silo has a name that FLARE uses itself, or a file cannot be written.
    """
    check_site_name(silo, engine)
    place = f"{kits.SITE}/startup/client.key"
    if not state.has(place):
        state.write(place, make_key(), private=True)
    signing_key = state.signing_key()
    unsigned = _Request(
        silo=silo, silo_key=signing_key.public_key, request=make_request(silo, state.read(place)).decode()
    )
    signature = signing_key.sign(_REQUEST_PURPOSE, msgspec.json.encode(unsigned)).hex()
    return _text(msgspec.structs.replace(unsigned, signature=signature))


def requesting_silo(request: bytes) -> SiloId:
    """Who asks. Whether that is so, ``approve_site`` finds out.

    Raises:
        ConfigError: no site request.
    """
    return parse_silo_id(_read(request, _Request, "the site request").silo, file="the site request")


def has_site(state: StateDir) -> bool:
    """Whether the coordinator's package was installed, and its certificate has not ended."""
    if not state.has(_SITE_CERTIFICATE):
        return False
    try:
        check_dates(state.read(_SITE_CERTIFICATE))
    except ValueError:
        return False
    return True


def approve_site(state: StateDir, silo: SiloId, request: bytes) -> bytes:
    """Signs the site's certificate; returns the package to carry back. For silos of the roster or of the change
    that waits, so after ``admit``.

    Raises:
        ConfigError: the silo is not in the roster, or the request is damaged or another silo's.
        BadSignature: it is not signed with the key that the roster names for this silo.
    """
    asked = _read(request, _Request, "the site request")
    if asked.silo != silo:
        raise ConfigError("the site request", "silo", f"is {asked.silo[:80]!r}, not {silo}")
    known = _keys(state).get(silo)
    if known is None:
        raise ConfigError("the site request", "silo", f"{silo} is not in the roster; admit it first")
    unsigned = msgspec.structs.replace(asked, signature="")
    _verify(known, _REQUEST_PURPOSE, unsigned, asked.signature, silo)
    try:
        key = public_key_of_request(asked.request.encode())
    except ValueError as error:
        raise ConfigError("the site request", "request", str(error)) from None
    authority, engine = _authority(state), engine_of(state)
    check_site_name(silo, engine)
    package = _Package(
        silo=silo,
        engine=engine.url,
        certificate=certify(authority, silo, kits.SITE_ROLE, key).decode(),
        authority=authority.certificate.decode(),
    )
    signature = state.signing_key().sign(_PACKAGE_PURPOSE, msgspec.json.encode(package)).hex()
    return _text(msgspec.structs.replace(package, signature=signature))


def install_site(state: StateDir, package: bytes, engine: FlareEngine | None = None) -> FlareEngine:
    """Writes the site's files from the coordinator's package, and returns the engine they are for.

    ``engine``, if given, must be the package's.

    Raises:
        BadSignature: not signed by the coordinator that this silo joined.
        ConfigError: another silo's or engine's package, or not for the key made here.
    """
    files = SiloFiles.open(state.root)
    answer = _read(package, _Package, "the site package")
    unsigned = msgspec.structs.replace(answer, signature="")
    _verify(files.plan.coordinator_key, _PACKAGE_PURPOSE, unsigned, answer.signature, COORDINATOR)
    where = "the site package"
    if answer.silo != files.silo:
        raise ConfigError(where, "silo", f"is for {answer.silo}, this is {files.silo}")
    given = parse_engine(answer.engine, file=where)
    if engine is not None and engine != given:
        raise ConfigError(where, "engine", f"is {given.url}, not {engine.url}")
    key = state.read(f"{kits.SITE}/startup/client.key")
    try:
        check_certificate(answer.certificate.encode(), answer.authority.encode(), files.silo, key)
    except ValueError as error:
        raise ConfigError(where, "certificate", str(error)) from None
    pair = Pair(key, answer.certificate.encode())
    _write(state, kits.SITE, kits.key_files("client", pair, answer.authority.encode()))
    state.write(ENGINE_FILE, given.url.encode())
    refresh_site(state)
    return given


def check_site_name(silo: SiloId, engine: FlareEngine) -> None:
    """
    Raises:
        ConfigError: FLARE uses the name itself, or reads it as a number.
    """
    if silo in _RESERVED or silo == engine.host or _is_number(silo):
        reason = f"{silo!r} means something else to FLARE; join under another name"
        raise ConfigError("silo.toml", "silo", reason)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def engine_of(state: StateDir) -> FlareEngine:
    """The engine that a directory's files were made for.

    Raises:
        ConfigError: none was, or the file is damaged.
    """
    if not state.has(ENGINE_FILE):
        reason = "no FLARE engine was set up in this directory"
        raise ConfigError(str(state.path(ENGINE_FILE)), "", reason)
    text = state.read(ENGINE_FILE).decode("ascii", "replace")
    return parse_engine(text, file=str(state.path(ENGINE_FILE)))


def refresh_coordinator(state: StateDir) -> None:
    """Writes all that is not a key anew, as this version has it, and makes a certificate that was removed.

    Raises:
        ConfigError: a certificate has ended.
    """
    engine, authority = engine_of(state), _authority(state)
    _check_dates(state, f"{kits.CA}/ca.crt", "the federation's engine has to be founded anew")
    _make_pairs(state, engine, authority, only_missing=True)
    for place in (_SERVER_CERTIFICATE, _ADMIN_CERTIFICATE):
        _check_dates(state, place, "remove the file, and the next round makes a new one")
    _write(state, kits.SERVER, kits.server_files(engine, state.path(kits.SERVER).resolve()))
    _write(state, kits.ADMIN, kits.admin_files(engine))


def refresh_site(state: StateDir) -> None:
    """Writes all that is not a key anew, as this version has it.

    Raises:
        TransportError: the coordinator's package has not been installed yet.
        ConfigError: a certificate in it has ended.
    """
    if not state.has(_SITE_CERTIFICATE):
        raise TransportError(
            COORDINATOR, "has not sent the package for this site yet, or it was not installed"
        )
    for place in (_SITE_CERTIFICATE, f"{kits.SITE}/startup/rootCA.pem"):
        _check_dates(state, place, "the coordinator has to send another package")
    _write(state, kits.SITE, kits.site_files(engine_of(state)))


def _make_pairs(state: StateDir, engine: FlareEngine, authority: Pair, *, only_missing: bool = False) -> None:
    """The coordinator's own two certificates, each with a new key."""
    for place, folder, stem, name, role in (
        (_SERVER_CERTIFICATE, kits.SERVER, "server", engine.host, kits.SERVER_ROLE),
        (_ADMIN_CERTIFICATE, kits.ADMIN, "client", kits.SUBMITTER, kits.SUBMITTER_ROLE),
    ):
        if not (only_missing and state.has(place)):
            pair = certified_pair(authority, name, role)
            _write(state, folder, kits.key_files(stem, pair, authority.certificate))


def _check_dates(state: StateDir, place: str, remedy: str) -> None:
    try:
        check_dates(state.read(place))
    except ValueError as error:
        raise ConfigError(str(state.path(place)), "", f"the certificate {error}; {remedy}") from None


def _keys(state: StateDir) -> dict[SiloId, PublicKeyHex]:
    """Of the roster, and of the change that waits if it is a possible one."""
    rosters = CoordinatorFiles.open(state.root).rosters()
    change = pending_change(state, rosters)
    proposed = rosters.check_proposal(change).public_keys if change is not None else {}
    return {**proposed, **rosters.current.public_keys}


def _authority(state: StateDir) -> Pair:
    return Pair(state.read(f"{kits.CA}/ca.key"), state.read(f"{kits.CA}/ca.crt"))


def _write(state: StateDir, folder: str, files: kits.Files) -> None:
    for path, content in files.items():
        place = f"{folder}/{path}"
        if not state.has(place) or state.read(place) != content:
            state.write(place, content, private=path.endswith(".key"))


def _verify(key: PublicKeyHex, purpose: str, unsigned: msgspec.Struct, signature: str, peer: str) -> None:
    try:
        raw = bytes.fromhex(signature)
    except ValueError:
        raise BadSignature(peer, f"signature of {purpose} does not verify") from None
    verify(key, purpose, msgspec.json.encode(unsigned), raw, peer=peer)


def _read(raw: bytes, kind: type[T], file: str) -> T:
    if len(raw) > _MAX_BYTES:
        raise ConfigError(file, "", f"{len(raw)} bytes, at most {_MAX_BYTES} expected")
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise ConfigError(file, "", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ConfigError(file, "", "not what cachefl-secure writes there") from None


def _text(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
