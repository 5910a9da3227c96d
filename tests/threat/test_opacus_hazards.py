"""What goes wrong when Opacus is used as its examples do, and that it does not go wrong here.

One test for each hazard. Each asserts that the naive use *has* the hazard, so that we hear of it when Opacus mends it, and
that ours has not. Elsewhere: pairwise inclusion of the sampler and forks (``test_noise``, ``test_training``), N against
N + 1 records (``test_record_count``), ways to load a pickle (``test_imports``).
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine, privacy_engine
from opacus.accountants import RDPAccountant
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.model import add_update
from cachefl_secure.errors import LedgerCorrupt
from cachefl_secure.privacy import training
from cachefl_secure.privacy.accounting import epsilon_spent
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.privacy.mechanism import DistributedMechanism, LocalMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.training import change_of_keys, train_privately
from cachefl_secure.updates import IntegerUpdate
from tests.claims import REPOSITORY
from tests.privacy.examples import (
    DELTA,
    SIGNING_KEY,
    cache_of,
    distributed,
    local,
    new_ledger,
    records_of,
    spend,
)

pytestmark = [
    pytest.mark.claim("C7"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sample rate will be:UserWarning"),
]

NAIVE_SEED = 7


def naive(records: int, batch_size: int, **arguments: Any) -> tuple[Any, Any, Any, PrivacyEngine]:
    """A linear layer of 12 numbers made private as in Opacus' tutorial: (model, optimizer, loader, engine)."""
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(
        torch.randn(records, 4, generator=generator), torch.randint(0, 3, (records,), generator=generator)
    )
    model, engine = nn.Linear(4, 3, bias=False), PrivacyEngine()
    prepared = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=batch_size, shuffle=True),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **arguments,
    )
    return (*prepared, engine)


