"""Two federations over the same records of one institution: one ledger, in which their costs add up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cachefl_secure.errors import CohortExhausted, ConfigError, LedgerRolledBack
from cachefl_secure.federation.budget import Room, room_for_plan, silo_budget
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.inspection import audit_silo, status
from cachefl_secure.federation.joining import Joined
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.federation.witnesses import witnessed_heads
from cachefl_secure.names import SiloId
from cachefl_secure.privacy.accounting import Cost, charged, cost_of
from cachefl_secure.privacy.mechanism import View, mechanism_of
from cachefl_secure.privacy_plan import PrivacyPlan
from tests.driven import run
from tests.small_federation import (
    SmallFederation,
    found,
    found_coordinator,
    join_with_random_features,
    joined_with_random_features,
    small_privacy,
)

pytestmark = pytest.mark.claim("C11")

CLINIC = SiloId("silo-1")
RECORDS, SEED = 12, 1  # of silo-1 in the first federation


@pytest.fixture
def first(tmp_path: Path) -> SmallFederation:
    return found(tmp_path / "first")


def second_of(
    first: SmallFederation,
    root: Path,
    *,
    privacy: PrivacyPlan | None = None,
    seed: int = SEED,
    epsilon_cap: float | None = None,
) -> tuple[SmallFederation, Joined]:
    """Five silos; one of them is the clinic again, under another name and with the ledger that it has."""
    coordinator, again = found_coordinator(root / "coordinator", privacy=privacy), SiloId("again")
    joined = joined_with_random_features(
        root / again,
        coordinator,
        again,
        RECORDS,
        seed=seed,
        epsilon_cap=epsilon_cap,
        ledger=first.silos[CLINIC],
    )
    silos = {again: root / again}
    for index in range(2, 6):
        silos[SiloId(f"other-{index}")] = root / f"other-{index}"
        join_with_random_features(
            root / f"other-{index}", coordinator, SiloId(f"other-{index}"), 10, seed=10 + index
        )
    files = CoordinatorFiles.open(coordinator)
    files.admit(files.candidates([path / "join-request.toml" for path in silos.values()]))
    return SmallFederation(coordinator, silos), joined


def test_rounds_of_both_federations_add_up(first: SmallFederation, tmp_path: Path) -> None:
    run(first, 2)
    second, joined = second_of(first, tmp_path / "second")
    assert not joined.has_other_records
    run(second)
    run(first)
    expected = cost_of([(mechanism_of(first.plan), 4)], first.plan.privacy.delta)
    for directory in (first.silos[CLINIC], joined.request.parent):
        budget = silo_budget(directory)
        assert (budget.rounds_charged, budget.federations, budget.rounds_left) == (4, 2, 0)
        assert budget.spent.local == pytest.approx(expected.local)
    assert silo_budget(first.silos[SiloId("silo-2")]).rounds_charged == 3
    assert silo_budget(second.silos[SiloId("other-2")]).rounds_charged == 1
    report = SiloFiles.open(first.silos[CLINIC]).verified_ledger()
    assert len(report.data_commitments) == 1  # one salt: the same records have the same name


def test_one_cap_holds_for_both_and_each_federation_goes_on_without_the_silo(
    first: SmallFederation, tmp_path: Path
) -> None:
    run(first, 3)  # of four that the cap allows
    second, joined = second_of(first, tmp_path / "second")
    assert joined.caps == SiloFiles.open(first.silos[CLINIC]).caps
    said: list[str] = []
    outcomes = run(second, 2, said)
    assert [("again" in outcome.record.cohort) for outcome in outcomes] == [True, False]
    (line,) = said
    assert line.startswith("again: budget-exhausted (has spent ")
    assert f"epsilon_cap_local in {first.silos[CLINIC].resolve() / 'silo.toml'}" in line  # the first one's
    (outcome,) = run(first)
    assert CLINIC not in outcome.record.cohort
    assert silo_budget(first.silos[CLINIC]).spent.within(joined.caps)
    assert "caps allow no further round" in status(joined.request.parent).waiting_for


def test_join_tells_how_many_planned_rounds_the_first_ledgers_caps_leave_and_what_to_raise(
    first: SmallFederation, tmp_path: Path
) -> None:
    run(first, 3)  # of four that the cap allows
    _, joined = second_of(first, tmp_path / "second")
    assert joined.room is not None
    assert (joined.room.fitting, joined.room.planned) == (1, 4)
    config = (first.silos[CLINIC] / "silo.toml").resolve()
    assert [(cap.file.resolve(), cap.field) for cap in joined.room.too_low] == [
        (config, "epsilon_cap_local"),
        (config, "epsilon_cap_aggregate"),
    ]
    text = config.read_text(encoding="utf-8")
    for cap in joined.room.too_low:
        text = re.sub(rf"^{cap.field} = .*$", f"{cap.field} = {cap.needed!r}", text, flags=re.MULTILINE)
    config.write_text(text, encoding="utf-8")
    assert room_for_plan(SiloFiles.open(joined.request.parent)) == Room(4, 4, ())


def test_a_lower_cap_of_ones_own_is_named_beside_the_first_ledgers(
    first: SmallFederation, tmp_path: Path
) -> None:
    run(first)
    spent = silo_budget(first.silos[CLINIC]).spent
    _, joined = second_of(first, tmp_path / "second", epsilon_cap=spent.local + 0.01)
    assert joined.room is not None
    assert joined.room.fitting == 0
    assert {cap.file.parent.name for cap in joined.room.too_low} == {"silo-1", "again"}


def test_a_lower_cap_of_the_second_federation_binds_in_it_only(
    first: SmallFederation, tmp_path: Path
) -> None:
    run(first)
    spent = silo_budget(first.silos[CLINIC]).spent
    second, joined = second_of(first, tmp_path / "second", epsilon_cap=spent.local + 0.01)
    assert joined.caps.local == spent.local + 0.01
    outcomes = run(second)
    assert "again" not in outcomes[0].record.cohort
    run(first)
    assert silo_budget(first.silos[CLINIC]).rounds_charged == 2


def test_other_records_are_added_up_as_well_and_it_says_so(first: SmallFederation, tmp_path: Path) -> None:
    run(first)
    second, joined = second_of(first, tmp_path / "second", seed=77)
    assert joined.has_other_records
    run(second)
    assert silo_budget(joined.request.parent).rounds_charged == 2
    audit = audit_silo(joined.request.parent, {})
    assert "2 plans share this ledger" in audit.steps[0].finding
    assert "2 sets of records, added up as if they were one" in audit.steps[0].finding


def test_a_second_federation_of_another_setting_falls_to_the_renyi_filter(
    first: SmallFederation, tmp_path: Path
) -> None:
    run(first)
    choices = PrivacyChoices(mechanism="local", epsilon=4.0, rounds=4, sampling_rate=0.5, expected_records=15)
    second, joined = second_of(first, tmp_path / "second", privacy=small_privacy(choices))
    run(second)
    budget, plans = silo_budget(joined.request.parent), (first.plan, second.plan)
    rounds = [(mechanism_of(plan), 1) for plan in plans]
    order = SiloFiles.open(first.silos[CLINIC]).terms.rdp_order
    assert budget.spent.local == pytest.approx(charged(rounds, 1e-5, order).local)
    assert budget.delta == Cost(2e-5, 2e-5)
    assert "2e-05)-DP" in budget.statements[0]
    assert SiloFiles.open(joined.request.parent).verified_ledger().delta_of(View.LOCAL) == 2e-5


@pytest.mark.claim("C10")
@pytest.mark.parametrize("opened", ["first", "second"])
@pytest.mark.parametrize("witness", ["first", "second"])
def test_a_head_that_either_coordinator_witnessed_is_missed_from_both_directories(
    first: SmallFederation, tmp_path: Path, opened: str, witness: str
) -> None:
    second, joined = second_of(first, tmp_path / "second")
    directories = {"first": first.silos[CLINIC], "second": joined.request.parent}
    federations = {"first": first, "second": second}
    run(federations["first" if witness == "second" else "second"])
    ledger = SiloFiles.open(directories["first"]).ledger_path
    before = ledger.read_bytes()
    run(federations[witness])
    ledger.write_bytes(before)  # as if the last federation's round had not been
    with pytest.raises(LedgerRolledBack):
        SiloFiles.open(directories[opened]).ledger()
    with pytest.raises(LedgerRolledBack):
        SiloFiles.open(directories[opened]).verified_ledger()


@pytest.mark.claim("C10")
def test_an_audit_finds_heads_in_the_other_coordinators_directory_alone(
    first: SmallFederation, tmp_path: Path
) -> None:
    second, joined = second_of(first, tmp_path / "second")
    before = SiloFiles.open(first.silos[CLINIC]).ledger_path.read_bytes()
    run(second)
    SiloFiles.open(first.silos[CLINIC]).ledger_path.write_bytes(before)
    StateDir(joined.request.parent).remove("roster.bin")  # its own records are out of reach
    audit_silo(first.silos[CLINIC], {})
    with pytest.raises(LedgerRolledBack):
        audit_silo(first.silos[CLINIC], witnessed_heads([second.coordinator]))


def test_the_ledger_is_used_by_one_federation_at_a_time(first: SmallFederation, tmp_path: Path) -> None:
    _, joined = second_of(first, tmp_path / "second")
    with (
        SiloFiles.open(first.silos[CLINIC]).ledger(),
        pytest.raises(ConfigError, match="another process has this ledger open"),
    ):
        SiloFiles.open(joined.request.parent).ledger()
    SiloFiles.open(joined.request.parent).ledger().close()


def test_the_second_directory_has_the_key_of_the_first_and_a_storage_key_of_its_own(
    first: SmallFederation, tmp_path: Path
) -> None:
    _, joined = second_of(first, tmp_path / "second")
    one, two = StateDir(first.silos[CLINIC]), StateDir(joined.request.parent)
    assert two.signing_key().public_key == one.signing_key().public_key
    assert two.storage_key().reveal() != one.storage_key().reveal()
    assert two.read("keys/commitment.salt") == one.read("keys/commitment.salt")
    assert not two.has("ledger/ledger.jsonl")


def test_a_third_federation_finds_the_first_ledger_through_the_second(
    first: SmallFederation, tmp_path: Path
) -> None:
    _, joined = second_of(first, tmp_path / "second")
    third = joined_with_random_features(
        tmp_path / "third",
        found_coordinator(tmp_path / "coordinator-3"),
        SiloId("third"),
        RECORDS,
        seed=SEED,
        ledger=joined.request.parent,
    )
    files = SiloFiles.open(third.request.parent)
    assert files.ledger_path == SiloFiles.open(first.silos[CLINIC]).ledger_path
    assert len(files.ledger_sharers()) == 3
    assert not third.has_other_records


def test_a_ledger_of_another_institution_or_nowhere_is_refused(
    first: SmallFederation, tmp_path: Path
) -> None:
    _, joined = second_of(first, tmp_path / "second")
    config = joined.request.parent / "silo.toml"
    owner = str(first.silos[CLINIC].resolve())
    text = config.read_text(encoding="utf-8")
    assert owner in text
    for other, reason in (
        (first.silos[SiloId("silo-2")], "another key"),
        (tmp_path / "nowhere", "no silo's directory"),
    ):
        config.write_text(text.replace(owner, str(other)), encoding="utf-8")
        with pytest.raises(ConfigError, match=reason):
            SiloFiles.open(joined.request.parent).ledger()
    coordinator = found_coordinator(tmp_path / "coordinator-3")
    with pytest.raises(ConfigError, match="no silo's directory"):
        joined_with_random_features(
            tmp_path / "lost", coordinator, SiloId("lost"), 9, seed=1, ledger=tmp_path / "nowhere"
        )
    assert not (tmp_path / "lost").exists()


@pytest.mark.parametrize("both", ["first", "second"])
def test_an_interrupted_round_of_one_federation_is_not_taken_for_the_others(
    first: SmallFederation, tmp_path: Path, both: str
) -> None:
    """Round 1 of both is charged; what is noted of either names its own plan."""
    second, joined = second_of(first, tmp_path / "second")
    files = {"first": SiloFiles.open(first.silos[CLINIC]), "second": SiloFiles.open(joined.request.parent)}
    run(first)
    run(second)
    report = files[both].verified_ledger()
    updates = {spend.plan_digest: spend.update_digest for spend in report.spends}
    assert len(updates) == len(set(updates.values())) == 2
    assert None not in updates.values()


def test_a_federation_whose_silos_are_all_exhausted_says_so(first: SmallFederation, tmp_path: Path) -> None:
    run(first, 4)
    second, _ = second_of(first, tmp_path / "second")
    for silo in list(second.silos)[1:3]:
        config = second.silos[silo] / "silo.toml"
        text = config.read_text(encoding="utf-8")
        lines = [
            "epsilon_cap_local = 0.1" if line.startswith("epsilon_cap_local") else line
            for line in text.splitlines()
        ]
        config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said: list[str] = []
    with pytest.raises(CohortExhausted, match="3 silos have reached their caps; 2 are left"):
        run(second, 1, said)
    assert len(said) == 3
