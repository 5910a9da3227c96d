"""Asking to be admitted, and being found, at a mailbox. No round, and nothing of torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cachefl_secure import durable
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.names import COORDINATOR, PublicKeyHex, SiloId, digest_of
from cachefl_secure.plan import FederationPlan, plan_digest
from cachefl_secure.protocol.messages import Member
from cachefl_secure.transport.contacts import announce, check_place
from cachefl_secure.transport.parcels import Sender
from cachefl_secure.transport.store import ObjectStore

PLACE_FILE = "engine/place"
"""At the coordinator: URL of the engine that is known to be this federation's place. Without this file it becomes it."""
MAX_REQUEST_BYTES = 1 << 14
_MAX_REQUESTS = 4096

Tell = Callable[[str], None]
"""A sentence to the operator of this machine."""


def coordinator_sender(files: CoordinatorFiles) -> Sender:
    state = files.state
    return Sender(files.plan.id, COORDINATOR, state.signing_key(), state.transport_key())


def silo_sender(files: SiloFiles) -> Sender:
    return Sender(files.plan.id, files.silo, files.state.signing_key(), files.state.transport_key())


def post_request(store: ObjectStore, plan: FederationPlan, silo: SiloId, request: bytes) -> None:
    """Leaves a join or rotate request where the coordinator looks. It is public, and signed by the silo.

    Raises:
        TransportError: not left.
    """
    digest = digest_of("cachefl-secure/request/1", request)[:16]
    name = f"{_requests(plan)}/{silo}.{digest}.toml"
    if store.get(name, limit_bytes=MAX_REQUEST_BYTES) != request:
        store.put(name, request)


def collect_requests(files: CoordinatorFiles, tell: Tell, folder: Path) -> dict[SiloId, Path]:
    """Requests at the store that the roster does not answer yet, copied into ``folder``.

    A copy is named by its content, and made once. Who asks with several keys is left out, and told: at most one of
    them is who it says.

    Raises:
        TransportError: the store cannot be reached, or holds nothing of this federation.
    """
    store, there = ObjectStore.open(files.engine, where="invite.toml"), _requests(files.plan)
    find_place(store, files)
    members, unreadable = chain_keys(files), 0
    found: dict[SiloId, dict[PublicKeyHex, Path]] = {}
    for name in store.names(there)[:_MAX_REQUESTS]:
        raw = store.get(f"{there}/{name}", limit_bytes=MAX_REQUEST_BYTES)
        try:
            member, path = _kept(files, raw or b"", folder)
        except ConfigError:  # its words would quote what a stranger wrote
            unreadable += 1
            continue
        key = PublicKeyHex(member.public_key)
        if key not in members.get(member.silo, ()):
            found.setdefault(member.silo, {}).setdefault(key, path)
    if unreadable:
        tell(f"{unreadable} files among the requests are no requests for this federation; they are left out")
    for silo, keys in found.items():
        if len(keys) > 1:
            names = ", ".join(str(path) for path in keys.values())
            tell(f"{silo} asks with {len(keys)} keys; compare fingerprints and give `admit` one of {names}")
    return {silo: next(iter(keys.values())) for silo, keys in found.items() if len(keys) == 1}


def _kept(files: CoordinatorFiles, raw: bytes, folder: Path) -> tuple[Member, Path]:
    """The member that a request is for, and the copy of the request.

    Raises:
        ConfigError: it is none, or cannot be kept.
    """
    path = folder / f"{digest_of('cachefl-secure/request-copy/1', raw)[:32]}.toml"
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / "request.toml"
        draft.write_bytes(raw)
        (candidate,) = files.candidates([draft])
    named = path.with_name(f"{candidate.member.silo}.{path.name}")
    if not named.is_file():
        folder.mkdir(mode=0o700, exist_ok=True)
        durable.replace_file(named, raw, 0o644)
    return candidate.member, named


def find_place(store: ObjectStore, files: CoordinatorFiles) -> None:
    """The coordinator's contact card lies there, by which silos know the place, when this returns.

    Raises:
        WrongPlace: it lay there once, and now there is no sign of this federation.
        TransportError: the store cannot be reached.
    """
    here = files.engine.encode()
    known = files.state.has(PLACE_FILE) and files.state.read(PLACE_FILE) == here
    if known:
        check_place(store, files.plan.id, files.plan.coordinator_key, any_sign=True)
    announce(store, coordinator_sender(files))
    if not known:
        files.state.write(PLACE_FILE, here)


def chain_keys(files: CoordinatorFiles) -> Mapping[SiloId, Sequence[PublicKeyHex]]:
    """Every key that a silo had or has."""
    if not files.has_roster:
        return {}
    rosters = files.rosters()
    return {silo: rosters.keys_of(silo) for silo in rosters.all_silos()}


def ask_to_join(files: SiloFiles, request: bytes) -> None:
    """Leaves this silo's request and its contact card.

    Raises:
        ConfigError, MissingExtra, TransportError: the store cannot be used.
    """
    store = ObjectStore.open(files.config.engine, where="silo.toml")
    check_place(store, files.plan.id, files.plan.coordinator_key)
    post_request(store, files.plan, files.silo, request)
    announce(store, silo_sender(files))


def _requests(plan: FederationPlan) -> str:
    return f"{plan.id}/requests/{plan_digest(plan)[:16]}"
