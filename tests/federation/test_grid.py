"""A federation whose one round chooses alpha and beta, and the one that trains with them out of the same budget."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cachefl_secure.cache.model import cache_digest
from cachefl_secure.errors import ConfigError, PeerError, RecordRejected
from cachefl_secure.federation import applying, chain
from cachefl_secure.federation.applying import apply_aggregate
from cachefl_secure.federation.budget import silo_budget
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.chosen_pair import ChosenPair, chosen_pair_of
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.declining import Decline
from cachefl_secure.federation.forecasting import forecast_of
from cachefl_secure.federation.grid_choices import DEFAULT_ALPHAS, DEFAULT_BETAS, GridChoices
from cachefl_secure.federation.inspection import audit_coordinator, audit_silo, open_chain, status
from cachefl_secure.federation.sealed_update import SealedUpdate
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.witnesses import witnessed_heads
from cachefl_secure.grid_layout import GRID, UNIT, best_of, entry_bound, step_of
from cachefl_secure.names import SiloId
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy import grid
from cachefl_secure.privacy.accounting import charged, cost_of
from cachefl_secure.privacy.descent import descent_of
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.grid import right_answers
from cachefl_secure.privacy.mechanism import mechanism_of
from cachefl_secure.privacy_plan import GridPlan
from cachefl_secure.protocol.encoding import DecodedSum, decode_sum
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate
from cachefl_secure.server_plan import MomentumServer
from tests.driven import run
from tests.small_federation import (
    SmallFederation,
    found,
    found_coordinator,
    joined_with_random_features,
    over_grid,
    random_features,
    small_privacy,
)

RECORDS = (12, 20, 9, 15, 11)


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    return found(tmp_path / "first", records=RECORDS, privacy=over_grid())


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(DiscreteGaussian):
        def add_to(self, values: NDArray[np.int32], stream: object) -> None:
            """Nothing is added."""

    monkeypatch.setattr(grid, "DiscreteGaussian", Silent)


def parties(federation: SmallFederation) -> list[Path]:
    return [federation.coordinator, *federation.silos.values()]


def sums_of(federation: SmallFederation) -> NDArray[np.int64]:
    parameters = RoundParameters.derive(federation.plan, 5, 5)
    content = (federation.coordinator / "rounds/0001/aggregate.bin").read_bytes()
    return decode_sum(AggregateSum.from_bytes(content, parameters), parameters).integers[GRID]


def exact_counts(federation: SmallFederation) -> NDArray[np.int64]:
    """Of all records in one place."""
    model = open_chain(federation.coordinator).initial_model()
    pairs = descent_of(federation.plan, lambda: model).pairs
    silos = [random_features(number, seed) for seed, number in enumerate(RECORDS, 1)]
    total: NDArray[np.int64] = np.sum(
        [right_answers(model, each, pairs).sum(axis=0) for each in silos], axis=0
    )
    return total


# --- what the round makes of the cache


def test_every_party_holds_the_best_pair_of_the_published_counts_and_keys_stay(
    federation: SmallFederation,
) -> None:
    assert (status(federation.coordinator).alpha, status(federation.coordinator).beta) == (None, None)
    (outcome,) = run(federation)
    section = federation.plan.privacy
    assert isinstance(section, GridPlan)
    sums = sums_of(federation)
    assert len(sums) == len(section.pairs) == 15
    expected = section.pairs[int(np.argmax(sums))]
    for directory in parties(federation):
        held = open_chain(directory)
        model, first = held.model(), held.initial_model()
        assert (model.alpha, model.beta) == expected
        assert cache_digest(model) == outcome.record.cache_after
        assert torch.equal(model.cache_keys, first.cache_keys)
        assert [number for number, _ in held.models()] == [0, 1]  # recomputed from the sums
        assert (status(directory).alpha, status(directory).beta) == expected
        found = chosen_pair_of(directory)
        assert (found.alpha, found.beta) == expected


@pytest.mark.usefixtures("no_noise")
def test_without_noise_the_pair_is_the_one_that_is_right_most_often(federation: SmallFederation) -> None:
    run(federation)
    counts, pairs = exact_counts(federation), GridChoices().draft().pairs
    assert np.array_equal(sums_of(federation), counts * step_of(len(pairs)))
    assert len(set(counts.tolist())) > 3
    found = chosen_pair_of(federation.coordinator)
    assert (found.alpha, found.beta) == pairs[int(np.argmax(counts))]


def test_noise_of_the_planned_size_stands_in_the_counts(federation: SmallFederation) -> None:
    run(federation)
    away = sums_of(federation) - exact_counts(federation) * step_of(15)
    scaled = away / (federation.plan.privacy.noise_multiplier * UNIT * 5**0.5)
    assert 0.5 < scaled.std() < 1.6
    assert np.abs(scaled).max() < 4.5


def test_the_first_of_equal_counts_wins_and_alpha_is_divided_where_the_plan_says_so(
    federation: SmallFederation,
) -> None:
    model = open_chain(federation.coordinator).initial_model()
    for norm, divisor in (("sum", 1), ("mean", 2)):
        cache = msgspec.structs.replace(federation.plan.cache, alpha_norm=norm)
        plan = msgspec.structs.replace(federation.plan, cache=cache)
        counts = np.full(15, -4, np.int64)
        counts[[7, 8, 13]] = 5
        decoded = DecodedSum(np.zeros(1), 0, {GRID: counts})
        after, _ = apply_aggregate(model, (), decoded, 5, plan)
        assert (after.alpha, after.beta) == (DEFAULT_ALPHAS[2] / divisor, DEFAULT_BETAS[1])
        assert descent_of(plan, lambda: model).pairs[7] == (after.alpha, after.beta)
    assert best_of(counts.tolist()) == 7


@pytest.mark.claim("C20")
def test_a_pair_that_did_not_win_is_adopted_by_nobody(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that names the cache with another pair in its record."""
    genuine = applying.apply_aggregate

    def partial(model, moments, decoded, survivors, plan):  # type: ignore[no-untyped-def]
        counts = decoded.integers[GRID]
        other = DecodedSum(decoded.values, decoded.saturated, {GRID: -counts})
        return genuine(model, moments, other, survivors, plan)

    chain_after = chain.Chain.after

    def lying(self: chain.Chain, decoded: DecodedSum, survivors: int) -> object:
        with pytest.MonkeyPatch.context() as lies:
            lies.setattr(chain, "apply_aggregate", partial)
            return chain_after(self, decoded, survivors)

    monkeypatch.setattr(chain.Chain, "after", lying)
    with pytest.raises(RecordRejected, match="not what the sum gives"):
        run(federation)
    for directory in parties(federation):
        assert [path.name for path in directory.glob("models/*")] == ["0000.safetensors"]


