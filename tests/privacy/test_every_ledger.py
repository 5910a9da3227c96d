"""Runs last: what all ledgers of this test run were charged for, checked by a third accountant."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from cachefl_secure.privacy.accountants import pld_epsilon
from tests.every_ledger import FOUND, SEEN, Charged, all_histories, compare
from tests.privacy.examples import distributed, local, new_ledger, spend


@pytest.mark.claim("C7")
@pytest.mark.claim("C10")
def test_pld_prv_and_rdp_agree_on_every_ledger_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least on these two, when this test runs alone; in a worker the rest is compared after all (``conftest``)."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        monkeypatch.setattr("tests.every_ledger.SEEN", seen := Counter[Charged]())
    else:
        seen = SEEN
    with new_ledger(tmp_path / "distributed.jsonl") as ledger:
        spend(ledger, 1, distributed())
        spend(ledger, 2, distributed())
    with new_ledger(tmp_path / "mixed.jsonl") as ledger:
        spend(ledger, 1, local(sampling_rate=0.25))
        spend(ledger, 2, local())
    histories = all_histories(seen)
    assert len(histories) >= 3
    opinions = compare(histories)
    FOUND.append(opinions)
    assert opinions.contradictions == []
    assert opinions.agreeing >= 3


def test_an_epsilon_that_is_too_small_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.every_ledger.pld_epsilon", lambda *setting: pld_epsilon(*setting) - 0.05)
    opinions = compare([(((0.25, 4.0, 10),), 1e-5)])
    assert len(opinions.contradictions) == 1
    assert opinions.agreeing == 0
