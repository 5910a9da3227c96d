"""Planted bugs that only one release can show, of statistics or over a grid: a second one, and what goes wrong in
further vectors."""

from __future__ import annotations

from typing import Any

import pytest

from cachefl_secure.crypto.expand import MaskStreams
from cachefl_secure.federation.declining import Decline
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.privacy_plan import GridPlan
from cachefl_secure.protocol import collecting, masking
from cachefl_secure.protocol.masking import Masks, MaskSeed
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum


def a_release_without_record_does_not_count(patch: pytest.MonkeyPatch) -> None:
    """A silo asks its chain only whether it released statistics, and a coordinator keeps the record to itself."""

    def check(self: SiloService, chain: Any, _: int) -> None:
        if chain.position.round > 0:
            raise Decline("update-already-released")

    patch.setattr(SiloService, "_check_not_released", check)


def a_record_does_not_end_releases(patch: pytest.MonkeyPatch) -> None:
    """Another round of a plan of one release is a round like any other."""
    patch.setattr(SiloService, "_check_not_released", lambda *_: None)


def a_second_grid_is_answered(patch: pytest.MonkeyPatch) -> None:
    """A silo takes counts over a grid for something less than a release: of statistics only there is one."""
    genuine = SiloService._check_not_released

    def check(self: SiloService, chain: Any, number: int) -> None:
        if not isinstance(self._files.plan.privacy, GridPlan):
            genuine(self, chain, number)

    patch.setattr(SiloService, "_check_not_released", check)


def a_release_is_not_noted(patch: pytest.MonkeyPatch) -> None:
    """The charge is on disk, and nothing says that what it was for has left."""
    patch.setattr(Ledger, "note_sent", lambda *_, **__: None)


class _AtSegments(MaskStreams):
    """Does as it should until the counters are done, the first words of 64 bits."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.arguments, self.at_segments = arguments | {"start": 0}, False

    def apply(self, words: Any) -> None:
        if self.at_segments:
            self.apply_to_segment(words)
        else:
            super().apply(words)
            self.at_segments = words.dtype.itemsize == 8

    def apply_to_segment(self, words: Any) -> None:
        """A segment goes in the clear."""


def segments_left_unmasked(patch: pytest.MonkeyPatch) -> None:
    """By silos, and the coordinator takes no masks off them: every sum is right."""
    patch.setattr(masking, "MaskStreams", _AtSegments)


def segments_under_masks_of_the_update(patch: pytest.MonkeyPatch) -> None:
    """Each begins the streams anew, at both ends: every sum is right."""

    class Anew(_AtSegments):
        def apply_to_segment(self, words: Any) -> None:
            MaskStreams(**self.arguments).apply(words)

    patch.setattr(masking, "MaskStreams", Anew)


def a_segment_keeps_masks_towards_dropped_silos(patch: pytest.MonkeyPatch) -> None:
    """The coordinator takes self masks off the last segment, and forgets the rest there."""
    genuine, note = masking.unmask, Masks.pairwise
    towards_dropped: list[MaskSeed] = []

    def noting(self: Masks, silo: Any, peer: Any, seed: MaskSeed) -> None:
        towards_dropped.append(seed)
        note(self, silo, peer, seed)

    def forgetful(total: Any, left: Masks, chosen: RoundParameters) -> AggregateSum:
        own = [
            [seed for seed in each if seed not in towards_dropped] for each in (left.added, left.subtracted)
        ]
        right, wrong = genuine(total, left, chosen), genuine(total, Masks(*own), chosen)
        return AggregateSum(right.words, right.counters, (*right.others[:-1], *wrong.others[-1:]))

    patch.setattr(Masks, "pairwise", noting)
    patch.setattr(collecting, "unmask", forgetful)