@pytest.mark.claim("C19")
def test_counts_beyond_what_the_cohort_can_have_sent_are_applied_by_nobody(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def encoding(_: SealedUpdate, parameters: RoundParameters) -> EncodedUpdate:
        (segment,) = parameters.segments
        counts = np.zeros(segment.entries, segment.word)
        counts[3] = 0 if sent else parameters.cohort_size * segment.bound + 1
        sent.append(1)
        words = np.zeros(parameters.dimension, parameters.word)
        return EncodedUpdate(words, np.zeros(parameters.counters, "<u8"), (counts,))

    monkeypatch.setattr(SealedUpdate, "encoding", encoding)
    with pytest.raises(PeerError, match="outside the agreed bound"):
        run(federation)
    for directory in parties(federation):
        assert [path.name for path in directory.glob("models/*")] == ["0000.safetensors"]


# --- what it costs


@pytest.mark.claim("C9")
def test_a_grid_is_charged_once_and_verifies(federation: SmallFederation) -> None:
    run(federation)
    section = federation.plan.privacy
    assert isinstance(section, GridPlan)
    expected = cost_of([(mechanism_of(federation.plan), 1)], section.delta)
    assert 0.98 * section.epsilon_aggregate < expected.aggregate <= section.epsilon_aggregate
    assert expected.local <= section.epsilon_local
    for directory in federation.silos.values():
        budget = silo_budget(directory)
        assert (budget.rounds_charged, budget.rounds_left) == (1, 0)
        assert budget.spent == expected
        audit_silo(directory, witnessed_heads([federation.coordinator]))
    audit_coordinator(federation.coordinator)
    told = forecast_of(federation.plan)
    assert [point.rounds for point in told.points] == [1]
    assert told.points[0].cost == expected


def test_a_grid_happens_once(federation: SmallFederation) -> None:
    run(federation)
    with pytest.raises(ConfigError, match="grid is one release: it happens once, and it has"):
        run(federation)
    assert {silo_budget(path).rounds_charged for path in federation.silos.values()} == {1}


def test_a_silo_asked_for_a_second_grid_declines_whatever_its_caps(tmp_path: Path) -> None:
    federation = found(tmp_path, records=RECORDS, privacy=over_grid(), epsilon_cap=40.0)
    run(federation)
    files = SiloFiles.open(federation.silos[SiloId("silo-2")])
    with files.ledger() as ledger:
        service = SiloService(files, ledger)
        with pytest.raises(Decline, match="update-already-released"):
            service._check_not_released(open_chain(federation.silos[SiloId("silo-2")]), 2)


@pytest.mark.claim("C11")
def test_grid_and_training_add_up_in_one_ledger_and_the_training_has_the_pair(tmp_path: Path) -> None:
    """In the caps that the silos had when they joined the grid, which must leave room for both."""
    federation = found(tmp_path / "first", records=RECORDS, privacy=over_grid(), epsilon_cap=20.0)
    run(federation)
    pair = chosen_pair_of(federation.silos[SiloId("silo-3")])
    training = small_privacy(PrivacyChoices(rounds=3, expected_records=20))
    coordinator = found_coordinator(tmp_path / "second", privacy=training, alpha_beta=(pair.alpha, pair.beta))
    silos = {}
    for index, (silo, number) in enumerate(zip(federation.silos, RECORDS, strict=True), 1):
        joined = joined_with_random_features(
            tmp_path / f"{silo}-again",
            coordinator,
            silo,
            number,
            seed=index,
            ledger=federation.silos[silo],
        )
        assert not joined.has_other_records
        silos[silo] = joined.request.parent
    files = CoordinatorFiles.open(coordinator)
    files.admit(files.candidates([path / "join-request.toml" for path in silos.values()]))
    second = SmallFederation(coordinator, silos)
    run(second, 3)
    assert open_chain(coordinator).model().alpha == pair.alpha
    rounds = [(mechanism_of(federation.plan), 1), (mechanism_of(second.plan), 3)]
    for silo, again in silos.items():
        order = SiloFiles.open(federation.silos[silo]).terms.rdp_order
        expected = charged(rounds, 1e-5, order)
        for directory in (federation.silos[silo], again):
            budget = silo_budget(directory)
            assert (budget.rounds_charged, budget.federations) == (4, 2)
            assert budget.spent == expected
        grid_alone, trained_alone = (cost_of([each], 1e-5) for each in rounds)
        assert max(grid_alone.aggregate, trained_alone.aggregate) < expected.aggregate
        assert expected.aggregate < grid_alone.aggregate + trained_alone.aggregate
        audit = audit_silo(again, witnessed_heads([federation.coordinator, coordinator]))
        assert "2 plans share this ledger" in audit.steps[0].finding


# --- another federation takes the pair


def cache_like(plan: FederationPlan, **changes: object) -> dict[str, object]:
    return {
        "weights_digest": plan.encoder.weights_digest,
        "preprocessing_digest": plan.encoder.preprocessing_digest,
        "templates": plan.encoder.templates,
        "classes": plan.classes,
    } | changes


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights_digest": "2" * 64}, "another encoder"),
        ({"preprocessing_digest": "2" * 64}, "another encoder"),
        ({"templates": ("a photo of {}",)}, "other prompts"),
        ({"classes": ("cat", "dog")}, "other classes"),
    ],
)
def test_a_pair_for_another_task_is_refused(
    federation: SmallFederation, change: dict[str, object], reason: str
) -> None:
    run(federation)
    pair = chosen_pair_of(federation.coordinator)
    pair.check_same_cache(**cache_like(federation.plan))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=reason):
        pair.check_same_cache(**cache_like(federation.plan, **change))  # type: ignore[arg-type]


