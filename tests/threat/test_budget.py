"""A coordinator that always wants one more round, and an operator who would give it: the ledger says no."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachefl_secure.errors import BudgetExhausted, LedgerError, PrivacyError, ProtocolError
from cachefl_secure.names import Digest
from cachefl_secure.privacy.accounting import (
    Cost,
    epsilon_rdp,
    epsilon_spent,
    noise_multiplier_for,
    rounds_within,
)
from cachefl_secure.privacy.accounting import charged as charged_for
from cachefl_secure.privacy.ledger import Ledger, verify_ledger
from cachefl_secure.privacy.mechanism import Mechanism, View
from tests.privacy.examples import (
    DELTA,
    PLAN,
    SIGNING_KEY,
    TRANSCRIPT,
    UPDATE,
    distributed,
    local,
    new_ledger,
    spend,
    without_noise,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.mark.claim("C11")
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_a_silo_serves_the_planned_rounds_and_not_one_more(path: Path, rate: float) -> None:
    noise = noise_multiplier_for(2.0, DELTA, rate, 12)
    mechanism = local(sampling_rate=rate, noise_multiplier=noise)
    planned = rounds_within(mechanism, DELTA, Cost(2.0, 2.0))
    assert planned == 12
    with new_ledger(path) as ledger:
        for number in range(1, planned + 1):
            spend(ledger, number, mechanism)
        before = path.read_bytes()
        with pytest.raises(BudgetExhausted) as refusal:
            spend(ledger, planned + 1, mechanism)
        assert path.read_bytes() == before  # refused before anything was written, hence before training
        assert refusal.value.spent == ledger.spent.local <= 2.0 < refusal.value.asked
        assert refusal.value.cap == 2.0
    assert verify_ledger(path, SIGNING_KEY.public_key).spent.within(Cost(2.0, 2.0))


@pytest.mark.claim("C8")
@pytest.mark.claim("C11")
@pytest.mark.parametrize(
    ("caps", "binding"),
    [(Cost(2.0, 9.0), "local"), (Cost(9.0, 1.0), "aggregate")],
    ids=["local", "aggregate"],
)
def test_a_distributed_silo_stops_at_the_cap_that_is_reached_first(
    path: Path, caps: Cost, binding: str
) -> None:
    most = rounds_within(distributed(), DELTA, caps)
    with new_ledger(path) as ledger:
        for number in range(1, most + 1):
            spend(ledger, number, distributed(), caps=caps)
        before = path.read_bytes()
        with pytest.raises(BudgetExhausted) as refusal:
            spend(ledger, most + 1, distributed(), caps=caps)
        assert path.read_bytes() == before
        assert refusal.value.view == binding
    assert 0 < most < rounds_within(distributed(), DELTA, Cost(9.0, 9.0))


@pytest.mark.claim("C11")
def test_no_renaming_gets_a_round_for_free(path: Path) -> None:
    """The coordinator may call a round what it likes: other number, attempt, plan, cache, delta, more noise."""
    with new_ledger(path) as ledger:
        spend(ledger, 1, cap=0.5)
        pretexts: list[dict[str, Any]] = [
            {"round_number": 2},
            {"round_number": 2, "attempt": 99},
            {"round_number": 1, "plan_digest": Digest("1" * 64)},
            {"round_number": 2, "cache_digest": Digest("2" * 64)},
            {"round_number": 2, "data_commitment": Digest("3" * 64)},
            {"round_number": 2, "delta": 0.9},
            {"round_number": 2, "mechanism": local(noise_multiplier=0.1, clip_norm=1e-9)},
            {"round_number": 2, "mechanism": local(sampling_rate=0.001, noise_multiplier=0.3)},
            {"round_number": 2, "mechanism": without_noise(local())},
            {"round_number": 2, "mechanism": distributed(honest_survivors=1000)},
            {"round_number": 2, "survivors": 900, "colluders": 0},
            {"round_number": 2, "rdp_order": 64, "mechanism": local(sampling_rate=0.9)},
            {"round_number": 2, "randomness": "insecure-test"},
        ]
        before = path.read_bytes(), ledger.spent
        for pretext in pretexts:
            with pytest.raises(PrivacyError):
                spend(ledger, **{"cap": 0.5, **pretext})
        assert (path.read_bytes(), ledger.spent) == before


@pytest.mark.claim("C9")
@pytest.mark.claim("C11")
def test_a_round_aborted_after_the_charge_stays_charged(path: Path) -> None:
    with new_ledger(path) as ledger:
        charged = spend(ledger, 1)
        ledger.note_sent(PLAN, 1, 1, UPDATE, TRANSCRIPT)
        ledger.note_abort(PLAN, 1, 1, "2 silos present, threshold 3")
        assert ledger.spent == charged.after
        assert spend(ledger, 2).before == charged.after


@pytest.mark.claim("C11")
def test_a_lower_cap_takes_effect_at_once(path: Path) -> None:
    with new_ledger(path) as ledger:
        spend(ledger, 1, cap=2.0)
        with pytest.raises(BudgetExhausted):
            spend(ledger, 2, caps=Cost(ledger.spent.local, 2.0))
        with pytest.raises(BudgetExhausted):
            spend(ledger, 2, caps=Cost(2.0, ledger.spent.aggregate))
        with pytest.raises(BudgetExhausted):
            spend(ledger, 2, caps=Cost(2.0, math.nan))


@pytest.mark.claim("C11")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asks=st.lists(
        st.tuples(
            st.integers(1, 6),
            st.sampled_from(
                [
                    local(),
                    local(noise_multiplier=5.0),
                    local(steps=3),
                    distributed(),
                    local(sampling_rate=0.25),
                    distributed(sampling_rate=0.25, honest_survivors=2),
                    without_noise(local()),
                ]
            ),
            st.sampled_from([1e-5, 1e-3, 1e-6]),
            st.sampled_from([0.8, 2.0, 5.0]),
            st.booleans(),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_whatever_is_asked_epsilon_never_falls_and_never_passes_the_cap(
    tmp_path: Path, asks: list[tuple[int, Mechanism, float, float, bool]]
) -> None:
    path = tmp_path / "asked.jsonl"
    path.unlink(missing_ok=True)
    ledger = new_ledger(path)
    try:
        for number, mechanism, delta, cap, reopen in asks:
            spent = ledger.spent
            known = {s.round for s in ledger.spends}
            try:
                charged = spend(ledger, number, mechanism, delta=delta, cap=cap)
                assert charged.after.within(charged.caps)
                assert number in known or ledger.spent.local > spent.local
                assert number in known or ledger.spent.aggregate > spent.aggregate
            except (PrivacyError, ProtocolError):
                pass
            assert spent.within(ledger.spent)
            if reopen:
                ledger.close()
                ledger = Ledger.open(path, SIGNING_KEY)
    finally:
        ledger.close()
    report = verify_ledger(path, SIGNING_KEY.public_key)
    rounds = [(s.mechanism, 1) for s in report.spends]
    expected = charged_for(rounds, report.delta, 10) if rounds else Cost(0.0, 0.0)
    assert report.spent.local == pytest.approx(expected.local, rel=1e-7)
    assert report.spent.aggregate == pytest.approx(expected.aggregate, rel=1e-7)
    for view in View:
        assert report.spent.of(view) >= epsilon_spent(rounds, report.delta, view) - 1e-7 or not rounds
        assert epsilon_rdp(rounds, report.delta, view) >= epsilon_spent(rounds, report.delta, view) - 1e-3


def test_ledger_errors_do_not_pass_for_a_refusal(path: Path) -> None:
    """A silo must not mistake a broken ledger for an exhausted one, nor the other way round."""
    assert not issubclass(BudgetExhausted, LedgerError)
