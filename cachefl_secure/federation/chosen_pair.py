"""The alpha and beta that a federation with mechanism ``grid`` has chosen, read from any of its parties' directories."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cachefl_secure.errors import OPTIONS, ConfigError
from cachefl_secure.federation.applying import chosen_pair
from cachefl_secure.federation.inspection import open_chain
from cachefl_secure.plan import FederationPlan
from cachefl_secure.privacy_plan import GridPlan


@dataclass(frozen=True, slots=True)
class ChosenPair:
    """Public. ``alpha`` and ``beta`` as the plan writes them."""

    alpha: float
    beta: float
    plan: FederationPlan
    root: Path

    def alpha_for(self, images_per_class: int, norm: Literal["sum", "mean"]) -> float:
        """Alpha as another plan would write it, so that it weighs the mean affinity to a class as it did in the grid."""
        cache = self.plan.cache
        if cache.alpha_norm == norm and (norm == "mean" or cache.images_per_class == images_per_class):
            return self.alpha
        of_mean = cache.in_model(self.alpha) * cache.images_per_class
        return of_mean if norm == "mean" else of_mean / images_per_class

    def check_same_cache(
        self,
        *,
        weights_digest: str,
        preprocessing_digest: str,
        templates: tuple[str, ...],
        classes: tuple[str, ...],
    ) -> None:
        """
        Raises:
            ConfigError: chosen for another encoder, other prompts or other classes.
        """
        encoder = self.plan.encoder
        same = {
            "another encoder": (encoder.weights_digest, encoder.preprocessing_digest)
            == (weights_digest, preprocessing_digest),
            "other prompts for the text classifier": encoder.templates == templates,
            "other classes": self.plan.classes == classes,
        }
        for what, holds in same.items():
            if not holds:
                raise _refused(
                    self.root, f"its grid was over {what} than this federation has; found one for this task"
                )


def chosen_pair_of(root: Path) -> ChosenPair:
    """From the last verified cache of a coordinator's or a silo's directory, recomputed from the sum of its round.

    Raises:
        ConfigError: no such directory, another mechanism, or its round has not happened.
        RecordRejected: its records or caches do not hold.
    """
    chain = open_chain(root)
    section = chain.plan.privacy
    if not isinstance(section, GridPlan):
        raise _refused(
            root, f"its mechanism is {section.mechanism}, not grid: it has chosen no alpha and beta"
        )
    if chain.position.round == 0:
        raise _refused(root, "its round has not happened yet; run it first")
    *_, (_, last) = chain.models()  # verifies the sum and the cache
    return ChosenPair(*chosen_pair(last, chain.plan.cache, section), chain.plan, root)


def _refused(root: Path, reason: str) -> ConfigError:
    return ConfigError(OPTIONS, "alpha_beta", f"{root}: {reason}")
