"""Rivals that are formulas: against the product's own forward pass, and against what they must not depend on."""

from __future__ import annotations

import pytest
import torch

from cachefl_secure.cache.closed_form import HeadKind
from cachefl_secure.cache.model import CacheModel, logits
from cachefl_secure.embedded import CLASSES as DIGITS
from tests.bench.rivals import cachefl, closed_form, real_cache, reference, tip_adapter
from tests.bench.rivals.method import Kind, Method, Outcome, Traffic, choose, measured, train
from tests.bench.rivals.metrics import quality
from tests.bench.rivals.partitions import PARTITIONS, cut
from tests.bench.rivals.results import Row, Run, checks, rows_of
from tests.bench.rivals.task import Cell, Task, first_of_each_class
from tests.small_federation import CLASSES, FEATURE_DIM, random_cache, random_features


def small_task() -> Task:
    model = random_cache()
    return Task(
        "small",
        DIGITS[:CLASSES],
        model.text_classifier,
        10.0,
        random_features(60, seed=1),
        2,
        random_features(200, seed=2),
        random_features(100, seed=3),
        "random",
    )


def cell(partition: str = "IID", seed: int = 0) -> Cell:
    return cut(small_task(), partition, seed)


def test_partitions_hold_out_the_same_records_and_lose_none() -> None:
    even, skewed = cell(), cell("Dirichlet(0.1)")
    assert torch.equal(even.validation.features, skewed.validation.features)
    assert torch.equal(even.pooled.features, skewed.pooled.features)
    for each in (even, skewed):
        assert sum(map(len, each.silos)) == len(each.pooled) == 200 - len(each.validation)
    sizes = [len(records) for records in even.silos]
    assert max(sizes) - min(sizes) <= 1
    assert not torch.equal(even.validation.features, cell(seed=1).validation.features)


def test_tip_adapters_formula_is_the_products_cache_model() -> None:
    drawn, model = cell(), random_cache()
    start = first_of_each_class(drawn.pooled, 3)
    product = CacheModel(start.features, start.labels, model.text_classifier, 4.0, 2.0, 10.0)
    features = drawn.validation.features
    got = tip_adapter.scores(drawn, start.labels, start.features, 4.0, 2.0, features)
    torch.testing.assert_close(got, logits(product, features), rtol=1e-5, atol=1e-5)


def test_search_is_the_best_of_its_grid_on_validation_records() -> None:
    drawn = cell()
    alpha, beta = tip_adapter.search(drawn, drawn.pooled, drawn.pooled.features)
    found = {}
    for a in tip_adapter.ALPHAS:
        for b in tip_adapter.BETAS:
            scores = tip_adapter.scores(
                drawn, drawn.pooled.labels, drawn.pooled.features, a, b, drawn.validation.features
            )
            found[a, b] = int((scores.argmax(dim=1) == drawn.validation.labels).sum())
    assert found[alpha, beta] == max(found.values())


def test_the_real_data_cache_is_made_of_the_silos_records() -> None:
    drawn = cell("Dirichlet(0.1)")
    outcome = real_cache.run(drawn)
    assert outcome.traffic.up > 0
    assert quality(
        torch.softmax(outcome.models[0](drawn.task.test.features), 1), drawn.task.test.labels, drawn.silos
    )


@pytest.mark.parametrize("kind", list(HeadKind))
def test_a_closed_form_does_not_depend_on_the_partition(kind: HeadKind) -> None:
    features = small_task().test.features
    scores = [closed_form.run(cell(name), kind).models[0](features) for name in PARTITIONS]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-5)


def test_one_full_step_a_round_does_not_depend_on_the_partition() -> None:
    features = small_task().test.features
    scores = [cachefl.without_noise(cell(name)).models[0](features) for name in PARTITIONS]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-3, atol=1e-3)
    untrained = reference.synthetic_cache(cell()).models[0](features)
    assert float((scores[0] - untrained).abs().max()) > 0.1


def test_a_setting_is_chosen_by_validation_records_alone() -> None:
    drawn = cell()
    right = torch.nn.functional.one_hot(drawn.validation.labels, CLASSES).float()

    def run(_: Cell, place: float) -> Outcome:
        return Outcome((lambda features: right if place == 2 else 1 - right,), Traffic())

    method = Method("m", Kind.MULTI_ROUND, run, "", tuple({"place": float(p)} for p in range(4)))
    assert choose(method, drawn).numbers == {"place": 2.0}


def test_the_checks_fail_where_a_rival_is_better_and_tell_where_one_round_is() -> None:
    drawn = {name: cell(name) for name in PARTITIONS}

    def constant(place: int, kind: Kind, name: str) -> Method:
        """Always right on a share of the classes: those below ``place``."""

        def run(one: Cell) -> Outcome:
            labels = one.task.test.labels
            told = torch.where(labels < place, labels, (labels + 1) % CLASSES)
            return Outcome((lambda _: 9 * torch.nn.functional.one_hot(told, CLASSES).float(),), Traffic())

        return Method(name, kind, run, "")

    def found(ours: int, rival: int, once: int) -> list[bool | None]:
        methods = (
            constant(ours, Kind.OURS, "CacheFL, options by validation"),
            constant(rival, Kind.MULTI_ROUND, "rival"),
            constant(once, Kind.ONE_ROUND, "ridge"),
        )
        rows: list[Row] = []
        for method in methods:
            for name, one in drawn.items():
                trained = train(method, one, {})
                run = Run(measured(trained.outcome, one), trained.outcome.traffic, trained.seconds)
                rows += rows_of("small", name, method, {}, [run])
        return [check.met for check in checks(rows)]

    assert found(ours=3, rival=2, once=1) == [True, True]
    assert found(ours=2, rival=3, once=1) == [True, False]
    assert found(ours=2, rival=1, once=4) == [True, True, None]


def test_a_silo_alone_is_measured_by_its_own_classes() -> None:
    drawn = cell("Dirichlet(0.1)")
    models = measured(cachefl.alone(drawn), drawn)
    assert len(models) == sum(len(records) > 0 for records in drawn.silos)
    assert drawn.task.feature_dim == FEATURE_DIM
