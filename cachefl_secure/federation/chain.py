"""A party's verified rounds and caches: the same code at the coordinator, at a silo and for an auditor.

    models/0000.safetensors     the cache that the plan names
    models/0007.safetensors     the cache after the last round
    rounds/0007/aggregate.bin   the sum that the record names

Every model is a function of the initial cache and the sums, so only the first and the last are kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cachefl_secure.cache.model import (
    CacheModel,
    cache_digest,
    cache_from_bytes,
    cache_to_bytes,
    has_unit_rows,
)
from cachefl_secure.errors import ConfigError, PeerError, RecordRejected
from cachefl_secure.federation.applying import apply_aggregate
from cachefl_secure.federation.record import (
    Participation,
    RoundRecord,
    check_record,
    open_record,
)
from cachefl_secure.federation.records import Records
from cachefl_secure.federation.roster_change import RosterHistory
from cachefl_secure.federation.server_steps import Moments, server_step
from cachefl_secure.federation.state_dir import StateDir, round_file
from cachefl_secure.names import Digest
from cachefl_secure.plan import FederationPlan
from cachefl_secure.protocol.encoding import DecodedSum, decode_sum
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, aggregate_digest
from cachefl_secure.server_plan import MeanServer


def open_aggregate(aggregate: bytes, record: RoundRecord, parameters: RoundParameters) -> DecodedSum:
    """Step (5) of the record's verification.

    Raises:
        RecordRejected: not the sum named, wrong size, or outside what the survivors can have sent.
    """
    if aggregate_digest(aggregate) != record.aggregate_digest:
        raise RecordRejected(5, "the sum delivered is not the sum named")
    try:
        decoded = decode_sum(AggregateSum.from_bytes(aggregate, parameters), parameters)
    except (PeerError, ValueError) as error:
        raise RecordRejected(5, f"not a sum of this round: {error}") from None
    bound = parameters.sum_bound(len(record.survivors)) * parameters.grid_step
    if decoded.values.size and float(np.abs(decoded.values).max()) > bound * (1 + 1e-12):
        raise RecordRejected(5, "outside what the survivors can have sent")
    for segment in parameters.segments:
        if int(np.abs(decoded.integers[segment.name]).max()) > len(record.survivors) * segment.bound:
            raise RecordRejected(5, f"{segment.name}: outside what the survivors can have sent")
    if decoded.saturated != record.saturated:
        raise RecordRejected(5, "another count of clamped entries")
    return decoded


class Chain(Records):
    """The records a party holds, with the caches that follow from them.

    Opening verifies steps (1) to (4) of every record; ``models`` verifies (5) and (6) as it recomputes.
    """

    def __init__(self, state: StateDir, plan: FederationPlan, rosters: RosterHistory) -> None:
        super().__init__(state, plan, rosters)
        self._remembered: tuple[str, Moments] = ("", ())

    def initial_model(self) -> CacheModel:
        """The cache that the plan names.

        Raises:
            ConfigError: the file is not that cache.
        """
        return self._stored_model(0, Digest(self._plan.cache.initial_digest))

    def model(self) -> CacheModel:
        """The cache after the last round; recomputed from the sums if its file was lost."""
        try:
            return self._stored_model(self.position.round, self.position.cache_digest)
        except ConfigError:
            *_, (_, last) = self.models()
            return last

    def models(self) -> Iterator[tuple[int, CacheModel]]:
        """(round, cache) from round 0 on, recomputed from the initial cache and the sums: steps (5), (6)."""
        model: CacheModel = self.initial_model()
        moments: Moments = ()
        yield 0, model
        for verified in self.verified:
            record = verified.record
            decoded = self._opened(record)
            model, moments = apply_aggregate(model, moments, decoded, len(record.survivors), self._plan)
            if cache_digest(model) != record.cache_after:
                raise RecordRejected(6, f"round {record.round}: the cache after is not what the sum gives")
            yield record.round, model

    def after(self, decoded: DecodedSum, survivors: int) -> CacheModel:
        """The cache that one more round with this sum leads to."""
        return apply_aggregate(self.model(), self._moments(), decoded, survivors, self._plan)[0]

    def _moments(self) -> Moments:
        """What the server's optimizer remembers of the rounds so far: kept in memory, first recomputed from their sums."""
        if isinstance(self._plan.server, MeanServer):
            return ()
        held = self.position.record_digest
        if self._remembered[0] != held:
            moments: Moments = ()
            for verified in self.verified:
                survivors = len(verified.record.survivors)
                mean = self._opened(verified.record).values / survivors
                moments = server_step(self._plan.server, moments, mean)[1]
            self._remembered = held, moments
        return self._remembered[1]

    def _opened(self, record: RoundRecord) -> DecodedSum:
        roster = self._rosters.named(record.roster_digest)
        if roster is None:
            raise RecordRejected(2, f"round {record.round}: another roster")
        parameters = RoundParameters.derive(self._plan, len(record.cohort), len(roster.members))
        return open_aggregate(self._aggregate(record.round), record, parameters)

    def extend(self, raw: bytes, aggregate: bytes, seen: Participation | None) -> RoundRecord:
        """Verifies a record in all its steps and commits it; a record already held changes nothing.

        Raises:
            RecordRejected: names the step; nothing was written.
        """
        record, digest = open_record(raw, self._plan)  # (1)
        if any(digest == held.digest for held in self.verified):
            return record
        roster = self.roster_of(record)
        parameters = check_record(record, self._plan, roster, self.position, seen)  # (2) (3) (4) (7)
        decoded = open_aggregate(aggregate, record, parameters)  # (5)
        survivors = len(record.survivors)
        model, moments = apply_aggregate(self.model(), self._moments(), decoded, survivors, self._plan)
        if cache_digest(model) != record.cache_after:  # (6)
            raise RecordRejected(6, "the cache after is not what the sum gives")
        self._commit(record, digest, raw, aggregate, model)
        self._remembered = digest, moments
        return record

    def _commit(
        self, record: RoundRecord, digest: Digest, raw: bytes, aggregate: bytes, model: CacheModel
    ) -> None:
        before = self.position.round
        self._state.write(round_file(record.round, "aggregate.bin"), aggregate)
        self._state.write(_model_file(record.round), cache_to_bytes(model))
        self._state.write(
            round_file(record.round, "record.json"), raw
        )  # last: this is what commits the round
        self._accept(record, digest)
        if before > 0:
            self._state.remove(_model_file(before))

    def rounds_after(self, round_number: int) -> list[tuple[bytes, bytes]]:
        """(record, sum) of every later round, for a silo that missed them."""
        later = [held.record.round for held in self.verified if held.record.round > round_number]
        return [
            (self._state.read(round_file(number, "record.json")), self._aggregate(number)) for number in later
        ]

    def initial_cache_bytes(self) -> bytes:
        return self._state.read(_model_file(0))

    def _aggregate(self, number: int) -> bytes:
        return self._state.read(round_file(number, "aggregate.bin"))

    def _stored_model(self, number: int, digest: Digest) -> CacheModel:
        path = self._state.path(_model_file(number))
        model = cache_from_bytes(self._state.read(_model_file(number)), file=str(path))
        if cache_digest(model) != digest:
            raise ConfigError(str(path), "", f"not the cache {digest[:16]} that the chain of records names")
        return model


