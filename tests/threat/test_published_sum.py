"""What nothing in this version prevents (limit N19): a coordinator that publishes another sum than the one it opened.

No test of a promise: it shows the excluded attack at work, so that nobody takes C20 for more than it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cachefl_secure.federation.inspection import audit_coordinator, audit_silo, open_chain
from cachefl_secure.federation.witnesses import witnessed_heads
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.vectors import AggregateSum
from tests.driven import run
from tests.small_federation import found
from tests.vectors.audit import audit


def test_a_sum_that_nobody_sent_is_adopted_by_everybody_and_holds_in_every_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = found(tmp_path)
    run(federation)
    genuine, true = CoordinatorSession.on_unmask_shares, list[bytes]()

    def lie(self: CoordinatorSession, answers: dict[str, bytes]) -> AggregateSum:
        total = genuine(self, answers)  # type: ignore[arg-type]
        true.append(total.to_bytes())
        parameters = self._attempt.parameters
        most = int(len(self.survivors) * parameters.clamp / parameters.grid_step)
        words = np.full(parameters.dimension, most, np.int64)
        words[::2] *= -1  # whatever it likes, within the bound of (5)
        return AggregateSum(words.astype(parameters.word), total.counters.copy(), ())

    with monkeypatch.context() as patch:
        patch.setattr(CoordinatorSession, "on_unmask_shares", lie)
        run(federation)
    run(federation)  # the federation goes on from the forged cache
    assert (federation.coordinator / "rounds/0002/aggregate.bin").read_bytes() != true[0]
    roots = [federation.coordinator, *federation.silos.values()]
    for root in roots:
        assert open_chain(root).position.round == 3
    for root in federation.silos.values():
        audit_silo(root, witnessed_heads(roots))
    audit_coordinator(federation.coordinator)
    assert len(audit(federation.coordinator)) == 4
