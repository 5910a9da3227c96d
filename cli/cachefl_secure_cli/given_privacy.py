"""What was given of the options that decide about privacy, and the library's choices that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from cachefl_secure.errors import OPTIONS, ConfigError
from cachefl_secure_cli.privacy_options import HeadChoice, MechanismChoice

if TYPE_CHECKING:
    from cachefl_secure.federation.calibration import MechanismName, PrivacyChoices
    from cachefl_secure.federation.founding_choices import ReleaseChoices
    from cachefl_secure.federation.grid_choices import GridChoices
    from cachefl_secure.federation.one_release import StatisticsChoices

_OF_TRAINING = (
    "rounds",
    "sampling_rate",
    "clip_norm",
    "steps_per_round",
    "learning_rate",
    "proximal",
    "replay_weight",
)
_OF_STATISTICS = ("head", "gamma")
_OF_GRID = ("alphas", "betas")


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenPrivacy:
    """One field an option, by its name. Defaults are the library's, written again: importing it takes seconds."""

    mechanism: MechanismChoice = MechanismChoice.distributed
    epsilon: float | None = None
    epsilon_local: float = 8.0
    delta: float | None = None
    expected_records: int = 250
    rounds: int = 20
    sampling_rate: float = 1.0
    steps_per_round: int = 1
    clip_norm: float = 0.1
    learning_rate: float | None = None
    proximal: float = 0.0
    replay_weight: float = 0.0
    head: HeadChoice = HeadChoice.gda
    gamma: float = 8.0
    alphas: str = "1,3,10,30,100"
    betas: str = "1,3,9"

    def choices(self) -> PrivacyChoices | ReleaseChoices:
        """With the defaults that depend on other choices.

        Raises:
            ConfigError: an option that does nothing with the mechanism, or words where numbers are due.
        """
        self._refuse_what_does_nothing()
        match self.mechanism:
            case MechanismChoice.distributed:
                return self._training("distributed")
            case MechanismChoice.local:
                return self._training("local")
            case MechanismChoice.none:
                return self._training("none")
            case MechanismChoice.statistics:
                return self._statistics()
            case MechanismChoice.grid:
                return self._grid()
            case unknown:
                assert_never(unknown)

    def _refuse_what_does_nothing(self) -> None:
        released = self.mechanism in (MechanismChoice.statistics, MechanismChoice.grid)
        rules = (
            (
                _OF_TRAINING,
                not released,
                f"is about training; with --mechanism {self.mechanism.value} there is none",
            ),
            (
                _OF_STATISTICS,
                self.mechanism is MechanismChoice.statistics,
                "is of one release: it goes with --mechanism statistics",
            ),
            (
                _OF_GRID,
                self.mechanism is MechanismChoice.grid,
                "is of a grid: it goes with --mechanism grid",
            ),
        )
        for names, fits, reason in rules:
            for name in names:
                if not fits and self._is_given(name):
                    raise ConfigError(OPTIONS, name, reason)

    def _is_given(self, name: str) -> bool:
        """Whether it is not the default; one round is what a release has anyway."""
        usual = (1, USUAL.rounds) if name == "rounds" else (getattr(USUAL, name),)
        return getattr(self, name) not in usual

    def _delta(self) -> float:
        from cachefl_secure.federation.calibration import default_delta

        return default_delta(self.expected_records) if self.delta is None else self.delta

    def _training(self, mechanism: MechanismName) -> PrivacyChoices:
        from cachefl_secure.federation.calibration import PrivacyChoices

        return PrivacyChoices(
            mechanism=mechanism,
            epsilon=self.epsilon,
            epsilon_local=self.epsilon_local,
            delta=self._delta(),
            rounds=self.rounds,
            sampling_rate=self.sampling_rate,
            steps_per_round=self.steps_per_round,
            clip_norm=self.clip_norm,
            expected_records=self.expected_records,
            learning_rate=self.learning_rate,
            proximal=self.proximal,
            replay_weight=self.replay_weight,
        )

    def _statistics(self) -> StatisticsChoices:
        from cachefl_secure.federation.one_release import DEFAULT_EPSILON_AGGREGATE, StatisticsChoices

        return StatisticsChoices(
            epsilon=DEFAULT_EPSILON_AGGREGATE if self.epsilon is None else self.epsilon,
            epsilon_local=self.epsilon_local,
            delta=self._delta(),
            expected_records=self.expected_records,
            head=self.head.value,
            gamma=self.gamma,
        )

    def _grid(self) -> GridChoices:
        from cachefl_secure.federation.grid_choices import DEFAULT_EPSILON_AGGREGATE, GridChoices

        return GridChoices(
            alphas=_numbers("alphas", self.alphas),
            betas=_numbers("betas", self.betas),
            epsilon=DEFAULT_EPSILON_AGGREGATE if self.epsilon is None else self.epsilon,
            epsilon_local=self.epsilon_local,
            delta=self._delta(),
            expected_records=self.expected_records,
        )


USUAL = GivenPrivacy()
"""Nothing was given."""


def _numbers(name: str, text: str) -> tuple[float, ...]:
    """In rising order, each once."""
    try:
        numbers = {float(part) for part in text.split(",")}
    except ValueError:
        numbers = {math.nan}
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(OPTIONS, name, f"{text!r}: write numbers separated by commas")
    return tuple(sorted(numbers))
