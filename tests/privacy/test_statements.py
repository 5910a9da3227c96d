from __future__ import annotations

import math

import pytest

from cachefl_secure.names import SiloId
from cachefl_secure.privacy.statements import aggregate_statement, local_statement, meter

pytestmark = pytest.mark.claim("C8")

CLINIC = SiloId("clinic")
DELTA = 1e-5


def test_both_sentences_say_against_whom_and_round_up() -> None:
    assert local_statement(CLINIC, 1.97931786, 1e-5) == (
        "Against the coordinator and all other institutions together, without assuming secure aggregation, "
        "every record of silo clinic has (1.980, 1e-05)-DP, whenever its rounds end."
    )
    assert aggregate_statement(CLINIC, 1.97931786, 1e-5, colluders=1, survivors=4) == (
        "If at most 1 institution colludes with the coordinator or leaves out its noise, and the secure sum is unbroken "
        "(>= 4 survivors in every completed round), every record of silo clinic has (1.980, 1e-05)-DP, "
        "whenever its rounds end."
    )
    assert "(2.001, 1e-06)-DP" in local_statement(CLINIC, 2.0000001, 1e-6)
    assert "(12.342, 1e-05)-DP" in local_statement(CLINIC, 12.3411, 1e-5)
    assert "(0.000, 1e-05)-DP" in local_statement(CLINIC, 0.0, 1e-5)


def test_several_plans_say_no_single_number_of_survivors() -> None:
    statement = aggregate_statement(CLINIC, 2.0, 1e-5, colluders=1, survivors=None)
    assert "(as many survivors as its plan guarantees in every completed round)" in statement


def test_what_was_spent_is_told_with_its_condition() -> None:
    assert meter(2.5001, 1.2) == (
        "Spent so far: local 2.501, aggregate 1.200. "
        "These hold in place of the caps if the number of rounds did not depend on results."
    )


@pytest.mark.parametrize(
    ("epsilon", "insecure", "why"),
    [(math.inf, 0, "without noise"), (1.0, 3, "repeatable test stream in 3 rounds"), (math.inf, 1, "test")],
)
def test_where_nothing_holds_no_epsilon_is_printed(epsilon: float, insecure: int, why: str) -> None:
    for statement in (
        local_statement(CLINIC, epsilon, DELTA, insecure_rounds=insecure),
        aggregate_statement(CLINIC, epsilon, DELTA, colluders=1, survivors=4, insecure_rounds=insecure),
    ):
        assert "no differential privacy is claimed" in statement
        assert why in statement
        assert "-DP" not in statement
