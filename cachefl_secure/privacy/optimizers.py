"""Opacus' ``DPOptimizer`` for gradients that stay factored: clip, sum, noise, and what the steps add up to.

Skip queue, order of work, scaling and accounting hook are Opacus' (1.6). Who makes the gradients and counts the steps
is ``training``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from cachefl_secure.cache.model import KeyRows, row_blocks
from cachefl_secure.errors import LocalProtocolError
from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
from cachefl_secure.privacy.integer_gradients import IntegerSum, coins_from, integer_factors
from cachefl_secure.privacy.mechanism import DistributedMechanism, LocalMechanism
from cachefl_secure.privacy.noise import RandomStreams
from cachefl_secure.updates import IntegerUpdate, NoisedUpdate, PrivateUpdate, ScaledUpdate


@dataclass(eq=False)
class RankOneGradients:
    """Per-record gradients ``a_i f_i^T`` of one chunk, never multiplied out. ``a`` (b, rows), ``f`` (b, C).

    Records with a non-finite number are set to zero on entry.
    """

    a: Tensor
    f: Tensor

    def __post_init__(self) -> None:
        # A sum is finite only if all its terms are; a test of every number costs as much as ten sums.
        if not bool((self.a.sum(dim=1) + self.f.sum(dim=1)).isfinite().all()):
            finite = self.a.isfinite().all(dim=1) & self.f.isfinite().all(dim=1)
            # both factors, since 0 * inf is NaN
            self.a = torch.where(finite.unsqueeze(1), self.a, 0.0)
            self.f = torch.where(finite.unsqueeze(1), self.f, 0.0)

    def __len__(self) -> int:
        return len(self.a)

    def clipped_sum(self, clip_norm: float) -> Tensor:
        """(rows, C) float64: sum of the gradients, each scaled to a norm of at most ``clip_norm``. Without privacy."""
        a, f = self.a.double(), self.f.double()
        norms = a.norm(dim=1) * f.norm(dim=1)
        factors = (clip_norm / (norms + 1e-6)).clamp(max=1.0)  # as in DPOptimizer, and never below the norm
        return torch.mm((a * factors.unsqueeze(1)).T, f)


class RankOneDPOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus is untyped
    """Opacus' optimizer for gradients that stay factored. Without noise; see ``IntegerDPOptimizer``."""

    @property
    def accumulated_iterations(self) -> int:
        """One batch a step: the accountant multiplies the sampling rate by this."""
        return 1

    def _get_flat_grad_sample(self, parameter: nn.Parameter) -> RankOneGradients:
        gradients: object = parameter.grad_sample  # type: ignore[attr-defined]
        if not isinstance(gradients, RankOneGradients):
            raise LocalProtocolError("a step without the records' gradients")
        return gradients

    def clip_and_accumulate(self) -> None:
        """Adds the chunk's clipped sum, and takes its gradients away so that none is counted twice."""
        (parameter,) = self.params
        clipped = self._get_flat_grad_sample(parameter).clipped_sum(self.max_grad_norm)
        parameter.summed_grad = clipped if parameter.summed_grad is None else parameter.summed_grad + clipped
        parameter.grad_sample = None

    def add_noise(self) -> None:
        """There is none to add."""
        (parameter,) = self.params
        parameter.grad, parameter.summed_grad = parameter.summed_grad, None

    def change(self) -> Tensor:
        """(rows, C) float64, a copy: what the steps so far add up to."""
        (parameter,) = self.params
        copy: Tensor = parameter.detach().clone()
        return copy

    def drift(self, public: Tensor | None) -> None:
        """Adds what no record has to do with, after a step."""
        if public is not None:
            (parameter,) = self.params
            parameter.data.add_(public)

    def moved(self, start: Tensor, row_of_key: Tensor | None) -> KeyRows:
        """Of cache keys that stood at ``start``, where some are after the steps so far; each moves by its own or by this row."""
        (parameter,) = self.params

        def rows_of(rows: slice) -> Tensor:
            change = parameter.detach()[rows if row_of_key is None else row_of_key[rows]]
            moved: Tensor = (start[rows].double() + change).float()
            return moved

        return rows_of

    def released(self) -> NoisedUpdate:
        """What all steps so far did."""
        (parameter,) = self.params
        return PrivateUpdate(parameter.detach().cpu().numpy())