def step(model: Any, optimizer: Any, features: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(cross_entropy(model(features), labels, reduction="sum"))
    optimizer.step()


def released(
    records: FeatureSet,
    mechanism: DistributedMechanism | LocalMechanism,
    streams: RandomStreams | None = None,
) -> NDArray[np.float64]:
    return change_of_keys(train_privately(cache_of(), records, mechanism, streams), mechanism)


def test_rate_and_divisor_come_from_the_plan_and_not_from_the_number_of_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # naive: 256 of 1600 were asked for, a rate of 0.16; and one record more changes rate and divisor
    _, optimizer, loader, _ = naive(1600, 256)
    assert loader.sample_rate == 1 / 7
    assert optimizer.expected_batch_size == 228
    eight, nine = naive(8, 4), naive(9, 4)
    assert (eight[2].sample_rate, nine[2].sample_rate) == (1 / 2, 1 / 3)
    assert (eight[1].expected_batch_size, nine[1].expected_batch_size) == (4, 3)
    # ours
    engines: list[training.CachePrivacyEngine] = []
    prepare = training.CachePrivacyEngine.make_cache_private

    def watched(self: training.CachePrivacyEngine, *arguments: Any) -> Any:
        engines.append(self)
        module, optimizer = prepare(self, *arguments)
        assert optimizer.expected_batch_size is None
        return module, optimizer

    monkeypatch.setattr(training.CachePrivacyEngine, "make_cache_private", watched)
    mechanism = distributed(sampling_rate=0.16, expected_records=1600)
    for count in (8, 9, 1600):
        released(records_of(count), mechanism)
    assert [engine.accountant.history for engine in engines] == [[(4.4606, 0.16, 1)]] * 3
    assert mechanism.step_length == 0.5 / (0.16 * 1600 * 0.1)


def test_seeds_are_longer_than_32_bits() -> None:
    def naive_noise(seed: int) -> Tensor:
        model, optimizer, _, _ = naive(8, 4)
        torch.manual_seed(seed)
        step(model, optimizer, torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
        (parameter,) = model.parameters()
        gradient: Tensor = parameter.grad
        return gradient

    # naive: the upper half of a seed is thrown away, so there are 2^32 noises, hours of work to go through
    assert torch.equal(naive_noise(NAIVE_SEED), naive_noise(NAIVE_SEED + 2**32))
    assert not torch.equal(naive_noise(NAIVE_SEED), naive_noise(NAIVE_SEED + 1))
    # ours: every bit of a key counts, and there are 256
    noises = [RandomStreams.repeatable(NAIVE_SEED.to_bytes(32, "little")).noise.words(4)]
    noises += [
        RandomStreams.repeatable((NAIVE_SEED + 2**bit).to_bytes(32, "little")).noise.words(4)
        for bit in (32, 63, 255)
    ]
    assert len({each.tobytes() for each in noises}) == 4


def test_two_silos_with_one_seed_do_not_draw_the_same_noise() -> None:
    naive_noise, ours = [], []
    for _ in ("one silo", "another"):
        model, optimizer, _, _ = naive(8, 4)
        torch.manual_seed(NAIVE_SEED)
        np.random.seed(NAIVE_SEED)
        step(model, optimizer, torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
        naive_noise.append(next(model.parameters()).grad)
        torch.manual_seed(NAIVE_SEED)
        ours.append(released(records_of(0), distributed()))
    assert torch.equal(*naive_noise)  # each silo can subtract the other's
    assert float((ours[0] == ours[1]).mean()) < 0.05


def test_a_secure_generator_needs_no_package_that_cannot_be_installed() -> None:
    with pytest.raises(ImportError, match="torchcsprng"):
        PrivacyEngine(secure_mode=True)
    assert released(records_of(3), distributed()).any()
    assert "torchcsprng" not in sys.modules


def test_what_is_accounted_as_poisson_sampling_is_poisson_sampling() -> None:
    # naive: shuffled batches of five, every record exactly once, are charged as if drawn independently
    model, optimizer, loader, engine = naive(20, 5, poisson_sampling=False)
    sizes = []
    for features, labels in loader:
        sizes.append(len(features))
        step(model, optimizer, features, labels)
    assert sizes == [5, 5, 5, 5]
    assert engine.accountant.history == [(1.0, 0.25, 4)]
    # ours: sizes vary as those of independent draws do, and a record may come twice in a row or never
    stream = RandomStreams.from_system().sampling
    drawn = np.array([stream.coins(20, 0.25) for _ in range(400)])
    assert 3.0 < drawn.sum(1).var() < 4.6  # 20 * 0.25 * 0.75 = 3.75, standard error 0.27
    assert drawn.reshape(100, 4, 20).sum(1).max() > 1


def test_a_history_cannot_be_edited_in_place(tmp_path: Path) -> None:
    # naive: one assignment, and less was spent
    accountant = RDPAccountant()
    for _ in range(50):
        accountant.step(noise_multiplier=10.0, sample_rate=1.0)
    before = accountant.get_epsilon(DELTA)
    accountant.history[0] = (10.0, 1.0, 20)
    assert accountant.get_epsilon(DELTA) < 0.7 * before
    # ours: a signed chain
    path = tmp_path / "ledger.jsonl"
    ledger = new_ledger(path)
    for number in range(1, 4):
        spend(ledger, number)
    ledger.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:-2], lines[-1]]))
    with pytest.raises(LedgerCorrupt):
        Ledger.open(path, SIGNING_KEY)
    mechanism = distributed()
    with pytest.raises(
        (AttributeError, TypeError)
    ):  # frozen; of which class depends on the version of Python
        mechanism.noise_multiplier = 1e9  # type: ignore[misc]


def test_no_checkpoint_is_a_pickle() -> None:
    loads = [line for line in inspect.getsource(privacy_engine).splitlines() if "torch.load(" in line]
    assert loads
    assert all("weights_only=False" in line for line in loads)  # naive: whoever wrote the file runs code
    for path in (REPOSITORY / "cachefl_secure").rglob("*.py"):
        source = path.read_text()
        for call in ("load_checkpoint", "save_checkpoint", "torch.load", "torch.save", "load_state_dict("):
            assert call not in source, path


