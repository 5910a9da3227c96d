"""What follows from what left, exactly: every masked vector is its update plus the very seeds that went into it.

The hooks see the seeds, shares and channel keys as bytes, so nothing here rests on what the protocol calls them.
A share is known if it left in the clear or under a channel key of which one end's private key is known; a secret
if as many of its shares are known as its polynomial needs; a mask if one of the secrets that it comes from is. Of
the masked vectors, those integer combinations are known in which every unknown mask cancels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from cachefl_secure.crypto.agreement import AgreementKey
from cachefl_secure.names import SiloId

Row = dict[Hashable, int]
"""A linear form: unknown -> coefficient modulo ``_PRIME``."""

_PRIME = (1 << 61) - 1  # coefficients are small: a combination over the integers is one modulo a large prime


@dataclass(frozen=True, slots=True)
class Update:
    """One encoded update of one silo."""

    silo: SiloId
    round: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """A masked vector as it was made."""

    update: Update
    added: tuple[bytes, ...]
    subtracted: tuple[bytes, ...]


@dataclass
class Knowledge:
    """Noted by hooks in production code while a schedule is played."""

    secrets: dict[SiloId, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    """What a silo drew."""
    polynomials: list[tuple[bytes, int]] = field(default_factory=list)
    """(secret, shares that it takes)."""
    shares: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Share -> (polynomial, x)."""
    sealed: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    """Ciphertext -> (key, plaintext)."""
    ends: dict[bytes, frozenset[bytes]] = field(default_factory=dict)
    """Anything that comes from an agreement -> the two public keys."""
    self_masks: dict[bytes, bytes] = field(default_factory=dict)
    """Mask seed -> the self-mask seed that it comes from."""
    contexts: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    """Mask seed -> (manifest, key list) that it was made for."""
    made: dict[bytes, Upload] = field(default_factory=dict)
    """Packed words -> the upload, whether or not it left."""
    left: list[Upload] = field(default_factory=list)
    revealed: set[bytes] = field(default_factory=set)
    """Shares that left in the clear."""
    ciphertexts: set[bytes] = field(default_factory=set)
    """Sealed shares that left."""

    unbound: list[tuple[str, str]] = field(default_factory=list)
    """Contexts of masks that were made for another context as well."""

    def bind(self, seed: bytes, context: tuple[str, str]) -> None:
        """A mask belongs to one manifest and one key list (C5)."""
        if self.contexts.setdefault(seed, context) != context:
            self.unbound.append(context)

    def known_sums(self, colluding: Iterable[SiloId], held: Iterable[bytes] = ()) -> list[Row]:
        """A basis of the combinations of honest updates that colluders, with the secrets ``held``, can compute."""
        colluders = frozenset(colluding)
        known = {secret for silo in colluders for secret in self.secrets[silo]} | set(held)
        known |= self._recovered(known)
        public = _public_keys(known)
        rows = []
        for upload in dict.fromkeys(self.left):
            if upload.update.silo in colluders:
                continue
            row: Row = {upload.update: 1}
            for seeds, sign in ((upload.added, 1), (upload.subtracted, -1)):
                for seed in seeds:
                    if not (self.ends.get(seed, frozenset()) & public or self.self_masks.get(seed) in known):
                        row[seed] = (row.get(seed, 0) + sign) % _PRIME
            rows.append({column: value for column, value in row.items() if value})
        reduced = _reduced(rows, lambda column: not isinstance(column, Update))
        return [row for row in reduced if all(isinstance(column, Update) for column in row)]

    def _recovered(self, known: set[bytes]) -> set[bytes]:
        public, clear = _public_keys(known), set(self.revealed)
        for ciphertext in self.ciphertexts:
            if ciphertext not in self.sealed:
                continue  # damaged, or made by the adversary
            key, pair = self.sealed[ciphertext]
            if self.ends[key] & public:
                clear |= {pair[: len(pair) // 2], pair[len(pair) // 2 :]}
        holders: dict[int, set[int]] = defaultdict(set)
        for share in clear & self.shares.keys():
            polynomial, x = self.shares[share]
            holders[polynomial].add(x)
        return {
            secret
            for number, (secret, needed) in enumerate(self.polynomials)
            if len(holders[number]) >= needed
        }


def smallest(rows: Sequence[Row], below: int) -> tuple[Update, ...] | None:
    """Fewer than ``below`` updates of which some combination is known, if there are such."""
    columns = sorted(
        {c for row in rows for c in row if isinstance(c, Update)}, key=lambda u: (u.round, u.silo, u.content)
    )
    for size in range(1, below):
        for chosen in combinations(columns, size):
            outside = [{c: v for c, v in row.items() if c not in chosen} for row in rows]
            if rank(outside) < len(rows):
                return chosen
    return None


def rank(rows: Iterable[Row]) -> int:
    return len(_reduced([row for row in rows if row], lambda column: True))


def _reduced(rows: Sequence[Row], eliminate: Callable[[Hashable], bool]) -> list[Row]:
    """Independent rows of the same span. No row without a column to ``eliminate`` could be combined from the rest."""
    left, done = [row for row in rows if row], []
    while left:
        # Rows with a column to eliminate first.
        index, pivot = next(
            ((i, column) for i, row in enumerate(left) for column in row if eliminate(column)),
            (0, next(iter(left[0]))),
        )
        row = left.pop(index)
        inverse = pow(row[pivot], -1, _PRIME)
        left = [rest for other in left if (rest := _minus(other, row, inverse, pivot))]
        done.append(row)
    return done


def _minus(other: Row, row: Row, inverse: int, pivot: Hashable) -> Row:
    factor = other.get(pivot, 0) * inverse % _PRIME
    if not factor:
        return other
    result = dict(other)
    for column, value in row.items():
        result[column] = (result.get(column, 0) - factor * value) % _PRIME
        if not result[column]:
            del result[column]
    return result


def _public_keys(private_keys: Iterable[bytes]) -> set[bytes]:
    return {AgreementKey(key).public_key for key in private_keys if len(key) == AgreementKey.length_bytes}
