"""A5: a silo that sends what it likes. It can spoil a round (N1); it cannot have nonsense applied unseen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cachefl_secure.errors import PeerError, RecordRejected
from cachefl_secure.federation import coordinator_round
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.sealed_update import SealedUpdate
from cachefl_secure.protocol.encoding import DecodedSum
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate
from cachefl_secure.transport.local_federation import run_local_rounds
from tests.small_federation import SmallFederation, found, small_privacy


@pytest.fixture(params=["local", "distributed"])
def federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> SmallFederation:
    """Five silos, one of which encodes an entry one step beyond what all five together may sum to."""
    hostile: list[bool] = []

    def encoding(_: SealedUpdate, parameters: RoundParameters) -> EncodedUpdate:
        words = np.zeros(parameters.dimension, parameters.word)
        if not hostile:
            hostile.append(True)
            words[3] = parameters.sum_bound(parameters.cohort_size) + 1
        return EncodedUpdate(words, np.zeros(parameters.counters, "<u8"))

    monkeypatch.setattr(SealedUpdate, "encoding", encoding)
    choices = PrivacyChoices(mechanism=request.param, rounds=4, expected_records=15)
    return found(tmp_path, privacy=small_privacy(choices))


def run(federation: SmallFederation, said: list[str]) -> None:
    silos = list(federation.silos.values())
    run_local_rounds(
        federation.coordinator, silos, 1, deadline_seconds=60.0, progress=silent, tell=said.append
    )


@pytest.mark.claim("C19")
def test_a_sum_beyond_what_the_cohort_can_have_sent_ends_the_round_and_changes_nobodys_cache(
    federation: SmallFederation,
) -> None:
    with pytest.raises(PeerError, match="outside the agreed bound"):
        run(federation, [])
    for directory in (federation.coordinator, *federation.silos.values()):
        assert not list(directory.glob("rounds/*/record.json"))
        assert [path.name for path in directory.glob("models/*")] == ["0000.safetensors"]


@pytest.mark.claim("C19")
def test_the_chain_that_every_party_keeps_refuses_a_record_with_such_a_sum(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the coordinator's own: the same code runs at every silo, before it adopts a record."""

    def blind(total: AggregateSum, parameters: RoundParameters) -> DecodedSum:
        signed = total.words.view(parameters.word.str.replace("u", "i"))
        return DecodedSum(signed * np.float64(parameters.grid_step), 0)

    monkeypatch.setattr(coordinator_round, "decode_sum", blind)
    with pytest.raises(RecordRejected, match="outside the agreed bound"):
        run(federation, [])
    assert CoordinatorFiles.open(federation.coordinator).chain().position.round == 0
