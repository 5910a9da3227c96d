from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import CacheModel, affinity_gradient
from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.privacy import optimizers, training
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.integer_gradients import coins_from, integer_factors, records_at_once
from cachefl_secure.privacy.mechanism import DistributedMechanism, LocalMechanism, NoMechanism, StepMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.optimizers import RankOneGradients
from cachefl_secure.privacy.training import (
    CachePrivacyEngine,
    change_of_keys,
    train_privately,
)
from cachefl_secure.updates import IntegerUpdate
from tests.privacy.examples import cache_of, distributed, local, records_of, without_noise

KEY = b"training tests"

# Opacus registers full backward hooks on a module whose input needs no gradient.
hooks_warn = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


class PlainCache(nn.Module):
    """The cache model as Opacus' hooks see it: a linear layer and a loss."""

    def __init__(self, cache: CacheModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.cache = cache
        self.cache_keys = nn.Linear(cache.feature_dim, cache.number_of_keys, bias=False, dtype=dtype)
        self.cache_keys.weight.data = cache.cache_keys.to(dtype)

    def forward(self, features: Tensor) -> Tensor:
        cache = self.cache
        activations = torch.exp(-cache.beta * (1 - self.cache_keys(features)))
        text = cache.logit_scale * features @ cache.text_classifier.to(features).T
        return text + cache.alpha * activations @ cache.cache_values.to(features)


def clipped_sum_by_hooks(cache: CacheModel, records: FeatureSet, clip_norm: float) -> NDArray[np.float64]:
    """Opacus the ordinary way: one NK x C gradient per record in memory."""
    model = GradSampleModule(PlainCache(cache), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        max_grad_norm=clip_norm,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    torch.autograd.backward(cross_entropy(model(records.features), records.labels, reduction="sum"))
    optimizer.clip_and_accumulate()
    (parameter,) = model.parameters()
    summed: Tensor = parameter.summed_grad
    return summed.double().numpy().reshape(-1)


def slow_update(cache: CacheModel, records: FeatureSet, mechanism: NoMechanism) -> NDArray[np.float64]:
    """Clipped descent record by record, by autograd in float64. The definition, in twenty lines."""
    streams = RandomStreams.repeatable(KEY)
    model = PlainCache(cache, torch.float64)
    start = model.cache_keys.weight.detach().clone()
    for _ in range(mechanism.steps):
        total = torch.zeros_like(start)
        drawn = streams.sampling.coins(len(records), mechanism.sampling_rate)
        for feature, label in zip(records.features[drawn], records.labels[drawn], strict=True):
            loss = cross_entropy(model(feature[None].double()), label[None])
            (gradient,) = torch.autograd.grad(loss, model.cache_keys.weight)
            total += gradient * min(1.0, mechanism.clip_norm / (float(gradient.norm()) + 1e-6))
        model.cache_keys.weight.data -= mechanism.step_length * total
    return (model.cache_keys.weight.detach() - start).numpy().reshape(-1)


def slow_integers(
    cache: CacheModel, records: FeatureSet, mechanism: DistributedMechanism
) -> NDArray[np.int64]:
    """One step record by record in Python's integers: factors, products, noise, and nothing else."""
    streams = RandomStreams.repeatable(KEY)
    drawn = streams.sampling.coins(len(records), mechanism.sampling_rate)
    features, labels = records.features[drawn], records.labels[drawn]
    padded = torch.zeros(records_at_once(mechanism.lattice), features.shape[1])
    padded_labels = torch.zeros(len(padded), dtype=torch.int64)
    padded[: len(features)], padded_labels[: len(features)] = features, labels
    a = affinity_gradient(cache, padded, padded_labels)
    coins = coins_from(streams.rounding)
    factors = integer_factors(a, padded, mechanism.clip_norm, mechanism.lattice, coins)
    u, v = (np.array(x.tolist(), dtype=np.int64).astype(object) for x in (factors.u, factors.v))
    total = (u.T @ v).reshape(-1).astype(np.int64)
    noise = np.zeros(total.size, np.int32)
    DiscreteGaussian(mechanism.noise_scale).add_to(noise, streams.noise)
    clamped: NDArray[np.int64] = np.clip(total, -mechanism.sum_bound, mechanism.sum_bound)
    return -(clamped + noise)


def update(records: FeatureSet, mechanism: StepMechanism) -> NDArray[np.float64]:
    released = train_privately(cache_of(), records, mechanism, RandomStreams.repeatable(KEY))
    return change_of_keys(released, mechanism)


def integers(records: FeatureSet, mechanism: DistributedMechanism) -> NDArray[np.int64]:
    released = train_privately(cache_of(), records, mechanism, RandomStreams.repeatable(KEY))
    assert isinstance(released, IntegerUpdate)
    return released.integers.astype(np.int64)


def noise_of(mechanism: DistributedMechanism | LocalMechanism, steps: int = 1) -> NDArray[np.int64]:
    """The sum of the noises of so many steps, in integer steps."""
    total, stream = np.zeros(240, np.int64), RandomStreams.repeatable(KEY).noise
    for _ in range(steps):
        drawn = np.zeros(240, np.int32)
        DiscreteGaussian(mechanism.noise_scale).add_to(drawn, stream)
        total += drawn
    return total


def relative(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@hooks_warn
@pytest.mark.claim("C7")
@pytest.mark.parametrize("seed", range(6))
def test_the_clipped_sum_is_that_of_opacus_hooks(seed: int) -> None:
    shape = np.random.default_rng(seed).integers(2, [12, 6, 80, 120])
    classes, images, dim, count = (int(x) for x in shape)
    cache = cache_of(classes, images, dim, seed)
    records = records_of(count, classes, dim, seed + 100)
    for clip_norm in (0.1, 2.0, 1e6):  # all clipped, some, none
        mechanism = without_noise(local(clip_norm=clip_norm))
        ours = -change_of_keys(train_privately(cache, records, mechanism), mechanism) / mechanism.step_length
        assert relative(ours, clipped_sum_by_hooks(cache, records, clip_norm)) <= 1e-6


@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("steps", [1, 4])
def test_training_without_noise_is_clipped_descent_record_by_record(rate: float, steps: int) -> None:
    quiet = without_noise(local(sampling_rate=rate, steps=steps))
    expected = slow_update(cache_of(), records_of(37), quiet)
    assert relative(update(records_of(37), quiet), expected) < 1e-6


@pytest.mark.claim("C7")
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_a_private_step_is_a_sum_of_integers_and_integer_noise(rate: float) -> None:
    mechanism = distributed(sampling_rate=rate, noise_multiplier=0.5)
    assert np.array_equal(
        integers(records_of(37), mechanism), slow_integers(cache_of(), records_of(37), mechanism)
    )


@pytest.mark.claim("C7")
@pytest.mark.parametrize(
    "mechanism", [local(noise_multiplier=0.1), distributed(noise_multiplier=0.1)], ids=lambda m: m.kind
)
def test_a_private_step_goes_where_the_step_without_noise_goes(
    mechanism: LocalMechanism | DistributedMechanism,
) -> None:
    unit = mechanism.step_length * mechanism.integer_value
    noise = -unit * noise_of(mechanism)
    signal = update(records_of(200), mechanism) - noise
    exact = update(records_of(200), without_noise(mechanism))
    assert relative(signal, exact) < 0.05


@pytest.mark.claim("C7")
def test_local_steps_each_add_the_noise_that_was_charged() -> None:
    mechanism = local(steps=3)
    released = update(records_of(0), mechanism)
    expected = -mechanism.step_length * mechanism.integer_value * noise_of(mechanism, steps=3)
    assert np.allclose(released, expected, rtol=1e-12, atol=0)


@pytest.mark.claim("C7")
def test_noise_that_32_bits_do_not_hold_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        train_privately(cache_of(), records_of(3), local(noise_multiplier=4e3, expected_records=10**6))


class LargestTensor(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Watches every tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_nothing_as_large_as_records_times_keys_ever_exists() -> None:
    cache, records = cache_of(10, 4, 32), records_of(600, 10, 32)
    with LargestTensor() as largest:  # type: ignore[no-untyped-call]
        train_privately(cache, records, distributed(dimension=40 * 32))
    # NK * C = 1280; a chunk's a: 256 * 40, features in whole lanes: 256 * 64; all, 600 * 32, are only looked up
    assert largest.numel <= 256 * 64


def opacus_history(
    monkeypatch: pytest.MonkeyPatch, mechanism: LocalMechanism | DistributedMechanism
) -> list[Any]:
    engines: list[CachePrivacyEngine] = []

    class Watched(CachePrivacyEngine):
        def __init__(self) -> None:
            super().__init__()
            engines.append(self)

    monkeypatch.setattr(training, "CachePrivacyEngine", Watched)
    update(records_of(600), mechanism)  # three chunks
    return list(engines[0].accountant.history)


@hooks_warn
@pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning")
@pytest.mark.claim("C7")
def test_opacus_counts_the_same_history_as_in_its_own_training(monkeypatch: pytest.MonkeyPatch) -> None:
    # 20 records in batches of 5: the one case where Opacus' rate, 1 / number of batches, is as asked.
    mechanism = local(sampling_rate=0.25, steps=4, noise_multiplier=3.0)
    engine = PrivacyEngine()
    model = PlainCache(cache_of())
    records = records_of(20)
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(records.features, records.labels), batch_size=5
        ),
        noise_multiplier=3.0,
        max_grad_norm=0.1,
    )
    torch.manual_seed(0)
    for features, labels in loader:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(features), labels, reduction="sum"))
        optimizer.step()
    assert opacus_history(monkeypatch, mechanism) == engine.accountant.history == [(3.0, 0.25, 4)]
    one = distributed(sampling_rate=0.25, noise_multiplier=3.0)
    assert opacus_history(monkeypatch, one) == [(3.0, 0.25, 1)]


