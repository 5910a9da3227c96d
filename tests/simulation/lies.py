"""A malicious coordinator: it holds the coordinator's signing key and those of f silos, and tells everybody
what it likes. Strategies, not noise: a random liar never finds the attack that a missing check opens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from itertools import combinations

import msgspec

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation import letters
from cachefl_secure.federation.record import Position, genesis
from cachefl_secure.names import COORDINATOR, Digest, SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import NOTHING_YET, Attempt, body_digest, share_view, sign_manifest
from cachefl_secure.protocol.certificate import statement_digest, statement_of
from cachefl_secure.protocol.masking import KeySchedule
from cachefl_secure.protocol.messages import (
    Advertisement,
    Body,
    Certificate,
    Header,
    KeyList,
    Manifest,
    SealedShare,
    SealedShares,
    ShareDelivery,
    Signed,
    Statement,
    StatementSignature,
    SurvivorSet,
    roster_digest,
)
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.sharing import Channel, deal, seal
from cachefl_secure.protocol.silo_secrets import SiloSecrets
from tests.simulation.world import COORDINATOR_ROOT, World

Set = frozenset[SiloId]
Choice = Callable[[SiloId], Set]
"""What a silo is told; an empty set says nothing to it."""


@dataclass
class Scheme:
    """One attempt that the liar drives by hand."""

    world: World
    attempt: Attempt
    colluders: Set
    adverts: dict[SiloId, Signed] = field(default_factory=dict)
    key_lists: dict[SiloId, KeyList] = field(default_factory=dict)
    sealed: dict[SiloId, SealedShares] = field(default_factory=dict)
    sharers: dict[SiloId, Set] = field(default_factory=dict)
    inputs: dict[SiloId, Header] = field(default_factory=dict)
    signed: dict[SiloId, Digest] = field(default_factory=dict)
    """The statement that each silo signed last."""
    signatures: dict[tuple[Digest, Set], dict[SiloId, bytes]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """(statement, survivors) -> who signed it."""

    @classmethod
    def open(
        cls,
        world: World,
        cohort: Iterable[SiloId],
        attempt: int,
        number: int = 1,
        position: Position | None = None,
    ) -> Scheme:
        """The manifest, the same to all of the cohort. ``position``: other than before the first round."""
        template = world.template
        position = position or genesis(template.plan)
        names = tuple(sorted(cohort))
        manifest = Manifest(
            plan_digest=plan_digest(template.plan),
            roster_digest=roster_digest(template.roster),
            round=number,
            attempt=attempt,
            cohort=names,
            cache_digest=position.cache_digest,
            previous_record=position.record_digest,
        )
        parameters = RoundParameters.derive(template.plan, len(names), len(template.roster.members))
        opened = Attempt.begin(manifest, template.roster, template.plan.coordinator_key, parameters)
        colluders = frozenset(world.rng.sample(sorted(world.silos), template.colluders))
        scheme = cls(world, opened, colluders)
        for silo in names:
            answer = scheme._deliver(silo, letters.MANIFEST, scheme.manifest_message)
            if answer is not None:
                scheme.adverts[silo] = answer
        return scheme

    @property
    def manifest_message(self) -> bytes:
        return sign_manifest(self.attempt.manifest, self._key)

    @property
    def _key(self) -> SigningKey:
        return self.world.template.signing_key(COORDINATOR_ROOT)

    def _deliver(self, silo: SiloId, phase: str, content: bytes) -> Signed | None:
        raw = self.world.deliver(silo, phase, content)
        if raw is None:  # it died; ask once more
            raw = self.world.deliver(silo, phase, content)
        if raw is None:
            return None
        reply = msgspec.msgpack.decode(raw, type=letters.Reply)
        return msgspec.msgpack.decode(reply.answer, type=Signed) if reply.answer else None

    def tell(self, silo: SiloId, phase: str, body: Body) -> Signed | None:
        signed = self.attempt.sign(body, COORDINATOR, self._key, self._view(silo, body))
        return self._deliver(silo, phase, wire.encode(signed))

    def _view(self, silo: SiloId, body: Body) -> Digest:
        """What that silo has received: a liar knows, for it sent it."""
        if isinstance(body, KeyList) or silo not in self.key_lists:
            return NOTHING_YET
        key_list = KeySchedule.of(self.attempt.digest, self.key_lists[silo]).key_list
        if isinstance(body, ShareDelivery) or silo not in self.sharers:
            return key_list
        if isinstance(body, SurvivorSet) or silo not in self.signed:
            return share_view(key_list, self.sharers[silo])
        return self.signed[silo]

    # --- phases, with a choice for every silo

    def share_keys(self, told: Choice) -> None:
        for silo in sorted(self.adverts):
            listed = told(silo) & frozenset(self.adverts)
            if not listed:
                continue
            key_list = KeyList(tuple(self.adverts[other] for other in sorted(listed)))
            answer = self.tell(silo, letters.SHARE, key_list)
            if answer is not None:
                self.key_lists[silo] = key_list
                self.sealed[silo] = msgspec.msgpack.decode(answer.body, type=SealedShares)

    def deliver_shares(self, told: Choice) -> None:
        for silo in sorted(self.sealed):
            sharers = told(silo) & frozenset(self.sealed)
            dealt = [
                SealedShare(dealer, sealed.ciphertext)
                for dealer in sorted(sharers - {silo})
                for sealed in self.sealed[dealer].sealed
                if sealed.silo == silo
            ]
            if not sharers:
                continue
            delivery = ShareDelivery(tuple(sorted(sharers)), tuple(dealt))
            answer = self.tell(silo, letters.MASKED_INPUT, delivery)
            if answer is not None:
                self.sharers[silo] = sharers
                self.inputs[silo] = Header(silo, body_digest(answer.body), answer.signature)

    def propose(self, told: Choice) -> None:
        """Harvests signatures: from silos by asking, from colluders by having their keys."""
        for silo in sorted(self.inputs):
            survivors = told(silo) & frozenset(self.inputs)
            if not survivors:
                continue
            proposal = SurvivorSet(tuple(self.inputs[other] for other in sorted(survivors)))
            answer = self.tell(silo, letters.CERTIFICATE, proposal)
            if answer is not None:
                signed = statement_digest(msgspec.msgpack.decode(answer.body, type=Statement))
                self.signatures[signed, survivors][silo] = answer.signature
                self.signed[silo] = signed
        for (signed, survivors), signatures in self.signatures.items():
            for silo in self.colluders & survivors:
                signatures[silo] = self._forge(silo, signed, survivors)

    def _forge(self, silo: SiloId, signed: Digest, survivors: Set) -> bytes:
        for honest in sorted(set(self.key_lists) - self.colluders):
            statement = statement_of(
                self.attempt.digest,
                KeySchedule.of(self.attempt.digest, self.key_lists[honest]).key_list,
                self.sharers.get(honest, ()),
                {other: self.inputs[other].body_digest for other in survivors},
            )
            if statement_digest(statement) == signed:
                key = self.world.template.signing_key(silo)
                return self.attempt.sign(statement, silo, key, signed).signature
        return bytes(64)

    def certify(self, *, most: int | None = None) -> None:
        """Sends every certificate that can be made, however small, to every silo of its set."""
        quorum = most or self.attempt.parameters.quorum
        for (_, survivors), signatures in self.signatures.items():
            signers = sorted(signatures)[:quorum]
            certificate = Certificate(tuple(StatementSignature(s, signatures[s]) for s in signers))
            for silo in sorted(survivors):
                self.tell(silo, letters.UNMASK, certificate)

    def all(self, _: SiloId) -> Set:
        return frozenset(self.attempt.manifest.cohort)

    def everything(self, survivors: Choice) -> None:
        """Honest until the survivor set."""
        self.share_keys(self.all)
        self.deliver_shares(self.all)
        self.propose(survivors)
        self.certify()


def _names(world: World) -> list[SiloId]:
    return sorted(world.silos)


def _subset(world: World, among: Collection[SiloId], least: int) -> Set:
    names = sorted(among)
    size = world.rng.randint(min(least, len(names)), len(names))
    return frozenset(world.rng.sample(names, size))


def _restart_some(world: World) -> None:
    for name, silo in world.silos.items():
        if world.rng.random() < 0.4:
            silo.die()
            world.disk.on_death(name)


def two_survivor_sets(world: World) -> None:
    """Half of the silos is shown one set, half another; then each the other's; certificates for both."""
    scheme = Scheme.open(world, _names(world), 1)
    scheme.share_keys(scheme.all)
    scheme.deliver_shares(scheme.all)
    left_out = world.rng.sample(_names(world), 2)
    sets = [frozenset(_names(world)) - {silo} for silo in left_out] + [frozenset(_names(world))]
    first, second = world.rng.sample(sets, 2)
    half = _subset(world, _names(world), 1)
    scheme.propose(lambda silo: first if silo in half else second)
    _restart_some(world)
    scheme.propose(lambda silo: second if silo in half else first)
    _restart_some(world)
    scheme.certify()
    scheme.certify(most=99)
    _restart_some(world)
    scheme.certify()


