"""The roster under the signature of every silo in it, so that no two can have pinned different ones unnoticed.

    countersignatures.bin                of the first roster: at the coordinator those that it has collected, at a
                                         silo all of them
    rosters/0002.countersignatures.bin   of the roster of epoch 2, and so on

A silo signs the digest of the roster that it pinned. It takes part in rounds only once it holds the signature of
every member: a coordinator that gave two silos different rosters cannot complete either.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from cachefl_secure.crypto.sign import SigningKey, verify
from cachefl_secure.errors import BadSignature, ConfigError, PeerError
from cachefl_secure.federation.letters import Countersignature
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import COORDINATOR, SiloId
from cachefl_secure.protocol.messages import Roster, roster_digest
from cachefl_secure.wording import counted

COUNTERSIGNATURES_FILE = "countersignatures.bin"
_PURPOSE = "cachefl-secure/roster-countersignature/1"


def countersign(roster: Roster, silo: SiloId, key: SigningKey) -> Countersignature:
    """This silo has pinned exactly this roster."""
    return Countersignature(silo, key.sign(_PURPOSE, roster_digest(roster).encode()))


def check_countersignature(signed: Countersignature, roster: Roster) -> None:
    """
    Raises:
        BadSignature: no member's signature of this roster.
    """
    key = roster.public_keys.get(SiloId(signed.silo))
    if key is None:
        raise BadSignature(signed.silo, "countersigned a roster that lacks it")
    verify(key, _PURPOSE, roster_digest(roster).encode(), signed.signature, peer=signed.silo)


def countersignatures_file(epoch: int) -> str:
    return COUNTERSIGNATURES_FILE if epoch == 1 else f"rosters/{epoch:04d}.{COUNTERSIGNATURES_FILE}"


def check_all_countersigned(signatures: Mapping[SiloId, Countersignature], roster: Roster) -> None:
    """
    Raises:
        PeerError: a member's signature is missing.
        BadSignature: one does not verify.
    """
    missing = sorted(set(roster.public_keys) - set(signatures))
    if missing:
        raise PeerError(
            COORDINATOR, f"no countersignature of the roster by {counted(len(missing), 'silo')}: {missing[0]}"
        )
    for signed in signatures.values():
        check_countersignature(signed, roster)


def keep_countersignatures(
    state: StateDir, signatures: Mapping[SiloId, Countersignature], epoch: int = 1
) -> None:
    """Durable when this returns."""
    content = msgspec.msgpack.encode([signatures[silo] for silo in sorted(signatures)])
    state.write(countersignatures_file(epoch), content)


def kept_countersignatures(state: StateDir, roster: Roster) -> dict[SiloId, Countersignature]:
    """Those on disk that are of this roster, each verified; none before the first.

    Raises:
        ConfigError: the file is damaged.
    """
    name = countersignatures_file(roster.epoch)
    if not state.has(name):
        return {}
    try:
        signatures = msgspec.msgpack.decode(state.read(name), type=tuple[Countersignature, ...])
        for signed in signatures:
            check_countersignature(signed, roster)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadSignature):
        raise ConfigError(str(state.path(name)), "", "not the roster's signatures") from None
    return {SiloId(signed.silo): signed for signed in signatures}
