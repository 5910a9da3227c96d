"""A federation whose one round is a release of class sums and Gram matrix: sums in the chain, heads where they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cachefl_secure.cache.class_statistics import ClassStatistics
from cachefl_secure.cache.closed_form import HeadKind, class_prototypes, solve_head
from cachefl_secure.cache.evaluate import evaluate
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel, cache_digest, head_of, logits, solved_head
from cachefl_secure.errors import ConfigError, PeerError, RecordRejected, RoundAborted
from cachefl_secure.federation import coordinator_round, letters
from cachefl_secure.federation.budget import silo_budget
from cachefl_secure.federation.chain import Chain, install_initial_cache
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.inspection import audit_silo, open_chain
from cachefl_secure.federation.one_release import StatisticsChoices
from cachefl_secure.federation.sealed_update import SealedUpdate
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.federation.witnesses import witnessed_heads
from cachefl_secure.names import SiloId
from cachefl_secure.privacy import statistics
from cachefl_secure.privacy.accounting import cost_of
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.mechanism import mechanism_of
from cachefl_secure.privacy.statistics import integer_features
from cachefl_secure.privacy_plan import StatisticsPlan
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.encoding import DecodedSum, decode_sum
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate
from cachefl_secure.server_plan import MomentumServer
from cachefl_secure.statistics_layout import CLASS_SUMS, FEATURE_BITS, GRAM, UNIT
from tests import small_federation
from tests.driven import run
from tests.small_federation import (
    CLASSES,
    FEATURE_DIM,
    SmallFederation,
    all_entries,
    found,
    one_release,
    random_features,
)

RECORDS = (12, 20, 9, 15, 11)


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    return found(tmp_path, records=RECORDS, privacy=one_release())


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(DiscreteGaussian):
        def add_to(self, values: NDArray[np.int32], stream: object) -> None:
            """Nothing is added."""

    monkeypatch.setattr(statistics, "DiscreteGaussian", Silent)


def latest(directory: Path) -> CacheModel:
    return open_chain(directory).model()


def pooled() -> FeatureSet:
    parts = [random_features(number, seed) for seed, number in enumerate(RECORDS, 1)]
    return joined(parts)


def joined(parts: Sequence[FeatureSet]) -> FeatureSet:
    return FeatureSet(torch.cat([p.features for p in parts]), torch.cat([p.labels for p in parts]))


def slow_statistics(records: FeatureSet, noise_std: float) -> ClassStatistics:
    """By a loop over records that were rounded as silos round them."""
    sums, gram = np.zeros((CLASSES, FEATURE_DIM)), np.zeros((FEATURE_DIM, FEATURE_DIM))
    rows = integer_features(records.features, FEATURE_BITS) / 2.0**FEATURE_BITS
    for row, label in zip(rows, records.labels.tolist(), strict=True):
        sums[label] += row
        gram += np.outer(row, row)
    return ClassStatistics(sums, gram, noise_std)


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("head", list(HeadKind))
def test_the_federated_head_is_that_of_all_records_in_one_place(tmp_path: Path, head: HeadKind) -> None:
    choices = StatisticsChoices(expected_records=15, head=head.value)
    federation = found(tmp_path, records=RECORDS, privacy=one_release(choices))
    run(federation)
    model = latest(federation.silos[SiloId("silo-2")])
    assert model.sums is not None
    start = open_chain(federation.coordinator).initial_model()
    alone = solve_head(
        head,
        slow_statistics(pooled(), model.sums.noise_std),
        regulariser=model.sums.regulariser,
        prototypes=class_prototypes(start.cache_keys, start.key_labels, start.text_classifier),
    )
    ours = solved_head(model)
    assert alone.weight.any()
    assert (ours.weight - alone.weight).norm() <= 1e-5 * alone.weight.norm()
    assert (ours.bias - alone.bias).norm() <= 1e-5 * max(float(alone.bias.norm()), 1e-9)


Deal = Callable[[FeatureSet], list[FeatureSet]]


def _chosen(records: FeatureSet, owner: torch.Tensor) -> list[FeatureSet]:
    return [FeatureSet(records.features[owner == i], records.labels[owner == i]) for i in range(5)]


DEALS: dict[str, Deal] = {
    "by class": lambda records: _chosen(records, records.labels),
    "nearly all at one": lambda records: _chosen(records, (torch.arange(len(records)) < 8) * 1),
    "in turn": lambda records: _chosen(records, torch.arange(len(records)) % 5),
}


@pytest.mark.claim("C2")
@pytest.mark.usefixtures("no_noise")
def test_however_records_are_dealt_out_the_chain_holds_the_same_integers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So every head that is solved from them is the same too, on the same machine bit for bit."""
    records, digests = pooled(), set()
    for name, deal in DEALS.items():
        parts = deal(records)
        monkeypatch.setattr(
            small_federation, "random_features", lambda number, seed, parts=parts: parts[seed - 1]
        )
        privacy = one_release(StatisticsChoices(expected_records=70))
        federation = found(tmp_path / name, records=tuple(map(len, parts)), privacy=privacy)
        (outcome,) = run(federation)
        digests.add(outcome.record.cache_after)
        model = latest(federation.coordinator)
        assert model.sums is not None
        expected = slow_statistics(records, model.sums.noise_std)
        assert np.array_equal(model.sums.statistics.class_sums, expected.class_sums)
        assert np.array_equal(model.sums.statistics.gram, expected.gram)
    assert len(digests) == 1