def isolate_one(world: World) -> None:
    """Each silo is shown the smallest set with itself in it, to open a sum over few."""
    scheme = Scheme.open(world, _names(world), 1)
    scheme.share_keys(scheme.all)
    scheme.deliver_shares(scheme.all)
    least = max(1, scheme.attempt.parameters.minimum_survivors - world.rng.randint(0, 2))
    core = frozenset(world.rng.sample(_names(world), least - 1)) if least > 1 else frozenset()
    scheme.propose(lambda silo: core | {silo})
    scheme.certify()
    for others in combinations(_names(world), least):
        scheme.propose(lambda silo, chosen=frozenset(others): chosen)  # type: ignore[misc]
    scheme.certify(most=99)


def a_second_sum_with_those_not_asked(world: World) -> None:
    """Opens a sum with as few answers as it takes, then a smaller one in the next attempt with the rest."""
    scheme, names = Scheme.open(world, _names(world), 1), _names(world)
    scheme.share_keys(scheme.all)
    scheme.deliver_shares(scheme.all)
    asked = frozenset(world.rng.sample(names, scheme.attempt.parameters.threshold))
    scheme.propose(lambda silo: frozenset(names) if silo in asked else frozenset())
    for (_, _), signatures in scheme.signatures.items():
        certificate = Certificate(tuple(StatementSignature(s, signatures[s]) for s in sorted(signatures)))
        for silo in sorted(asked):
            scheme.tell(silo, letters.UNMASK, certificate)
    _restart_some(world)
    for attempt in range(2, 4):
        cohort = frozenset(names) - ({world.rng.choice(names)} if world.rng.random() < 0.7 else set())
        _try(world, cohort, attempt)


