"""plan before anybody trains, and the ledger for whoever has to believe it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_files import LEDGER_FILE
from cachefl_secure.names import SiloId
from cachefl_secure.transport.local_federation import run_local_rounds
from cachefl_secure_cli.main import app
from tests.small_federation import SmallFederation, found, small_privacy


def invoke(*words: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in words])


def answer(*words: str | Path) -> Any:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["result"]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> SmallFederation:
    privacy = small_privacy(PrivacyChoices(rounds=4, expected_records=15))
    made = found(tmp_path_factory.mktemp("ledgers"), privacy=privacy)
    run_local_rounds(
        made.coordinator,
        list(made.silos.values()),
        2,
        deadline_seconds=60.0,
        progress=silent,
        tell=lambda _: None,
    )
    return made


@pytest.fixture
def silo(federation: SmallFederation) -> Path:
    return federation.silos[SiloId("silo-1")]


@pytest.mark.claim("C8")
def test_a_plan_tells_both_epsilons_ten_rounds_more_and_the_most_rounds_there_can_be() -> None:
    plan = answer(
        "plan", "--epsilon", "2", "--rounds", "20", "--minimum-cohort", "5", "--minimum-survivors", "5"
    )
    assert [point["rounds"] for point in plan["points"]] == [1, 5, 10, 15, 20, 30]
    assert (plan["survivors"], plan["colluders"], plan["most_rounds"]) == (5, 1, 20)
    assert plan["noise_multiplier_aggregate"] == pytest.approx(2 * plan["noise_multiplier_local"])
    at_the_end = plan["points"][4]["cost"]
    assert 1.98 < at_the_end["aggregate"] <= 2.0 < at_the_end["local"] <= plan["caps"]["local"]
    shown = invoke("plan", "--minimum-cohort", "5", "--minimum-survivors", "5").stdout
    assert "20 (the plan)" in shown
    assert "stops by itself after 20 rounds" in shown


def test_a_plan_says_why_it_stays_below_the_epsilon_that_was_asked_for() -> None:
    assert "--epsilon-local raises that" in invoke("plan", "--epsilon", "8").stdout
    assert "--epsilon-local raises that" not in invoke("plan", "--epsilon", "2").stdout


def test_a_plan_without_noise_says_so() -> None:
    assert "NOT PRIVATE" in invoke("plan", "--mechanism", "none").stdout


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--epsilon", "0", "epsilon"),
        ("--epsilon", "60", "more than can be accounted for"),
        ("--rounds", "0", "rounds"),
        ("--steps-per-round", "2", "--mechanism local"),
        ("--colluders", "3", "colluders"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(option: str, value: str, sentence: str) -> None:
    result = invoke("plan", option, value)
    assert result.exit_code == 7
    assert sentence in result.stderr
    assert "init" not in result.stderr


@pytest.mark.parametrize("option", ["--feature-dim", "--images-per-class", "--number-of-classes"])
def test_a_plan_for_nothing_is_refused_by_the_name_of_its_option(option: str) -> None:
    result = invoke("plan", option, "0")
    assert result.exit_code == 2
    assert option in result.stderr


def test_the_plan_of_a_federation_is_the_one_that_was_agreed(federation: SmallFederation) -> None:
    agreed = answer("plan", federation.coordinator)
    assert agreed == answer("plan", federation.silos[SiloId("silo-2")])
    assert agreed["rounds"] == 4
    assert agreed["mechanism"]["kind"] == "distributed"


def test_show_lists_every_entry(silo: Path) -> None:
    entries = answer("ledger", "show", silo)["entries"]
    assert [entry["kind"] for entry in entries[:2]] == ["enrol", "plan"]
    assert [entry["round"] for entry in entries if entry["kind"] == "spend"] == [1, 2]
    shown = invoke("ledger", "show", silo).stdout
    assert shown.count("spend") == 2
    assert entries[-1]["hash"] in shown


@pytest.mark.claim("C10")
def test_verify_tells_both_accountants_and_counts_the_heads_that_others_hold(
    federation: SmallFederation, silo: Path
) -> None:
    found = answer("ledger", "verify", silo, "--witness", federation.coordinator)
    assert found["witnessed_heads"] >= 2
    assert 0 < found["epsilon_aggregate"] < found["epsilon_local"]
    assert found["second_accountant_local"] > found["epsilon_local"]
    result = invoke("ledger", "verify", silo, "--witness", federation.coordinator)
    for step in ("(1) to (6)", "(7)", "(8)", "(9)", "(10)", "(11)"):
        assert step in result.stdout
    assert "no witnessed heads" not in result.stderr


@pytest.mark.claim("C10")
def test_a_shortened_ledger_passes_alone_and_fails_before_a_witness(
    federation: SmallFederation, silo: Path, tmp_path: Path
) -> None:
    lines = (silo / LEDGER_FILE).read_bytes().splitlines(keepends=True)
    handed_over = tmp_path / "ledger.jsonl"
    handed_over.write_bytes(b"".join(lines[:-3]))
    alone = invoke("ledger", "verify", handed_over)
    assert alone.exit_code == 0
    assert "a ledger that was cut short or written anew passes" in alone.stderr
    before_a_witness = invoke("ledger", "verify", handed_over, "--witness", federation.coordinator)
    assert before_a_witness.exit_code == 6
    assert "does not extend" in before_a_witness.stderr


@pytest.mark.claim("C10")
def test_a_changed_byte_is_named_with_its_entry(silo: Path, tmp_path: Path) -> None:
    raw = bytearray((silo / LEDGER_FILE).read_bytes())
    raw[raw.index(b'"round":2')] ^= 1
    (tmp_path / "ledger.jsonl").write_bytes(raw)
    for command in ("show", "verify"):
        result = invoke("ledger", command, tmp_path / "ledger.jsonl")
        assert result.exit_code == 6
        assert "entry" in result.stderr


@pytest.mark.claim("C10")
def test_before_the_first_round_there_is_nothing_to_witness_yet(tmp_path: Path) -> None:
    federation = found(tmp_path)
    first, second = federation.silos[SiloId("silo-1")], federation.silos[SiloId("silo-2")]

    def said(*witnesses: Path) -> str:
        result = invoke("ledger", "verify", first, *(w for path in witnesses for w in ("--witness", path)))
        assert result.exit_code == 7
        return result.stderr

    assert "has nothing to witness yet: no silo has been admitted there" in said(second)
    assert f"{federation.coordinator}: --witness" in said(federation.coordinator)
    assert "nothing to witness yet: no round with this ledger's silo" in said(federation.coordinator)
    everybody = list(federation.silos.values())
    for number, present in ((0, everybody), (1, everybody[1:])):
        run_local_rounds(
            federation.coordinator,
            present,
            number,
            deadline_seconds=60.0,
            progress=silent,
            tell=lambda _: None,
        )
    assert "nothing to witness yet: no round with this ledger's silo" in said(second)


@pytest.mark.parametrize("witness", ["nowhere", "another"])
def test_a_witness_that_knows_nothing_of_the_ledger_is_not_taken_for_one(
    silo: Path, tmp_path: Path, witness: str
) -> None:
    if witness == "another":
        found(tmp_path / "other", records=(3, 3, 3))
    directory = tmp_path / "other" / "coordinator" if witness == "another" else tmp_path / witness
    result = invoke("ledger", "verify", silo, "--witness", directory)
    assert result.exit_code == 7
    assert "names no head of this ledger" in result.stderr


@pytest.mark.parametrize("option", ["--head", "--key"])
def test_words_that_are_no_digest_are_refused(silo: Path, option: str) -> None:
    result = invoke("ledger", "verify", silo, option, "ABC")
    assert result.exit_code == 7
    assert "64 lower-case hex digits" in result.stderr


def test_another_key_than_expected_is_found(silo: Path) -> None:
    assert invoke("ledger", "verify", silo, "--key", "ab" * 32).exit_code == 6


def test_an_export_has_every_number_as_exact_as_the_ledger(silo: Path, tmp_path: Path) -> None:
    assert invoke("ledger", "export", silo, "-o", tmp_path / "l.json").exit_code == 0
    assert invoke("ledger", "export", silo, "-o", tmp_path / "l.csv").exit_code == 0  # by its name
    exported = json.loads((tmp_path / "l.json").read_bytes())["entries"]
    assert exported == answer("ledger", "show", silo)["entries"]
    with (tmp_path / "l.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(exported)
    spends = [
        (row["local_after"], row["mechanism.honest_survivors"]) for row in rows if row["kind"] == "spend"
    ]
    assert spends == [
        (entry["local_after"], entry["mechanism"]["honest_survivors"])
        for entry in exported
        if entry["kind"] == "spend"
    ]


def test_an_export_replaces_no_file_unasked_and_a_format_given_wins_over_the_name(
    silo: Path, tmp_path: Path
) -> None:
    output = tmp_path / "l.csv"
    output.write_text("of last year\n", encoding="utf-8")
    refused = invoke("ledger", "export", silo, "-o", output)
    assert refused.exit_code == 7
    assert "exists; give another name, or --force to replace it" in refused.stderr
    assert output.read_text(encoding="utf-8") == "of last year\n"
    assert invoke("ledger", "export", silo, "-o", output, "--force", "--format", "json").exit_code == 0
    assert json.loads(output.read_bytes())["entries"]


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    result = invoke("ledger", "show", tmp_path)
    assert result.exit_code == 7
    assert "no ledger" in result.stderr


def test_none_of_it_needs_torch(federation: SmallFederation, silo: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys\n"
        "from cachefl_secure_cli.main import app\n"
        f"silo, coordinator = {str(silo)!r}, {str(federation.coordinator)!r}\n"
        "verify = ['ledger', 'verify', silo, '--witness', coordinator]\n"
        "for words in (verify, ['ledger', 'show', silo], ['budget', silo], ['plan', coordinator]):\n"
        "    app(words, standalone_mode=False)\n"
        "assert not {'torch', 'opacus', 'open_clip'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.claim("C8")
def test_a_plan_of_one_release_tells_what_it_costs_and_that_there_is_no_other() -> None:
    options = "--mechanism statistics --epsilon 2 --minimum-cohort 5 --minimum-survivors 5 --feature-dim 64"
    plan = answer("plan", *options.split())
    assert [point["rounds"] for point in plan["points"]] == [1]
    assert (plan["mechanism"]["kind"], plan["most_rounds"]) == ("statistics", 1)
    assert plan["mechanism"]["dimension"] == str(10 * 64 + 64 * 65 // 2)
    (point,) = plan["points"]
    assert 1.98 < point["cost"]["aggregate"] <= 2.0 < point["cost"]["local"] <= 8.0
    assert plan["noise_multiplier_aggregate"] == pytest.approx(2 * plan["noise_multiplier_local"])
    assert "stops by itself after 1 round." in invoke("plan", *options.split()).stdout


@pytest.mark.parametrize(
    "words", ["--rounds 7", "--sampling-rate 0.5", "--steps-per-round 2", "--epsilon 51", "--gamma 0"]
)
def test_what_makes_no_sense_for_one_release_is_refused(words: str) -> None:
    result = invoke("plan", "--mechanism", "statistics", *words.split())
    assert result.exit_code == 7
    assert words.split()[0].strip("-").replace("-", "_") in result.stderr.replace("-", "_")
