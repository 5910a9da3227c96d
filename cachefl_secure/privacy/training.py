"""DP-SGD on the cache keys. With ``optimizers`` the only file that knows Opacus.

Opacus gives the engine: its ``PrivacyEngine`` prepares the module, its ``DPOptimizer`` runs clip, noise,
scale and accounting hook in that order, its accountant counts. Three things are ours:

* The gradient of one record is ``a f^T`` (see ``cache.model``), so its norm is ``||a|| * ||f||`` and the
  clipped sum is one matrix product. Nothing of size records x NK x C ever exists.
* Private sums are sums of integers with discrete Gaussian noise (``integer_gradients``, ``discrete_gaussian``).
  One more record changes such a sum by one integer gradient of at most the accounted norm, exactly.
* Everything that Opacus derives from a silo's number of records (sampling rate, batch size, divisor)
  comes from the plan instead. Derived from the records, it tells N from N + 1 without error.

Records are processed in chunks of one fixed shape, padded with zeros, so that every record's gradient is
computed alike whatever else is in the batch.

A step is a *sum* over records times a public length, so a silo weighs as much as it has records without telling how
many: the sum of one step over all silos is the step on their pooled records (decision 0035).

Averaging over silos at the coordinator, step lengths fixed in the plan, and steps on public synthetic features are
post-processing of what is released here: they cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.accountants import create_accountant
from torch import Tensor, nn

from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.heads import rank_one_gradient, row_of_key, trained_rows
from cachefl_secure.cache.model import CacheModel, KeyRows, row_blocks
from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.privacy.descent import KEYS_ALONE, Descent
from cachefl_secure.privacy.integer_gradients import records_at_once
from cachefl_secure.privacy.mechanism import DistributedMechanism, NoMechanism, StepMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.privacy.optimizers import IntegerDPOptimizer, RankOneDPOptimizer, RankOneGradients
from cachefl_secure.updates import NoisedUpdate, PrivateUpdate, ScaledUpdate

_CHUNK_RECORDS = 128
"""Without privacy: records whose ``a`` (as many numbers as rows are trained) and affinities (NK) are in memory at once."""


def train_privately(
    cache: CacheModel,
    records: FeatureSet,
    mechanism: StepMechanism,
    randomness: RandomStreams | None = None,
    *,
    descent: Descent = KEYS_ALONE,
    device: str = "cpu",
) -> NoisedUpdate:
    """The change of what is trained (rows * C numbers) after the mechanism's steps on these records.

    (epsilon, delta)-DP by add or remove one record, at the cost that ``accounting`` gives for
    ``mechanism``: reserve it in the ledger first. With ``NoMechanism``, which costs infinity, the same
    steps run without noise, and the result is the private features in another form.

    Zero records, and steps that draw none, give noise only. A record with a non-finite feature or
    gradient counts as absent. ``randomness`` is for tests; None draws keys from the operating system.

    Raises:
        ValueError: a label beyond the classes, features of another dimension, a mechanism of another
            dimension than what is trained, or noise that 32 bits do not hold.
    """
    _check_records(cache, records)
    _check_dimension(cache, mechanism, descent)
    streams = randomness or RandomStreams.from_system()
    engine = CachePrivacyEngine()
    trained = _KeyChange(cache, descent, device, moves=isinstance(mechanism, NoMechanism))
    chunk = chunk_records(mechanism)
    module, optimizer = engine.make_cache_private(trained, mechanism, streams, len(records))
    for _ in range(mechanism.steps):
        drawn = streams.sampling.coins(len(records), mechanism.sampling_rate)
        trained.take_gradients_after(optimizer)
        public = trained.public_pull(optimizer, mechanism)
        positions = torch.from_numpy(drawn).nonzero().flatten()
        chunks = torch.split(positions, chunk)  # none drawn: one chunk, empty
        for number, members in enumerate(chunks, 1):
            optimizer.zero_grad()
            module(*_padded(records, members, chunk, device))
            # Opacus' own way to split a batch: noise and step come with the last chunk only.
            optimizer.signal_skip_step(do_skip=number < len(chunks))
            optimizer.step()
        optimizer.drift(public)
    counted = engine.accountant.history
    if counted != [(mechanism.noise_multiplier, mechanism.sampling_rate, mechanism.steps)]:
        raise LocalProtocolError(f"Opacus counted {counted}, which is not the mechanism that was charged")
    return optimizer.released()


def change_of_keys(update: NoisedUpdate, mechanism: StepMechanism) -> NDArray[np.float64]:
    """(rows * C,): what one silo's update does to what is trained, by itself."""
    if isinstance(update, PrivateUpdate | ScaledUpdate):
        return update.values
    if not isinstance(mechanism, DistributedMechanism):
        raise ValueError("an integer update of another mechanism")
    return update.integers * np.float64(mechanism.step_length * mechanism.integer_value)


def _check_records(cache: CacheModel, records: FeatureSet) -> None:
    if records.features.shape[1] != cache.feature_dim:
        raise ValueError("features and cache keys differ in dimension")
    if len(records) and int(records.labels.max()) >= cache.number_of_classes:
        raise ValueError("a record's label is beyond the classes of the plan")


def _check_dimension(cache: CacheModel, mechanism: StepMechanism, descent: Descent) -> None:
    """Sensitivity holds for any, but what discrete noise costs is accounted for with this number of entries."""
    entries = trained_rows(cache, descent.trained) * cache.feature_dim
    if not isinstance(mechanism, NoMechanism) and mechanism.dimension != entries:
        raise ValueError(f"a mechanism of dimension {mechanism.dimension}, {entries} numbers are trained")