def test_a_directory_that_has_chosen_nothing_is_refused(federation: SmallFederation, tmp_path: Path) -> None:
    trained = found(tmp_path / "trained", records=(9, 9, 9))
    for root, reason in (
        (federation.coordinator, "has not happened yet"),
        (federation.silos[SiloId("silo-1")], "has not taken part"),
        (trained.coordinator, "mechanism is local, not grid"),
        (tmp_path / "nowhere", "no such directory"),
        (tmp_path, "no coordinator's directory"),
    ):
        with pytest.raises(ConfigError, match=reason):
            chosen_pair_of(root)
    alone = found_coordinator(tmp_path / "alone", privacy=over_grid())
    with pytest.raises(ConfigError):
        chosen_pair_of(alone)


def test_a_cache_that_is_not_what_the_sum_gives_is_not_read(federation: SmallFederation) -> None:
    run(federation)
    file = federation.coordinator / "rounds/0001/aggregate.bin"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RecordRejected):
        chosen_pair_of(federation.coordinator)


@pytest.mark.parametrize(
    ("norm", "images", "asked", "expected"),
    [
        ("sum", 2, "sum", 10.0),
        ("sum", 4, "sum", 5.0),
        ("sum", 4, "mean", 20.0),
        ("mean", 4, "mean", 10.0),
        ("mean", 2, "sum", 5.0),
    ],
)
def test_alpha_weighs_the_mean_affinity_as_it_did_in_the_grid(
    federation: SmallFederation, norm: str, images: int, asked: str, expected: float
) -> None:
    """Two images a class in the grid's cache, ``images`` in the other."""
    cache = msgspec.structs.replace(federation.plan.cache, alpha_norm=norm)
    plan = msgspec.structs.replace(federation.plan, cache=cache)
    pair = ChosenPair(10.0, 3.0, plan, federation.coordinator)
    assert pair.alpha_for(images, asked) == expected  # type: ignore[arg-type]