@pytest.mark.claim("C7")
def test_training_that_opacus_counts_otherwise_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers.RankOneDPOptimizer, "accumulated_iterations", 2)
    with pytest.raises(LocalProtocolError, match="not the mechanism that was charged"):
        update(records_of(5), local(sampling_rate=0.25))


def test_the_way_in_that_reads_the_record_count_is_closed() -> None:
    with pytest.raises(LocalProtocolError, match="public parameters"):
        CachePrivacyEngine().make_private(module=None)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("rate", [1.0, 1e-9])
def test_a_step_without_records_is_noise_only(rate: float) -> None:
    count = 0 if rate == 1.0 else 30
    mechanism = distributed(sampling_rate=rate)
    assert np.array_equal(integers(records_of(count), mechanism), -noise_of(mechanism))
    several = local(sampling_rate=rate, steps=2)
    expected = -several.step_length * several.integer_value * noise_of(several, steps=2)
    assert np.allclose(update(records_of(count), several), expected, rtol=1e-12, atol=0)
    assert np.all(update(records_of(count), without_noise(mechanism)) == 0.0)


@pytest.mark.claim("C7")
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_a_poisoned_record_counts_as_absent(poison: float) -> None:
    poisoned, rest = records_of(12), records_of(12)
    poisoned.features[5, 3] = poison  # after FeatureSet's own check: the training step must not rely on it
    rest.features[5] = 0.0
    for mechanism in (local(), distributed(), without_noise(local())):
        assert np.array_equal(update(poisoned, mechanism), update(rest, mechanism))