@pytest.mark.claim("C2")
def test_the_sums_of_the_record_are_the_integer_sums_of_what_silos_sent(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[EncodedUpdate] = []
    genuine = SealedUpdate.encoding

    def recording(self: SealedUpdate, parameters: RoundParameters) -> EncodedUpdate:
        sent.append(all_entries(genuine(self, parameters), parameters))
        return sent[-1]

    monkeypatch.setattr(SealedUpdate, "encoding", recording)
    run(federation)
    parameters = RoundParameters.derive(federation.plan, 5, 5)
    content = (federation.coordinator / "rounds/0001/aggregate.bin").read_bytes()
    decoded = decode_sum(AggregateSum.from_bytes(content, parameters), parameters)
    assert len(sent) == 5
    for at, segment in enumerate(parameters.segments):
        signed = [each.others[at].view(segment.word.str.replace("u", "i")).astype(np.int64) for each in sent]
        assert np.array_equal(decoded.integers[segment.name], np.sum(signed, axis=0))
    model = latest(federation.coordinator)
    assert model.sums is not None
    assert np.array_equal(model.sums.gram.numpy(), decoded.integers[GRAM])
    assert np.array_equal(model.sums.class_sums.numpy().ravel(), decoded.integers[CLASS_SUMS])


def test_noise_of_the_planned_size_stands_in_the_sums(federation: SmallFederation) -> None:
    run(federation)
    model = latest(federation.coordinator)
    assert model.sums is not None
    assert isinstance(federation.plan.privacy, StatisticsPlan)
    assert model.sums.noise_std == pytest.approx(federation.plan.privacy.noise_multiplier * 5**0.5)
    away = model.sums.statistics.gram - slow_statistics(pooled(), 0.0).gram
    noise = away[np.triu_indices(FEATURE_DIM)] / model.sums.noise_std
    assert 0.75 < noise.std() < 1.25
    assert np.abs(noise).max() < 4.5


def test_every_party_holds_the_same_sums_and_keys_stay_as_they_were(federation: SmallFederation) -> None:
    (outcome,) = run(federation)
    for directory in (federation.coordinator, *federation.silos.values()):
        chain = open_chain(directory)
        assert cache_digest(chain.model()) == outcome.record.cache_after
        assert torch.equal(chain.model().cache_keys, chain.initial_model().cache_keys)
        numbers = [number for number, _ in chain.models()]  # recomputed from the sums
        assert numbers == [0, 1]


def test_the_fused_model_adds_gamma_times_the_head(federation: SmallFederation) -> None:
    run(federation)
    model = latest(federation.coordinator)
    assert model.sums is not None
    features = random_features(7, 99).features
    head = head_of(model)
    alone = logits(open_chain(federation.coordinator).initial_model(), features)
    expected = alone + model.sums.gamma * (features @ head.weight.T + head.bias)
    assert torch.allclose(logits(model, features), expected, atol=1e-4)
    assert head_of(model) is head


def test_what_the_records_say_reaches_the_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of two hundred around centres that the cache knows nothing of, at an epsilon that hides little."""

    def around_centres(number: int, seed: int) -> FeatureSet:
        centres = torch.eye(FEATURE_DIM)[:CLASSES] + 0.5
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, CLASSES, (number,), generator=generator)
        scattered = centres[labels] + 0.1 * torch.randn(number, FEATURE_DIM, generator=generator)
        return FeatureSet(torch.nn.functional.normalize(scattered, dim=1), labels)

    monkeypatch.setattr(small_federation, "random_features", around_centres)
    choices = StatisticsChoices(epsilon=20.0, epsilon_local=40.0, expected_records=200)
    federation = found(tmp_path, records=(200,) * 4, privacy=one_release(choices))
    run(federation)
    test = around_centres(500, 99)
    before = evaluate(open_chain(federation.coordinator).initial_model(), test).top1
    assert before < 0.6
    assert evaluate(latest(federation.coordinator), test).top1 > 0.9


# --- privacy


@pytest.mark.claim("C9")
def test_one_release_is_charged_once_and_verifies(federation: SmallFederation) -> None:
    run(federation)
    section = federation.plan.privacy
    expected = cost_of([(mechanism_of(federation.plan), 1)], section.delta)
    assert isinstance(section, StatisticsPlan)
    assert 0.98 * section.epsilon_aggregate < expected.aggregate <= section.epsilon_aggregate
    assert expected.local <= section.epsilon_local
    for directory in federation.silos.values():
        budget = silo_budget(directory)
        assert budget.rounds_charged == 1
        assert budget.spent == expected
        audit_silo(directory, witnessed_heads([federation.coordinator]))


def test_a_plan_of_one_release_says_nothing_of_training(federation: SmallFederation) -> None:
    plan = federation.plan
    residual = msgspec.structs.replace(plan.cache, trained="class_residual")
    for other in ({"cache": residual}, {"server": MomentumServer(momentum=0.9, rate=0.1)}):
        with pytest.raises(ValueError, match="one release trains nothing"):
            msgspec.structs.replace(plan, **other)


def test_statistics_are_released_once(federation: SmallFederation) -> None:
    run(federation)
    with pytest.raises(ConfigError, match="once"):
        run(federation)
    for directory in federation.silos.values():
        budget = silo_budget(directory)
        assert (budget.rounds_charged, budget.rounds_left) == (1, 0)


def test_a_silo_declines_a_second_release_whatever_its_caps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = found(tmp_path, records=RECORDS, privacy=one_release(), epsilon_cap=40.0)
    run(federation)
    monkeypatch.setattr(type(federation.plan), "is_one_release", False)  # a coordinator that would ask
    genuine = SiloService._check_not_released
    declined: list[str] = []

    def checked(self: SiloService, chain: Chain, number: int) -> None:
        with pytest.MonkeyPatch.context() as honest:
            honest.setattr(type(federation.plan), "is_one_release", True)
            try:
                genuine(self, chain, number)
            except Exception as error:
                declined.append(str(error))
                raise

    monkeypatch.setattr(SiloService, "_check_not_released", checked)
    with pytest.raises(RoundAborted):
        run(federation)
    assert declined
    assert {silo_budget(path).rounds_charged for path in federation.silos.values()} == {1}


def test_a_coordinator_that_keeps_the_first_release_to_itself_gets_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record, so nobody but the silos knows; the mean of two releases would have half the noise."""
    federation = found(tmp_path, records=RECORDS, privacy=one_release(), epsilon_cap=40.0)
    handle, kept, declined = SiloService.handle, list[SiloId](), list[object]()

    def hiding(self: SiloService, phase: str, content: bytes) -> bytes:
        reply = handle(self, phase, content)
        if phase != letters.UNMASK:
            return reply
        kept.append(self.silo)
        return wire.encode(letters.Reply(b"", "storage-failed"))

    def noting(self: SiloService, phase: str, content: bytes) -> bytes:
        reply = handle(self, phase, content)
        if phase == letters.MANIFEST:
            declined.append(wire.decode(reply, letters.Reply, limit_bytes=len(reply), peer="silo").declined)
        return reply

    with pytest.MonkeyPatch.context() as hides:
        hides.setattr(SiloService, "handle", hiding)
        with pytest.raises(RoundAborted):
            run(federation)
    assert len(kept) == len(RECORDS)
    monkeypatch.setattr(SiloService, "handle", noting)
    with pytest.raises(RoundAborted):
        run(federation)
    assert set(declined) == {"update-already-released"}
    assert {silo_budget(path).rounds_charged for path in federation.silos.values()} == {1}


@pytest.mark.claim("C17")
def test_a_repeated_attempt_sends_the_same_noised_sums_and_costs_nothing(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: dict[str, set[bytes]] = {}
    genuine = SealedUpdate.encoding

    def recording(self: SealedUpdate, parameters: RoundParameters) -> EncodedUpdate:
        entries = all_entries(genuine(self, parameters), parameters)
        released.setdefault(self.digest, set()).add(b"".join(each.tobytes() for each in entries.others))
        return entries

    monkeypatch.setattr(SealedUpdate, "encoding", recording)
    handle = SiloService.handle

    def failing(self: SiloService, phase: str, content: bytes) -> bytes:
        if phase == letters.CERTIFICATE and self.silo in {"silo-1", "silo-2", "silo-3"}:
            raise RuntimeError("the silo's machine lost power")
        return handle(self, phase, content)

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(SiloService, "handle", failing)
        with pytest.raises(RoundAborted):
            run(federation)
    (outcome,) = run(federation)
    assert outcome.record.attempt == 2
    assert len(released) == 5
    assert all(len(contents) == 1 for contents in released.values())
    assert {silo_budget(path).rounds_charged for path in federation.silos.values()} == {1}


# --- hostile sums


@pytest.mark.claim("C19")
@pytest.mark.parametrize("name", [CLASS_SUMS, GRAM])
def test_sums_beyond_what_the_cohort_can_have_sent_are_applied_by_nobody(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    hostile: list[bool] = []

    def encoding(_: SealedUpdate, parameters: RoundParameters) -> EncodedUpdate:
        others = {segment.name: np.zeros(segment.entries, segment.word) for segment in parameters.segments}
        if not hostile:
            hostile.append(True)
            (bound,) = [segment.bound for segment in parameters.segments if segment.name == name]
            others[name][3] = parameters.cohort_size * bound + 1
        words = np.zeros(parameters.dimension, parameters.word)
        return EncodedUpdate(words, np.zeros(parameters.counters, "<u8"), tuple(others.values()))

    monkeypatch.setattr(SealedUpdate, "encoding", encoding)
    with pytest.raises(PeerError, match="outside the agreed bound"):
        run(federation)

    def blind(total: AggregateSum, parameters: RoundParameters) -> DecodedSum:
        integers = {
            each.name: words.view(words.dtype.str.replace("u", "i")).astype(np.int64)
            for each, words in zip(parameters.segments, total.others, strict=True)
        }
        return DecodedSum(np.zeros(1), 0, integers)

    hostile.clear()
    monkeypatch.setattr(coordinator_round, "decode_sum", blind)
    with pytest.raises((RecordRejected, PeerError)):
        run(federation)
    for directory in (federation.coordinator, *federation.silos.values()):
        assert [path.name for path in directory.glob("models/*")] == ["0000.safetensors"]


@pytest.mark.claim("C19")
def test_an_initial_cache_with_sums_is_refused(federation: SmallFederation, tmp_path: Path) -> None:
    run(federation)
    plan = federation.plan
    changed = msgspec.structs.replace(plan.cache, initial_digest=cache_digest(latest(federation.coordinator)))
    content = (federation.coordinator / "models/0001.safetensors").read_bytes()
    state = StateDir.create(tmp_path / "new")
    with pytest.raises(PeerError, match="sums"):
        install_initial_cache(state, msgspec.structs.replace(plan, cache=changed), content)


def test_a_declared_number_of_records_that_no_ring_holds_is_refused() -> None:
    with pytest.raises(ConfigError):
        one_release(StatisticsChoices(expected_records=1 << 60))


def test_the_sum_takes_as_many_bits_as_the_declared_records_ask_for(federation: SmallFederation) -> None:
    for expected, bits in ((15, 32), (100_000, 64)):
        privacy = one_release(StatisticsChoices(expected_records=expected))
        plan = msgspec.structs.replace(federation.plan, privacy=privacy)
        parameters = RoundParameters.derive(plan, 5, 5)
        assert [segment.name for segment in parameters.segments] == [CLASS_SUMS, GRAM]
        assert all(segment.bits <= bits for segment in parameters.segments)
        assert all(segment.bound >= expected * UNIT for segment in parameters.segments)
        assert parameters.dimension == 1
    assert CoordinatorFiles.open(federation.coordinator).plan == federation.plan