# --- plans that there are not


def test_a_grid_trains_nothing(federation: SmallFederation) -> None:
    residual = msgspec.structs.replace(federation.plan.cache, trained="class_residual")
    for other in ({"cache": residual}, {"server": MomentumServer(momentum=0.9, rate=0.1)}):
        with pytest.raises(ValueError, match="one release trains nothing"):
            msgspec.structs.replace(federation.plan, **other)


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        (GridChoices(alphas=(1.0,), betas=(2.0,)), "2 to 256 pairs"),
        (GridChoices(alphas=tuple(map(float, range(1, 18))), betas=tuple(map(float, range(1, 18)))), "pairs"),
        (GridChoices(alphas=(3.0, 1.0)), "alphas: must rise"),
        (GridChoices(betas=(3.0, 3.0)), "betas: must rise"),
        (GridChoices(alphas=()), "alphas"),
        (GridChoices(alphas=(0.0, 1.0)), "alphas"),
        (GridChoices(betas=(1.0, float("inf"))), "betas"),
        (GridChoices(epsilon=51.0), "epsilon"),
        (GridChoices(epsilon=0.0), "epsilon: must be more than 0"),
        (GridChoices(expected_records=0), "expected_records"),
        (GridChoices(delta=0.1), "delta"),
    ],
)
def test_a_choice_out_of_range_names_its_field(choices: GridChoices, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        choices.plan(honest_survivors=2)


def test_the_bound_on_the_local_epsilon_may_decide() -> None:
    made = GridChoices(epsilon=4.0, epsilon_local=2.0).plan(honest_survivors=4)
    assert made.epsilon_local == 2.0
    plain = GridChoices(epsilon=4.0, epsilon_local=40.0).plan(honest_survivors=4)
    assert plain.noise_multiplier < made.noise_multiplier
    assert 4.0 < plain.epsilon_local < 40.0


def test_the_sum_takes_as_many_bits_as_the_declared_records_ask_for(federation: SmallFederation) -> None:
    for expected, most_bits in ((20, 32), (500_000, 64)):
        privacy = over_grid(GridChoices(expected_records=expected))
        parameters = RoundParameters.derive(msgspec.structs.replace(federation.plan, privacy=privacy), 5, 5)
        (segment,) = parameters.segments
        assert (segment.name, segment.entries, parameters.dimension) == (GRID, 15, 1)
        assert segment.bound == entry_bound(15, expected, privacy.noise_multiplier)
        assert segment.bits <= most_bits
    assert federation.plan.number_of_parameters == 15