def test_gradients_that_overflow_count_as_absent_and_others_are_untouched() -> None:
    a, f = torch.rand(4, 6), torch.rand(4, 3)
    a[1, 2] = float("inf")
    f[2, 0] = float("nan")
    keep = [0, 3]
    clipped = RankOneGradients(a, f).clipped_sum(0.1)
    assert torch.equal(clipped, RankOneGradients(a[keep], f[keep]).clipped_sum(0.1))


@pytest.mark.claim("C7")
def test_no_gradient_is_longer_than_the_clip_norm_however_large() -> None:
    for scale in (1e-20, 1.0, 1e10, 1e37):
        gradients = RankOneGradients(torch.full((1, 50), scale), torch.full((1, 40), 1.0))
        assert float(gradients.clipped_sum(0.1).norm()) <= 0.1 * (1 + 1e-12)


@pytest.mark.claim("C7")
def test_seeding_torch_does_not_repeat_an_update() -> None:
    updates = []
    for _ in range(2):
        torch.manual_seed(0)
        mechanism = local(sampling_rate=0.5)
        updates.append(change_of_keys(train_privately(cache_of(), records_of(8), mechanism), mechanism))
    assert float((updates[0] == updates[1]).mean()) < 0.05


def released_in_child(streams: RandomStreams) -> NDArray[np.int64]:
    """What a forked child releases from the streams that it inherited."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        drawn = np.zeros(240, np.int32)
        DiscreteGaussian(distributed().noise_scale).add_to(drawn, streams.noise)
        os.write(write_end, drawn.astype(np.int64).tobytes())
        os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end, "rb") as pipe:
        return np.frombuffer(pipe.read(), np.int64)


@pytest.mark.claim("C7")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_silo_does_not_repeat_an_update() -> None:
    streams = RandomStreams.from_system()
    childs = [released_in_child(streams), released_in_child(streams)]
    parents = train_privately(cache_of(), records_of(0), distributed(), streams)
    assert isinstance(parents, IntegerUpdate)
    own = parents.integers.astype(np.int64)
    for one, other in [(childs[0], childs[1]), (childs[0], own), (childs[1], own)]:
        assert one.shape == other.shape == (240,)
        assert float((np.abs(one) == np.abs(other)).mean()) < 0.05


def test_training_leaves_cache_and_records_as_they_were() -> None:
    cache, records = cache_of(), records_of(9)
    before = cache.cache_keys.clone(), records.features.clone()
    train_privately(cache, records, local(steps=3))
    train_privately(cache, records, distributed())
    assert torch.equal(cache.cache_keys, before[0])
    assert torch.equal(records.features, before[1])


def test_records_that_do_not_fit_the_cache_are_refused() -> None:
    with pytest.raises(ValueError, match="dimension"):
        train_privately(cache_of(), records_of(5, dim=8), local())
    with pytest.raises(ValueError, match="classes"):
        train_privately(cache_of(classes=2), FeatureSet(records_of(5).features, torch.full((5,), 2)), local())


def test_training_helps() -> None:
    """Noise or not, the steps go downhill on the silo's own records."""
    from cachefl_secure.cache.model import add_update, logits

    cache, records = cache_of(), records_of(200)
    mechanism = local(expected_records=200, steps=60, learning_rate=1.0, noise_multiplier=2.0)
    after = add_update(cache, update(records, mechanism).copy())
    before_loss = float(cross_entropy(logits(cache, records.features), records.labels))
    assert float(cross_entropy(logits(after, records.features), records.labels)) < 0.9 * before_loss


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here: integer sums are tried on one when there is"
)
@pytest.mark.claim("C7")
def test_on_a_gpu_a_record_adds_one_integer_gradient_of_at_most_the_unit_and_the_noise_is_the_same() -> None:
    mechanism = distributed()

    def on_gpu(records: FeatureSet) -> NDArray[np.int64]:
        released = train_privately(
            cache_of(), records, mechanism, RandomStreams.repeatable(KEY), device="cuda"
        )
        assert isinstance(released, IntegerUpdate)
        return released.integers.astype(np.int64)

    assert np.array_equal(on_gpu(records_of(0)), integers(records_of(0), mechanism))
    for count in (0, 8, 127, 128, 255):
        difference = on_gpu(records_of(count + 1)) - on_gpu(records_of(count))
        assert sum(int(x) ** 2 for x in difference) <= mechanism.lattice.unit**2