def test_an_empty_batch_is_a_charged_step_of_noise_only() -> None:
    # naive: where nobody is drawn, mode "ew" crashes, and a crash that depends on the draw tells
    model, optimizer, _, _ = naive(20, 5, grad_sample_mode="ew")
    with pytest.raises(RuntimeError, match="Batch size must be positive"):
        step(model, optimizer, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    # ours: training checks that exactly the mechanism's steps were counted, also when nobody was drawn
    mechanism = distributed(sampling_rate=1e-9)
    whole = released(records_of(20), mechanism) / (mechanism.step_length * mechanism.integer_value)
    assert float(whole.std()) == pytest.approx(mechanism.noise_scale, rel=0.25)
    assert epsilon_spent([(mechanism, 1)], DELTA) > 0.0


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_record_that_is_not_finite_contributes_nothing(poison: float) -> None:
    # naive: one such record makes the whole release NaN, which tells that it is there
    model, optimizer, _, _ = naive(8, 4)
    features = torch.zeros(3, 4)
    features[1, 2] = poison
    step(model, optimizer, features, torch.zeros(3, dtype=torch.int64))
    assert next(model.parameters()).isnan().any()
    # ours: as if it had no feature
    poisoned, without = records_of(8), records_of(8)
    poisoned.features[3, 5] = poison
    without.features[3] = 0.0
    one, other = (
        released(each, distributed(), RandomStreams.repeatable(b"k")) for each in (poisoned, without)
    )
    assert np.array_equal(one, other)


def test_frozen_parameters_stay_frozen() -> None:
    # naive: Opacus trains whatever requires a gradient, here a text classifier that somebody forgot to freeze
    forgotten = nn.Linear(5, 3, bias=False)
    model, start = nn.Sequential(nn.Linear(4, 5, bias=False), forgotten), forgotten.weight.detach().clone()
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.ones(8, 4), torch.zeros(8).long()), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for features, labels in loader:
        step(private, optimizer, features, labels)
    assert not torch.equal(forgotten.weight, start)
    # ours: there is one parameter, and the update is for it alone
    cache = cache_of()
    before = {name: getattr(cache, name).clone() for name in ("cache_keys", "key_labels", "text_classifier")}
    for mechanism in (local(steps=3), distributed()):
        update = change_of_keys(train_privately(cache, records_of(30), mechanism), mechanism)
        after = add_update(cache, update.copy())
        assert all(torch.equal(getattr(cache, name), was) for name, was in before.items())
        assert not torch.equal(after.cache_keys, before["cache_keys"])
        for name in ("key_labels", "text_classifier"):
            assert torch.equal(getattr(after, name), before[name])
        assert (after.alpha, after.beta, after.logit_scale) == (cache.alpha, cache.beta, cache.logit_scale)


NAIVE_PROCESS = "import torch; torch.manual_seed(7); print(torch.normal(0.0, 1.0, (4,)).tolist())"
OUR_PROCESS = (
    "import torch; torch.manual_seed(7)\n"
    "from cachefl_secure.privacy.noise import RandomStreams\n"
    "streams = RandomStreams.from_system()\n"
    "print([s.words(4).tolist() for s in (streams.noise, streams.sampling, streams.rounding)])"
)


def said_by_processes(code: str) -> set[str]:
    """What two spawned processes that run the same code print."""
    command = [sys.executable, "-c", code]
    return {subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)}


@pytest.mark.slow
def test_a_spawned_process_with_the_same_code_draws_other_noise() -> None:
    assert len(said_by_processes(NAIVE_PROCESS)) == 1
    assert len(said_by_processes(OUR_PROCESS)) == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_process_draws_other_noise() -> None:
    from tests.privacy.test_training import released_in_child

    streams = RandomStreams.from_system()
    childs = [released_in_child(streams) for _ in range(2)]
    own = train_privately(cache_of(), records_of(0), distributed(), streams)
    assert isinstance(own, IntegerUpdate)
    assert len({each.tobytes() for each in (*childs, -own.integers.astype(np.int64))}) == 3
