"""What must hold after every event, and what the other side knows.

I1  a committed sum is the sum of its survivors' updates, each once: as integers, in every vector of it
I2  the coordinator with f colluders opens at most one sum over a round's updates, and it holds enough honest ones
I3  a masked input leaves only if its charge is on disk, for the plan's mechanism; no more updates leave than were
    charged
I4  a mask seed covers one message that leaves, and each place of its stream one word of it; every word is covered
I5  after the faults stop, an honest coordinator gets a record
I6  charges never disappear from a ledger, and each adds to both epsilons
I7  a silo gives one reply to a phase of an attempt, and only named errors come out
I8  no secret is in a message or in an unsealed file
I9  of an epoch there is one roster, whoever holds it, approved by a quorum of the one before; no silo is ahead of
    the coordinator or without its key
I10 with one release, no silo lets a second one go, whatever became of the first, and no second sum comes to be known
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, pairwise
from typing import Any

import msgspec

from cachefl_secure.federation import letters
from cachefl_secure.federation.record import RoundRecord
from cachefl_secure.names import SiloId
from cachefl_secure.protocol.messages import (
    Manifest,
    MaskedInput,
    SealedShares,
    ShareDelivery,
    Signed,
    manifest_digest,
)
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import EncodedUpdate, MaskedUpdate
from tests.simulation.knowledge import Knowledge, Update, Upload, smallest
from tests.simulation.mechanisms import ONE_RELEASE
from tests.simulation.sums import wrong_sum, wrongly_masked


class Violation(AssertionError):
    """An invariant does not hold. The schedule's seed replays it."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant, self.what = invariant, what

    def __reduce__(self) -> tuple[Any, ...]:
        """Comes whole out of a worker process, its notes with it."""
        return Violation, (self.invariant, self.what), self.__dict__


PHASES = (letters.MANIFEST, letters.SHARE, letters.MASKED_INPUT, letters.CERTIFICATE, letters.UNMASK)


@dataclass
class AttemptView:
    """What honest silos said in one attempt, as whoever relays it sees it."""

    manifest: Manifest
    parameters: RoundParameters
    sharers: dict[SiloId, frozenset[SiloId]] = field(default_factory=dict)
    """Silo -> the share set (U2) that its masked input was made for."""
    revealed: dict[tuple[SiloId, str], set[SiloId]] = field(default_factory=lambda: defaultdict(set))
    """(owner, kind) -> silos that revealed their share."""


