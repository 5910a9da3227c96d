"""Secrets from shares, some of which may be wrong: what fits is kept, and who sent what did not fit is named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

from cachefl_secure.crypto import shamir
from cachefl_secure.crypto.shamir_decoding import decode
from cachefl_secure.errors import RoundAborted, SharesRejected
from cachefl_secure.names import SiloId

_SUBSETS = 2_000
"""Groups of holders that are left out in turn, where more shares are wrong than decoding corrects."""


@dataclass(frozen=True, slots=True, eq=False)
class Sought:
    """A secret that its owner committed to, and the shares of it that arrived."""

    owner: SiloId
    shares: Mapping[SiloId, bytes]
    """By holder. Each lies in the field."""
    fits: Callable[[bytes], bool]
    """Whether the bytes are what the owner committed to."""


def recover(
    sought: Sequence[Sought], threshold: int, place: Callable[[SiloId], int]
) -> tuple[list[bytes], set[SiloId]]:
    """The secrets, in order, and the holders of whose shares some were wrong.

    Right shares make a whole group fit; only where one does not is anybody suspected. A secret is accepted because
    it fits its owner's commitment, never by majority. If no more than half of the shares to spare are wrong, all
    who are named sent a wrong one; beyond that, liars that agree with each other can make right shares look wrong.

    Raises:
        RoundAborted: fewer shares of a secret than the threshold.
        SharesRejected: no group of shares fits.
    """
    groups: dict[tuple[SiloId, ...], list[int]] = defaultdict(list)
    for index, secret in enumerate(sought):
        if len(secret.shares) < threshold:
            raise RoundAborted(len(secret.shares), threshold)
        groups[tuple(islice(secret.shares, threshold))].append(index)
    found: dict[int, bytes] = {}
    for holders, indices in groups.items():
        rows = {place(holder): [sought[i].shares[holder] for i in indices] for holder in holders}
        try:
            values = shamir.combine(rows)
        except ValueError:
            continue
        found |= {i: value for i, value in zip(indices, values, strict=True) if sought[i].fits(value)}
    suspects: set[SiloId] = set()
    for index, secret in enumerate(sought):
        if index not in found:
            found[index], liars = _search(secret, threshold, place, suspects)
            suspects |= liars
    return [found[i] for i in range(len(sought))], suspects


def _search(
    secret: Sought, threshold: int, place: Callable[[SiloId], int], suspects: set[SiloId]
) -> tuple[bytes, set[SiloId]]:
    """First without the known suspects, then by decoding, then leaving out ever larger groups."""
    shares, names = secret.shares, {place(holder): holder for holder in secret.shares}
    if (value := _fitting(secret, threshold, place, suspects)) is not None:
        return value, _wrong(secret, threshold, place, suspects, value)
    decoded = decode({place(holder): share for holder, share in shares.items()}, threshold)
    if decoded is not None and secret.fits(decoded[0]):
        return decoded[0], {names[x] for x in decoded[1]}
    for group in islice(_groups(list(shares), threshold), _SUBSETS):
        if (value := _fitting(secret, threshold, place, set(group))) is not None:
            return value, _wrong(secret, threshold, place, set(group), value)
    others = (silo for silo in sorted(shares) if silo != secret.owner)
    if (
        decoded is not None
    ):  # all but a few agree on a secret, and it is not the one that its owner committed to
        others = (silo for silo in sorted(names[x] for x in decoded[1]) if silo != secret.owner)
    raise SharesRejected((secret.owner, *others))


def _groups(holders: Sequence[SiloId], threshold: int) -> Iterator[tuple[SiloId, ...]]:
    for size in range(1, len(holders) - threshold + 1):
        yield from combinations(holders, size)


def _fitting(
    secret: Sought, threshold: int, place: Callable[[SiloId], int], left_out: set[SiloId]
) -> bytes | None:
    holders = [holder for holder in secret.shares if holder not in left_out][:threshold]
    value = _combined(secret, holders, place) if len(holders) == threshold else None
    return value if value is not None and secret.fits(value) else None


def _wrong(
    secret: Sought, threshold: int, place: Callable[[SiloId], int], left_out: set[SiloId], value: bytes
) -> set[SiloId]:
    """Who holds another share than the polynomial has: with all but one of the right shares it gives another secret."""
    right = [holder for holder in secret.shares if holder not in left_out][:threshold]
    others = (holder for holder in secret.shares if holder not in right)
    return {holder for holder in others if _combined(secret, [*right[1:], holder], place) != value}


def _combined(secret: Sought, holders: Sequence[SiloId], place: Callable[[SiloId], int]) -> bytes | None:
    try:
        (value,) = shamir.combine({place(holder): [secret.shares[holder]] for holder in holders})
    except ValueError:
        return None
    return value
