"""Contact cards in a store: which transport key a party has, said by its identity key."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from cachefl_secure.errors import PeerError, TransportError, WrongPlace
from cachefl_secure.names import COORDINATOR, FederationId, PublicKeyHex, digest_of
from cachefl_secure.transport import parcels
from cachefl_secure.transport.parcels import Sender
from cachefl_secure.transport.store import ObjectStore

_CARD_BYTES = 1024


def announce(store: ObjectStore, sender: Sender) -> None:
    """Leaves this party's contact card, unless it is there, and takes away those of transport keys that it lost.

    Raises:
        TransportError: not left.
    """
    card = sender.card()
    digest = digest_of("cachefl-secure/contact/1", card)[:16]
    folder = f"{sender.federation_id}/contacts/{sender.party}"
    if store.get(f"{folder}/{digest}", limit_bytes=_CARD_BYTES) != card:
        store.put(f"{folder}/{digest}", card)
    with contextlib.suppress(TransportError):  # the card itself is there
        for name in store.names(folder):
            if name != digest and _is_of(store, f"{folder}/{name}", sender):
                store.remove(f"{folder}/{name}")


def _is_of(store: ObjectStore, path: str, sender: Sender) -> bool:
    """Whether a card under the sender's present identity lies there: of two, others could not tell which key is lost."""
    try:
        raw = store.get(path, limit_bytes=_CARD_BYTES) or b""
        parcels.read_card(raw, sender.federation_id, sender.party, (sender.identity.public_key,))
    except PeerError:
        return False
    return True


def check_place(
    store: ObjectStore, federation_id: FederationId, coordinator_key: PublicKeyHex, *, any_sign: bool = False
) -> None:
    """That this place is the federation's: its coordinator's card lies there, since the federation was founded.

    For people, whose share may not be mounted: an empty folder would be waited at in silence. Whoever holds the place
    shows or hides the card as he likes, and nothing rests on it. ``any_sign`` of the federation will do instead.

    Raises:
        WrongPlace: it does not.
        TransportError: the store could not be looked at.
    """
    folder = f"{federation_id}/contacts/{COORDINATOR}"
    if find_transport_key(store, federation_id, COORDINATOR, (coordinator_key,)) is not None:
        return
    if not (any_sign and store.folders(federation_id)):
        raise WrongPlace(store.url, f"nothing of this federation is there (is it mounted?): no {folder}")


def find_transport_key(
    store: ObjectStore, federation_id: FederationId, party: str, identities: Sequence[PublicKeyHex]
) -> bytes | None:
    """The transport key that this party announced under one of its identity keys; the latest key's, if several did.

    Raises:
        TransportError: the store could not be looked at.
    """
    folder, found = f"{federation_id}/contacts/{party}", dict[PublicKeyHex, bytes]()
    trouble: TransportError | None = None
    for name in store.names(folder):
        try:
            raw = store.get(f"{folder}/{name}", limit_bytes=_CARD_BYTES)
        except TransportError as error:  # that one card; another may be the party's
            trouble = error
            continue
        for identity in identities if raw is not None else ():
            try:
                found[identity] = parcels.read_card(raw or b"", federation_id, party, (identity,))
            except PeerError:
                continue
    if trouble is not None and not found:
        raise trouble
    return next((found[identity] for identity in reversed(identities) if identity in found), None)
