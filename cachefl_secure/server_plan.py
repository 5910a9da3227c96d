"""The server section of a plan: what becomes of the mean update of a round. Public numbers only.

Every party applies it to the published sums, so nothing here is believed from anybody; and it is post-processing
of those sums, so it costs no privacy.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from cachefl_secure.fields import Positive, Strict

Decay = Annotated[float, Meta(ge=0.0, lt=1.0)]


class MeanServer(
    Strict, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="optimizer", tag="mean"
):
    """The mean is added as it is (FedAvg)."""


class MomentumServer(
    Strict, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="optimizer", tag="momentum"
):
    """m <- momentum * m + mean; rate * m is added (FedAvgM, Hsu et al. 2019)."""

    momentum: Decay = 0.9
    rate: Positive = 1.0


class AdamServer(
    Strict, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="optimizer", tag="adam"
):
    """FedAdam of Reddi et al. (2021), algorithm 2: v starts at epsilon^2, and no bias is corrected."""

    beta1: Decay = 0.9
    beta2: Decay = 0.99
    rate: Positive
    epsilon: Positive = 1e-3
    """tau of the paper: entries whose updates are smaller move less than ``rate``."""


ServerPlan = MeanServer | MomentumServer | AdamServer

FEDAVG = MeanServer()
"""The default."""