class IntegerDPOptimizer(RankOneDPOptimizer):
    """Sums integer gradients, adds discrete Gaussian noise, and adds up the noised sums of all steps.

    No parameter moves: where the keys stand follows from that total, which is the release.
    """

    def __init__(
        self,
        *,
        mechanism: LocalMechanism | DistributedMechanism,
        streams: RandomStreams,
        records: int,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._mechanism, self._records = mechanism, records
        self._coins, self._stream = coins_from(streams.rounding), streams.noise
        self._noise = DiscreteGaussian(mechanism.noise_scale)
        most = mechanism.sum_bound + self._noise.limit
        if most >= 1 << 31:
            raise ValueError("more noise than 32 bits hold")
        self._total_dtype = torch.int32 if mechanism.steps * most < 1 << 31 else torch.int64
        self._sum: IntegerSum | None = None
        self._total: Tensor | None = None
        self._public: Tensor | None = None  # float64: what was added beside the noised sums

    def clip_and_accumulate(self) -> None:
        """Adds the chunk's integer gradients, none longer than the unit, and takes them away."""
        (parameter,) = self.params
        gradients = self._get_flat_grad_sample(parameter)
        if self._sum is None:
            self._sum = IntegerSum(
                tuple(parameter.shape), self._mechanism.lattice, self._records, parameter.device
            )
        self._sum.add(
            integer_factors(
                gradients.a, gradients.f, self._mechanism.clip_norm, self._mechanism.lattice, self._coins
            )
        )
        parameter.grad_sample = None

    def add_noise(self) -> None:
        """Noise of standard deviation noise_multiplier * unit, once for the whole batch."""
        if self._sum is None:
            raise LocalProtocolError("noise for a step that summed nothing")
        noised = self._sum.clamped(self._mechanism.sum_bound)
        self._noise.add_to(noised.numpy().reshape(-1), self._stream)
        if self._total is None:
            self._total, self._sum = noised.to(self._total_dtype), None  # perhaps in the same memory
        else:
            self._total += noised

    def scale_grad(self) -> None:
        """There is no gradient to scale: what an integer is worth is public, and applied where it is read."""

    def step(self, closure: Any = None) -> Any:
        """Clip, noise and accounting hook in Opacus' order; there is no parameter to move."""
        return self.pre_step()

    def change(self) -> Tensor:
        """As ``RankOneDPOptimizer.change``, on the processor."""
        (parameter,) = self.params
        if self._total is None:
            return torch.zeros(parameter.shape, dtype=torch.float64)
        change = self._total.double().mul_(-self._value)
        return change if self._public is None else change.add_(self._public)

    def drift(self, public: Tensor | None) -> None:
        """As ``RankOneDPOptimizer.drift``: beside the integers, which stay what was noised."""
        if public is not None:
            self._public = public if self._public is None else self._public.add_(public)

    def moved(self, start: Tensor, row_of_key: Tensor | None) -> KeyRows:
        """As ``RankOneDPOptimizer.moved``, rounded twice: a function of what is released, whatever its rounding."""
        total, public = self._total, self._public
        if total is None:
            return start.__getitem__

        def rows_of(rows: slice) -> Tensor:
            mine = rows if row_of_key is None else row_of_key[rows].to(total.device)
            moved = torch.add(start[rows], total[mine].to(start), alpha=-self._value)
            return moved if public is None else moved.add_(public[mine].to(start))

        if start.device.type == "cpu":
            return rows_of
        # The total is on the processor: it travels to a GPU once a step, not once for every chunk of records.
        return torch.cat([rows_of(rows) for rows in row_blocks(start)]).__getitem__

    def released(self) -> NoisedUpdate:
        """The noised sums of all steps, negated as descent steps are."""
        if self._total is None:
            raise LocalProtocolError("nothing was noised")
        if isinstance(self._mechanism, DistributedMechanism):
            return IntegerUpdate(self._total.neg_().numpy().reshape(-1))
        if self._public is None:
            return ScaledUpdate(self._total.numpy().reshape(-1), -self._value)
        return PrivateUpdate(self.change().numpy())

    @property
    def _value(self) -> float:
        """What an integer moves a cache key by."""
        return self._mechanism.step_length * self._mechanism.integer_value
