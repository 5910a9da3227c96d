"""The roster changes by commands that people type: admit, confirm, rotate, round, status, audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cachefl_secure.names import SiloId
from cachefl_secure_cli.main import app
from tests.changing import newcomer, run
from tests.small_federation import SmallFederation, found

FOUR = ("silo-1", "silo-2", "silo-3", "silo-4")


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    federation = found(tmp_path, records=(12, 20, 9, 15, 11))
    run(federation)
    return federation


def invoke(*words: object, typed: str = "") -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=typed, env={"COLUMNS": "200"})


def answer(*words: object) -> dict[str, Any]:
    result = invoke(*words, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)["result"]
    return found


def in_process(*paths: Path) -> list[str]:
    return [word for path in paths for word in ("--in-process", str(path))]


@pytest.mark.claim("C16")
def test_a_silo_is_added_another_removed_and_a_key_replaced_by_typing_commands(
    federation: SmallFederation,
) -> None:
    coordinator, sixth = federation.coordinator, newcomer(federation, "silo-6")
    proposed = answer("admit", coordinator, sixth / "join-request.toml", "--remove", "silo-5", "--yes")
    assert [row[:2] for row in proposed["change"]] == [["added", "silo-6"], ["removed", "silo-5"]]
    assert (proposed["epoch"], proposed["quorum"], proposed["approvals"]) == (2, 4, [])
    for silo in FOUR:
        path, heard = federation.silos[SiloId(silo)], proposed["fingerprint"]
        confirmed = answer("confirm", path, proposed["proposal"], "--expect", heard, "--yes")
        assert (confirmed["silo"], confirmed["fingerprint"]) == (silo, heard)
    now = [*(federation.silos[SiloId(silo)] for silo in FOUR), sixth]
    assert invoke("round", coordinator, *in_process(*now)).exit_code == 0
    assert "epoch 2" in invoke("status", coordinator).output
    asked = answer("rotate", federation.silos[SiloId("silo-1")])
    proposed = answer("admit", coordinator, asked["request"], "--yes")
    assert proposed["change"] == [["new key", "silo-1", asked["fingerprint"]]]
    assert invoke("round", coordinator, *in_process(*now)).exit_code == 0  # carries the proposal to the silos
    assert "waits for you" in invoke("status", sixth).output
    approvals = [answer("confirm", path, "--yes")["approval"] for path in now[1:]]
    taken = answer("admit", coordinator, *(w for a in approvals for w in ("--approval", a)), "--yes")
    assert taken["approvals"] == ["silo-2", "silo-3", "silo-4", "silo-6"]
    assert invoke("round", coordinator, *in_process(*now)).exit_code == 0
    assert answer("status", now[0])["fingerprint"] == asked["fingerprint"]
    audited = invoke("audit", coordinator, *now)
    assert audited.exit_code == 0, audited.stderr
    assert "epoch 3; 4 of the 5 before approved it (new key: silo-1)" in audited.output


def test_confirming_asks_and_no_is_an_answer(federation: SmallFederation) -> None:
    path = federation.silos[SiloId("silo-1")]
    proposed = answer("admit", federation.coordinator, "--remove", "silo-5", "--yes")
    result = invoke("confirm", path, proposed["proposal"], typed="n\n")
    assert result.exit_code == 1
    assert proposed["fingerprint"] in result.output
    assert not (path / "approvals").exists()
    assert invoke("confirm", path, proposed["proposal"], typed="y\n").exit_code == 0
    assert (path / "approvals/0002.bin").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("admit", "COORDINATOR"), 2, "nothing to do"),
        (("admit", "COORDINATOR", "--remove", "nobody", "--yes"), 7, "not in the roster"),
        (("admit", "COORDINATOR", "--approval", "nowhere.bin"), 7, "no change of the roster waits"),
        (("confirm", "SILO"), 7, "no change of the roster waits"),
        (("confirm", "SILO", "nowhere.bin"), 7, "nowhere.bin"),
        (("confirm", "COORDINATOR"), 7, "no silo's directory"),
        (("rotate", "COORDINATOR"), 7, "no silo's directory"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    federation: SmallFederation, words: tuple[str, ...], code: int, said: str
) -> None:
    places = {"COORDINATOR": federation.coordinator, "SILO": federation.silos[SiloId("silo-1")]}
    result = invoke(*(places.get(word, word) for word in words))
    assert (result.exit_code, said in result.stderr) == (code, True), result.output + result.stderr


def test_a_proposal_is_withdrawn(federation: SmallFederation) -> None:
    answer("admit", federation.coordinator, "--remove", "silo-5", "--yes")
    assert invoke("admit", federation.coordinator, "--remove", "silo-4", "--yes").exit_code == 7
    assert "withdrawn" in invoke("admit", federation.coordinator, "--withdraw").output
    assert "no change waited" in invoke("admit", federation.coordinator, "--withdraw").output
    answer("admit", federation.coordinator, "--remove", "silo-4", "--yes")