@dataclass
class Observer:
    """Sees everything that leaves a silo, every mask and every ledger, and complains."""

    parameters: Mapping[tuple[int, int], RoundParameters]
    """By sizes of cohort and roster."""
    members: int
    """In the first roster."""
    mechanism: Mapping[str, str]
    """What every charge must be for, as a ledger says it."""
    roster_sizes: dict[str, int] = field(default_factory=dict)
    """Of rosters that were proposed later, by digest."""
    attempts: dict[str, AttemptView] = field(default_factory=dict)
    current: dict[SiloId, str] = field(default_factory=dict)
    """Silo -> digest of the manifest that it answered last."""
    replies: dict[tuple[SiloId, str, str], bytes] = field(default_factory=dict)
    adverts: dict[tuple[SiloId, bytes], str] = field(default_factory=dict)
    masks: dict[tuple[SiloId, bytes], bytes] = field(default_factory=dict)
    encoded: dict[tuple[SiloId, int], dict[bytes, EncodedUpdate]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """(silo, round) -> its encoded updates, by their bytes. Never more than one may leave."""
    charges: dict[SiloId, int] = field(default_factory=lambda: defaultdict(int))
    knowledge: Knowledge = field(default_factory=Knowledge)
    recorded: list[int] = field(default_factory=list)
    """Size of the roster of each record."""

    # --- events

    def on_reply(self, silo: SiloId, phase: str, request: bytes, raw: bytes, charged: bytes) -> None:
        """A reply left the silo; ``charged`` is what of its ledger is safe."""
        rounds = self._charged_rounds(
            silo, charged
        )  # I6, whatever it answers: a charge that is lost may be made again
        reply = msgspec.msgpack.decode(raw, type=letters.Reply)
        if reply.declined is not None or phase not in PHASES:
            return
        if phase == letters.MANIFEST:
            manifest = msgspec.msgpack.decode(
                msgspec.msgpack.decode(request, type=Signed).body, type=Manifest
            )
            digest = manifest_digest(manifest)
            if digest not in self.attempts:
                parameters = self._parameters(len(manifest.cohort), manifest.roster_digest)
                self.attempts[digest] = AttemptView(manifest, parameters)
            self.current[silo] = digest
            if self.adverts.setdefault((silo, _body_of(reply.answer)), digest) != digest:
                raise Violation("I4", f"{silo} advertised the keys of another attempt")
        current = self.current[silo]
        known = self.replies.setdefault((silo, current, phase), reply.answer)
        if known != reply.answer:
            raise Violation("I7", f"{silo} gave two replies in {phase}")
        if phase == letters.SHARE:
            dealt = msgspec.msgpack.decode(_body_of(reply.answer), type=SealedShares)
            self.knowledge.ciphertexts |= {sealed.ciphertext for sealed in dealt.sealed}
        if phase == letters.MASKED_INPUT:
            masked = msgspec.msgpack.decode(_body_of(reply.answer), type=MaskedInput)
            self._on_left(silo, self.knowledge.made[masked.words], masked)
            self._on_release(silo)
            self._on_masked_input(silo, self.attempts[current], request, rounds)
        if phase == letters.UNMASK:
            self._on_shares(silo, self.attempts[current], reply.answer)

    def _parameters(self, cohort: int, roster: str) -> RoundParameters:
        return self.parameters[cohort, self.roster_sizes.get(roster, self.members)]

    def _on_masked_input(self, silo: SiloId, attempt: AttemptView, request: bytes, rounds: list[int]) -> None:
        delivery = msgspec.msgpack.decode(
            msgspec.msgpack.decode(request, type=Signed).body, type=ShareDelivery
        )
        attempt.sharers[silo] = frozenset(delivery.sharers)
        if attempt.manifest.round not in rounds:
            raise Violation("I3", f"{silo} sent in round {attempt.manifest.round}, charged are {rounds}")
        if len(self.encoded[silo, attempt.manifest.round]) > 1:
            raise Violation("I3", f"{silo} has two updates for one charge")

    def _on_left(self, silo: SiloId, upload: Upload, masked: MaskedInput) -> None:
        """I4. What was made and could not be journalled never left: a delivery that differs is then masked anew."""
        self.knowledge.left.append(upload)
        digest = hashlib.sha256(masked.words + masked.counters).digest()
        for seed in (*upload.added, *upload.subtracted):
            if self.masks.setdefault((silo, seed), digest) != digest:
                raise Violation("I4", f"{silo} put one mask on two messages")

    @property
    def is_one_release(self) -> bool:
        return self.mechanism["kind"] in ONE_RELEASE

    def _on_release(self, silo: SiloId) -> None:
        """I10, of one silo."""
        released = {upload.update for upload in self.knowledge.left if upload.update.silo == silo}
        if self.is_one_release and len(released) > 1:
            raise Violation("I10", f"{silo} let {len(released)} releases go")

    def _charged_rounds(self, silo: SiloId, charged: bytes) -> list[int]:
        entries = (body for line in charged.splitlines() if (body := _entry(line)) is not None)
        spends = [body for body in entries if body["kind"] == "spend"]
        rounds = [body["round"] for body in spends]
        if len(rounds) < self.charges[silo] or len(set(rounds)) != len(rounds):
            raise Violation("I6", f"{silo} had {self.charges[silo]} charges, now {rounds}")
        self.charges[silo] = len(rounds)
        for spend in spends:
            if spend["mechanism"] != self.mechanism:
                raise Violation("I3", f"{silo} was charged for another mechanism in round {spend['round']}")
        for view in ("local", "aggregate"):
            path = [0.0, *(float(s[f"{view}_{when}"]) for s in spends for when in ("before", "after"))]
            if path[0::2] != [*path[1::2], path[-1]] or not all(a < b for a, b in pairwise(path[0::2])):
                raise Violation("I6", f"{silo}: {view} epsilon went {path}")
        return rounds

    def sent_rounds(self, ledger: bytes) -> set[int]:
        """Rounds in which a silo wrote down that its update leaves."""
        entries = (body for line in ledger.splitlines() if (body := _entry(line)) is not None)
        return {body["round"] for body in entries if body["kind"] == "sent"}

    def _on_shares(self, silo: SiloId, attempt: AttemptView, answer: bytes) -> None:
        # Not as an ``UnmaskShares``: a bug may send what that class refuses.
        _, self_masks, mask_keys = msgspec.msgpack.decode(_body_of(answer))
        for kind, revealed in (("self mask", self_masks), ("mask key", mask_keys)):
            for owner, share in revealed:
                self.knowledge.revealed.add(share)
                attempt.revealed[SiloId(owner), kind].add(silo)

    def on_mask(
        self,
        silo: SiloId,
        update: EncodedUpdate,
        added: Sequence[bytes],
        subtracted: Sequence[bytes],
        masked: MaskedUpdate,
        parameters: RoundParameters,
    ) -> None:
        """The silo made a masked vector under these seeds."""
        if (wrong := wrongly_masked(update, added, subtracted, masked, parameters)) is not None:
            raise Violation("I4", f"{silo}: {wrong} is not under its part of the masks")

    def on_encoded(self, silo: SiloId, round_number: int, update: EncodedUpdate) -> None:
        self.encoded[silo, round_number][update.to_bytes()] = update

    def on_record(self, record: RoundRecord, content: bytes) -> None:
        """I1, on the sum that a coordinator committed and silos accepted."""
        updates: list[EncodedUpdate] = []
        for survivor in record.survivors:
            ours = self.encoded[SiloId(survivor), record.round]
            if len(ours) != 1:
                raise Violation("I1", f"{survivor} is in a sum with {len(ours)} updates")
            updates.extend(ours.values())
        parameters = self._parameters(len(record.cohort), record.roster_digest)
        self.recorded.append(parameters.roster_size)
        if (wrong := wrong_sum(content, updates, parameters)) is not None:
            raise Violation("I1", f"round {record.round}: {wrong} is not the sum of its survivors'")
        if self.is_one_release and len(self.recorded) > 1:
            raise Violation("I10", f"round {record.round}: the record of a second release")

    # --- what is known

    def check_knowledge(
        self, silos: Collection[SiloId], colluders: int, held: Collection[bytes] = ()
    ) -> None:
        """I2, for every choice of colluding silos: by what the protocol calls things, then by the bytes.

        ``held`` are private keys that the coordinator made itself.
        """
        for chosen in combinations(sorted(silos), colluders):
            opened: dict[int, set[frozenset[SiloId]]] = defaultdict(set)
            for attempt in self.attempts.values():
                sums = set(self._opened(attempt, frozenset(chosen)))
                self._check_enough(attempt, sums, len(chosen))
                opened[attempt.manifest.round] |= sums
            for number, sums in opened.items():
                if len(sums) > 1:
                    raise Violation("I2", f"round {number}: {len(sums)} sums over the same updates are open")
            self._check_exactly(chosen, held)
        if self.knowledge.unbound:
            raise Violation("I4", "a mask was made for two manifests or key lists")

    def _check_exactly(self, chosen: Collection[SiloId], held: Collection[bytes]) -> None:
        rows = self.knowledge.known_sums(chosen, held)
        fewest = [attempt.parameters.minimum_survivors for attempt in self.attempts.values()]
        few = smallest(rows, min(fewest, default=0) - len(chosen))
        if few is not None:
            raise Violation("I2", f"a combination of the updates of {[u.silo for u in few]} only is known")
        for number in {attempt.manifest.round for attempt in self.attempts.values()}:
            own = [row for row in rows if {c.round for c in row if isinstance(c, Update)} == {number}]
            fewest = [
                a.parameters.minimum_survivors for a in self.attempts.values() if a.manifest.round == number
            ]
            if (few := smallest(own, min(fewest) - len(chosen))) is not None:
                raise Violation("I2", f"round {number}: the sum of {[u.silo for u in few]} only is known")
        rounds = {column.round for row in rows for column in row if isinstance(column, Update)}
        if len(rows) > len(rounds):
            raise Violation("I2", f"{len(rows)} sums over the updates of {len(rounds)} rounds are known")
        if self.is_one_release and len(rows) > 1:
            raise Violation("I10", f"{len(rows)} sums of releases are known")

    def _check_enough(
        self, attempt: AttemptView, sums: Collection[frozenset[SiloId]], colluding: int
    ) -> None:
        allowed = attempt.parameters.minimum_survivors - colluding
        for honest in sums:
            if len(honest) < allowed:
                number = attempt.manifest.round
                raise Violation("I2", f"round {number}: a sum over {sorted(honest)} only is open")

    def _opened(self, attempt: AttemptView, colluding: frozenset[SiloId]) -> list[frozenset[SiloId]]:
        """The sets of honest silos whose updates' sum follows from what left, in this attempt.

        A combination of masked vectors is free of masks that nobody knows only if it is constant on every
        set of silos that unknown pairwise masks connect, and no silo of that set has an unknown self mask
        or a pairwise mask that the other end did not use.
        """
        sent = {silo: peers for silo, peers in attempt.sharers.items() if silo not in colluding}
        left, opened = set(sent), []
        while left:
            group, border, free = set[SiloId](), {min(left)}, True
            while border:
                silo = border.pop()
                group.add(silo)
                free = free and self._known(attempt, silo, "self mask", colluding)
                for peer in sent[silo] - {silo} - colluding:
                    if self._pair_known(attempt, silo, peer, colluding):
                        continue
                    if peer in sent and silo in sent[peer]:
                        border |= {peer} - group
                    else:
                        free = False
            left -= group
            if free:
                opened.append(frozenset(group))
        return opened

    def _pair_known(
        self, attempt: AttemptView, one: SiloId, other: SiloId, colluding: frozenset[SiloId]
    ) -> bool:
        return any(self._known(attempt, silo, "mask key", colluding) for silo in (one, other))

    def _known(self, attempt: AttemptView, owner: SiloId, kind: str, colluding: frozenset[SiloId]) -> bool:
        return len(attempt.revealed[owner, kind] | colluding) >= attempt.parameters.threshold


@lru_cache(1 << 12)
def _entry(line: bytes) -> dict[str, Any] | None:
    """A ledger's entry, unless a crash tore it."""
    try:
        body: dict[str, Any] = json.loads(line)["body"]
    except ValueError:
        return None
    return body


def _body_of(envelope: bytes) -> bytes:
    return msgspec.msgpack.decode(envelope, type=Signed).body


def search_secrets(
    secrets: Collection[bytes], messages: Collection[bytes], files: Iterable[tuple[str, bytes]]
) -> None:
    """I8: none of these bytes is in what left, or was ever written outside the places for secrets."""
    unsealed = (
        content
        for path, content in files
        if "/keys/" not in path and not path.endswith("/features.safetensors")
    )
    everything = b"\0".join([*messages, *unsealed])
    for secret in secrets:
        if len(secret) == 32 and secret in everything:
            raise Violation("I8", "a secret left in the clear")