def _try(world: World, cohort: Set, attempt: int, number: int = 1) -> None:
    try:
        scheme = Scheme.open(world, cohort, attempt, number)
    except ConfigError as error:
        world.note(f"no such attempt: {error}")  # the plan itself forbids the cohort
        return
    survivors = _subset(world, cohort, scheme.attempt.parameters.minimum_survivors)
    scheme.everything(lambda silo: survivors)


def different_lists(world: World) -> None:
    """Every silo is told another list of keys, of sharers and of survivors, each legal by itself."""
    scheme = Scheme.open(world, _names(world), 1)
    least = scheme.attempt.parameters.minimum_survivors

    def chosen(silo: SiloId) -> Set:
        return _subset(world, _names(world), least) | {silo}

    scheme.share_keys(scheme.all if world.rng.random() < 0.5 else chosen)
    scheme.deliver_shares(scheme.all if world.rng.random() < 0.3 else chosen)
    scheme.propose(chosen)
    scheme.propose(scheme.all)
    scheme.certify()
    scheme.certify(most=99)


def dropped_then_late(world: World) -> None:
    """Declares silos dropped whose input it holds, gets their mask keys, then asks for their self masks."""
    scheme, names = Scheme.open(world, _names(world), 1), _names(world)
    scheme.share_keys(scheme.all)
    scheme.deliver_shares(scheme.all)
    survivors = _subset(world, names, scheme.attempt.parameters.minimum_survivors)
    scheme.propose(lambda silo: survivors)
    scheme.certify()
    _restart_some(world)
    scheme.propose(scheme.all)
    scheme.certify()
    scheme.certify(most=99)


def the_same_attempt_again(world: World) -> None:
    """After restarts: the same attempt with another cohort, an older attempt, and the same one from the start."""
    names = _names(world)
    first = Scheme.open(world, names, 2)
    first.share_keys(first.all)
    first.deliver_shares(first.all)
    _restart_some(world)
    for attempt in world.rng.sample((1, 2, 2, 3), 2):
        cohort = frozenset(names) - ({world.rng.choice(names)} if world.rng.random() < 0.5 else set())
        _try(world, cohort, attempt)
        _restart_some(world)
    first.propose(first.all)
    first.certify()


def many_rounds_one_cache(world: World) -> None:
    """Never publishes a record: round after round on the same cache, with changing cohorts."""
    for number in world.rng.sample((1, 2, 3), 2):
        cohort = _subset(world, _names(world), len(world.silos) - 1)
        _try(world, cohort, 1, number)
        if world.rng.random() < 0.5:
            _try(world, frozenset(_names(world)), 2, number)
        _restart_some(world)