def _padded(records: FeatureSet, positions: Tensor, chunk_records: int, device: str) -> tuple[Tensor, Tensor]:
    """The chunk's features and labels; a row of zeros has a gradient of exactly zero."""
    features = torch.zeros(chunk_records, records.features.shape[1])
    labels = torch.zeros(chunk_records, dtype=torch.int64)
    torch.index_select(records.features, 0, positions, out=features[: len(positions)])
    torch.index_select(records.labels, 0, positions, out=labels[: len(positions)])
    return features.to(device), labels.to(device)


def chunk_records(mechanism: StepMechanism) -> int:
    """As many records as go through a model at once: a constant of the mechanism, so that shapes are fixed."""
    return _CHUNK_RECORDS if isinstance(mechanism, NoMechanism) else records_at_once(mechanism.lattice)


class _KeyChange(nn.Module):
    """What is trained: how far the cache keys, or the residuals of the classes, have moved, float64, from zero.

    The change and not the keys themselves, so that the released update is what the steps added up to. Steps of
    integers add up in ``IntegerDPOptimizer`` and move no parameter.
    """

    def __init__(self, cache: CacheModel, descent: Descent, device: str, *, moves: bool) -> None:
        super().__init__()
        self._cache, self._descent, self._trained = cache, descent, descent.trained
        self._start = cache.cache_keys.to(device)
        self._keys: KeyRows = self._start.__getitem__
        row_of = row_of_key(cache, descent.trained)
        self._row_of_key = None if row_of is None else row_of.to(device)
        shape = (trained_rows(cache, descent.trained), cache.feature_dim)
        zero = torch.zeros(1, 1, dtype=torch.float64, device=device).expand(shape)
        self.change = nn.Parameter(zero.clone() if moves else zero)  # Opacus wants a parameter in any case

    @torch.no_grad()
    def take_gradients_after(self, optimizer: RankOneDPOptimizer) -> None:
        """Says where the cache keys are that the next step's gradients are taken at: made a few rows at a time."""
        self._keys = optimizer.moved(self._start, self._row_of_key)

    @torch.no_grad()
    def public_pull(self, optimizer: RankOneDPOptimizer, mechanism: StepMechanism) -> Tensor | None:
        """(rows, C) float64: how far this step goes whatever the records are; None: nowhere. See ``descent``.

        A function of what the steps before have released, and of public numbers.
        """
        descent = self._descent
        if descent.is_plain:
            return None
        pull = optimizer.change().mul(-descent.proximal)
        if descent.replayed is None:
            return pull
        features, labels = (
            descent.replayed.features.to(self._start),
            descent.replayed.labels.to(self._start.device),
        )
        weight = descent.replay_weight * mechanism.learning_rate / (mechanism.clip_norm * len(labels))
        for rows in row_blocks(features):
            a = rank_one_gradient(self._cache, features[rows], labels[rows], self._trained, self._keys)
            gradients = RankOneGradients(a, features[rows])
            pull -= weight * gradients.clipped_sum(mechanism.clip_norm).to(pull.device)
        return pull

    @torch.no_grad()
    def forward(self, features: Tensor, labels: Tensor) -> None:
        """Leaves the gradients where Opacus looks for them. No autograd: they have a closed form."""
        a = rank_one_gradient(self._cache, features, labels, self._trained, self._keys)
        self.change.grad_sample = RankOneGradients(a, features)  # type: ignore[attr-defined]  # set by Opacus


class CachePrivacyEngine(PrivacyEngine):  # type: ignore[misc]  # Opacus is untyped
    """``PrivacyEngine`` with the sampling rate and the divisor of the plan.

    ``make_private`` is not called: it takes both from ``len(data_loader)``, that is from the private
    number of records (opacus #571, #819).
    """

    def __init__(self) -> None:
        # Not PrivacyEngine.__init__, which only chooses a generator, and warns that its secure one is not
        # installable. The generator is noise.RandomStream; Opacus draws nothing.
        self.accountant = create_accountant(mechanism="prv")  # only its history is read
        self.secure_mode, self.secure_rng, self.dataset = False, None, None

    def make_private(self, **_: Any) -> None:
        raise LocalProtocolError("make_private derives public parameters from private records")

    def make_cache_private(
        self, module: _KeyChange, mechanism: StepMechanism, streams: RandomStreams, records: int
    ) -> tuple[Any, RankOneDPOptimizer]:
        """The wrapped module, and plain SGD without momentum behind the DP optimizer.

        ``records`` bounds what a sum may need in memory, and nothing else.
        """
        wrapped = self._prepare_model(module, grad_sample_mode="no_op", loss_reduction="sum")
        arguments: dict[str, Any] = {
            "optimizer": torch.optim.SGD(wrapped.parameters(), lr=mechanism.step_length),
            "noise_multiplier": mechanism.noise_multiplier,
            "max_grad_norm": mechanism.clip_norm,
            "expected_batch_size": None,
            "loss_reduction": "sum",  # the divisor is in step_length, from public constants
        }
        optimizer = (
            RankOneDPOptimizer(**arguments)
            if isinstance(mechanism, NoMechanism)
            else IntegerDPOptimizer(mechanism=mechanism, streams=streams, records=records, **arguments)
        )
        optimizer.attach_step_hook(self.accountant.get_optimizer_hook_fn(sample_rate=mechanism.sampling_rate))
        return wrapped, optimizer