def install_initial_cache(state: StateDir, plan: FederationPlan, content: bytes) -> None:
    """Keeps the cache that round 1 starts from.

    Raises:
        PeerError: not the cache that the plan names, of other sizes or with another alpha, beta or scale than the
            plan says, or its keys or text features have not unit norm, or it holds sums.
    """
    try:
        cache = cache_from_bytes(content, file="initial cache")
    except ConfigError as error:
        raise PeerError("coordinator", str(error)) from None
    if cache_digest(cache) != plan.cache.initial_digest:
        raise PeerError("coordinator", "the initial cache is not the one that the plan names")
    sizes = (cache.number_of_keys, cache.number_of_classes, cache.feature_dim)
    if sizes != (plan.number_of_keys, len(plan.classes), plan.encoder.feature_dim):
        # Else an update would be of another length than the round's, which a silo would find out after its charge.
        raise PeerError("coordinator", "the initial cache is of other sizes than the plan says")
    if cache.sums is not None:
        raise PeerError("coordinator", "the initial cache holds sums, which only a round can make")
    if (cache.alpha, cache.beta, cache.logit_scale) != (
        plan.cache.model_alpha,
        plan.cache.beta,
        plan.cache.logit_scale,
    ):
        raise PeerError(
            "coordinator", "the initial cache has another alpha, beta or scale than the plan says"
        )
    if not has_unit_rows(cache):
        raise PeerError("coordinator", "keys or text features of the initial cache have not unit norm")
    state.write(_model_file(0), content)


def _model_file(number: int) -> str:
    return f"models/{number:04d}.safetensors"