def substituted_keys(world: World) -> None:
    """To each silo, the others' keys are the coordinator's own, under the best signatures that it can make."""
    scheme = Scheme.open(world, _names(world), 1)
    for victim in sorted(set(scheme.adverts) - scheme.colluders):
        fakes = {silo: SiloSecrets.generate() for silo in scheme.adverts if silo != victim}
        for fake in fakes.values():
            world.held |= {fake.mask_key.reveal(), fake.channel_key.reveal(), fake.self_mask_seed.reveal()}
        listed = {
            silo: scheme.attempt.sign(
                Advertisement(fake.mask_key.public_key, fake.channel_key.public_key),
                silo,
                world.template.signing_key(silo) if silo in scheme.colluders else scheme._key,
            )
            for silo, fake in fakes.items()
        }
        listed[victim] = scheme.adverts[victim]
        key_list = KeyList(tuple(listed[silo] for silo in sorted(listed)))
        if scheme.tell(victim, letters.SHARE, key_list) is None:
            continue
        scheme.key_lists[victim] = key_list
        schedule = KeySchedule.of(scheme.attempt.digest, key_list)
        theirs = msgspec.msgpack.decode(scheme.adverts[victim].body, type=Advertisement)
        holders, sealed = sorted(listed), []
        for silo, fake in sorted(fakes.items()):
            dealt = deal(fake, dealer=silo, holders=holders, attempt=scheme.attempt, schedule=schedule)
            channel = Channel.between(silo, fake.channel_key, victim, theirs.channel_public_key, schedule)
            sealed.append(SealedShare(silo, seal(dealt[victim], channel, schedule)))
        scheme.tell(victim, letters.MASKED_INPUT, ShareDelivery(tuple(holders), tuple(sealed)))


def a_second_release(world: World) -> None:
    """One round to its record, or to a sum that it keeps to itself; then others, to whoever would answer once more."""
    names, position = _names(world), None
    if world.rng.random() < 0.5:
        world.run_coordinator()
        with world.disk.undisturbed():
            position = world.chain().position
    else:
        _try(world, _subset(world, names, len(names) - 1), 1)
    for number in range(2, 2 + world.rng.randint(1, 2)):
        _restart_some(world)
        try:
            scheme = Scheme.open(world, names, 1, number, position)
        except ConfigError as error:
            world.note(f"no such attempt: {error}")
            continue
        scheme.everything(scheme.all)


def two_small_cohorts(world: World) -> None:
    """As few silos as it can get away with, then others of them: each opens a sum of its own over one round."""
    names, number = _names(world), 1
    for attempt in range(1, 4):
        for size in range(2, len(names) + 1):
            cohort = frozenset(world.rng.sample(names, size))
            try:
                scheme = Scheme.open(world, cohort, attempt * 10 + size, number)
            except ConfigError:
                continue
            if len(scheme.adverts) == len(cohort):
                scheme.everything(scheme.all)
                break


def other_circumstances(world: World) -> None:
    """Each silo gets a manifest of its own: another cache, record, roster, cohort, round or attempt."""
    names = _names(world)
    scheme = Scheme.open(world, names, 2)
    for silo in names:
        kinds: list[dict[str, object]] = [
            {"cache_digest": "0" * 64},
            {"previous_record": "0" * 64},
            {"roster_digest": "0" * 64},
            {"plan_digest": "0" * 64},
            {"cohort": tuple(names[:-1])},
            {"round": 2},
            {"attempt": 3},
        ]
        changes = world.rng.choice(kinds)
        other = msgspec.structs.replace(scheme.attempt.manifest, **changes)
        raw = world.deliver(silo, letters.MANIFEST, sign_manifest(other, scheme._key))
        if raw is not None and (said := msgspec.msgpack.decode(raw, type=letters.Reply).answer):
            scheme.adverts[silo] = msgspec.msgpack.decode(said, type=Signed)
    scheme.everything(scheme.all)
    scheme.certify(most=99)


STRATEGIES = (
    two_survivor_sets,
    isolate_one,
    a_second_sum_with_those_not_asked,
    different_lists,
    dropped_then_late,
    the_same_attempt_again,
    many_rounds_one_cache,
    substituted_keys,
    two_small_cohorts,
    other_circumstances,
)
