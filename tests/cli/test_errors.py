"""Bad input gets a sentence and an exit code, never a traceback; help is instant and complete."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cachefl_secure.federation import letters
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import SiloId
from cachefl_secure.transport.local_federation import run_local_rounds
from cachefl_secure_cli.main import app
from tests.small_federation import SmallFederation, found, found_coordinator

COMMANDS = [
    "init",
    "join",
    "admit",
    "round",
    "status",
    "budget",
    "audit",
    "evaluate",
    "predict",
    "compare",
    "partition",
    "demo",
]
TRACE = "Traceback"


def invoke(*arguments: str | Path, typed: str = "") -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)


def refuses(exit_code: int, sentence: str, *arguments: str | Path) -> None:
    """The command ends with this code and says this on standard error, in our manner."""
    result = invoke(*arguments)
    assert result.exit_code == exit_code, result.output
    assert sentence in result.stderr.replace("\n", " ")
    assert result.stderr.startswith("cachefl-secure: ")
    assert TRACE not in result.output + result.stderr


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> SmallFederation:
    """After one round."""
    made = found(tmp_path_factory.mktemp("cli"))
    silos = list(made.silos.values())
    run_local_rounds(made.coordinator, silos, 1, deadline_seconds=60.0, progress=silent, tell=lambda _: None)
    return made


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert len(result.output) > 400


def test_help_does_not_import_the_heavy_libraries() -> None:
    heavy = [
        "torch",
        "numpy",
        "matplotlib",
        "diffusers",
        "open_clip",
        "opacus",
        "cryptography",
        "sklearn",
        "PIL",
    ]
    script = (
        "import sys, json\n"
        "from cachefl_secure_cli.main import app\n"
        "app(['init', '--help'], standalone_mode=False)\n"
        f"print(json.dumps([m for m in {heavy!r} if m in sys.modules]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.splitlines()[-1]) == []


def test_a_directory_of_nobody_is_refused(tmp_path: Path) -> None:
    refuses(7, "no such directory", "status", tmp_path / "nowhere")
    refuses(7, "no coordinator's directory", "status", tmp_path)
    refuses(7, "no silo's directory", "budget", tmp_path)
    refuses(7, "no coordinator's directory", "round", tmp_path, "--in-process", tmp_path)


def test_an_absent_invite_is_named(tmp_path: Path) -> None:
    refuses(
        7,
        "nowhere.toml",
        "join",
        tmp_path / "nowhere.toml",
        tmp_path / "a",
        "--data",
        tmp_path,
        "--name",
        "a",
    )


def test_a_bad_silo_name_is_explained(federation: SmallFederation, tmp_path: Path) -> None:
    invite = federation.coordinator / "invite.toml"
    refuses(
        7,
        "use a-z, 0-9 and '-'",
        *("join", invite, tmp_path / "a", "--data", tmp_path, "--name", "St. Mary's"),
        *("--clip", f"local-dir:{tmp_path}"),
    )


def test_a_plan_with_a_local_encoder_asks_where_it_is(federation: SmallFederation, tmp_path: Path) -> None:
    invite = federation.coordinator / "invite.toml"
    refuses(
        7, "give --clip local-dir:PATH", "join", invite, tmp_path / "a", "--data", tmp_path, "--name", "a"
    )


def test_a_mechanism_that_there_is_not_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    result = invoke("init", tmp_path / "c", "--mechanism", "magic")
    assert result.exit_code == 2
    assert all(name in result.stderr for name in ("distributed", "local", "none"))


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--epsilon", "-1", "--epsilon: must be more than 0, is -1"),
        ("--epsilon", "nan", "--epsilon: must be finite"),
        ("--delta", "2", "--delta: must be at most 0.001, is 2"),
        ("--clip-norm", "0", "--clip-norm: must be"),
        ("--sampling-rate", "1.5", "--sampling-rate: must be"),
        ("--rounds", "0", "--rounds: must be at least 1, is 0"),
        ("--expected-records", "0", "--expected-records: must be"),
        ("--mechanism", "none", "confirm with --not-private"),
        ("--minimum-cohort", "2", "--minimum-cohort: must be"),
        ("--colluders", "200", "--colluders: a sum of 3 silos"),
        ("--clip", "local-dir:", "local-dir:PATH"),
        ("--generator", "no/such-generator-anywhere", "generator"),
    ],
)
def test_a_choice_out_of_range_is_refused_by_name_and_leaves_nothing(
    tmp_path: Path, option: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    arguments: list[str | Path] = ["init", tmp_path / "c", option, value]
    if option == "--clip":
        arguments += ["--classes", "a,b"]
    refuses(7, sentence, *arguments)


def test_a_plan_without_privacy_says_so(tmp_path: Path) -> None:
    plan = PrivacyChoices(mechanism="none").draft()
    federation = found(tmp_path, privacy=plan, records=(5, 6, 7))
    silos = [word for path in federation.silos.values() for word in ("--in-process", str(path))]
    result = invoke("round", federation.coordinator, *silos)
    assert result.exit_code == 0, result.stderr
    assert "not private" in result.output
    spoken = invoke("budget", federation.silos[SiloId("silo-1")]).output
    assert spoken.replace("\n", " ").count("no differential privacy is claimed") == 1


def test_too_few_silos_abort_the_round_with_exit_4(federation: SmallFederation) -> None:
    two = [word for path in list(federation.silos.values())[:2] for word in ("--in-process", str(path))]
    result = invoke("round", federation.coordinator, *two)
    assert result.exit_code == 4
    assert "round aborted" in result.stderr
    again = shlex.join(["cachefl-secure", "round", str(federation.coordinator), *two, "--until", "2"])
    assert f"when they are back run `{again}`" in result.stderr


def test_a_round_that_was_cut_off_names_the_command_that_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = found(tmp_path)
    all_five = [word for path in federation.silos.values() for word in ("--in-process", str(path))]
    round_of_all = ["round", str(federation.coordinator), *all_five]
    genuine = SiloService.handle

    def handle(self: SiloService, phase: str, content: bytes) -> bytes:
        if phase == letters.MASKED_INPUT and self.silo > "silo-2":
            raise RuntimeError("the silo's machine lost power")
        return genuine(self, phase, content)

    with monkeypatch.context() as patch:
        patch.setattr(SiloService, "handle", handle)
        for more, rest in (
            (["-n", "1"], ["--resume"]),
            (["-n", "3"], ["--until", "3"]),
            (["--resume"], ["--resume"]),
        ):
            result = invoke(*round_of_all, *more)
            assert result.exit_code == 4, result.stderr
            again = [*round_of_all, *rest]
            assert f"run `{shlex.join(['cachefl-secure', *again])}`" in result.stderr
    result = invoke(*again, "--json")
    assert result.exit_code == 0, result.stderr
    assert [each["round"] for each in json.loads(result.stdout)["result"]["rounds"]] == [1]


def test_admitting_asks_and_no_is_an_answer(tmp_path: Path) -> None:
    federation = found(tmp_path / "f", records=(5, 6, 7))
    coordinator = found_coordinator(tmp_path / "other")
    requests = [path / "join-request.toml" for path in federation.silos.values()]
    refuses(7, "another federation", "admit", coordinator, *requests)
    (federation.coordinator / "roster.bin").unlink()
    result = invoke("admit", federation.coordinator, *requests, typed="n\n")
    assert result.exit_code == 1
    assert not (federation.coordinator / "roster.bin").exists()
    assert invoke("admit", federation.coordinator, *requests, typed="y\n").exit_code == 0


@pytest.mark.claim("C10")
def test_a_ledger_that_was_edited_ends_the_audit_with_exit_6(tmp_path: Path) -> None:
    federation = found(tmp_path, records=(5, 6, 7))
    silos = list(federation.silos.values())
    run_local_rounds(
        federation.coordinator, silos, 1, deadline_seconds=60.0, progress=silent, tell=lambda _: None
    )
    assert invoke("audit", silos[0]).exit_code == 0
    ledger = silos[0] / "ledger/ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b'"round":1', b'"round":2', 1))
    refuses(6, "ledger", "audit", silos[0])


@pytest.mark.claim("C10")
def test_a_ledger_cut_before_a_witnessed_head_ends_the_audit_with_exit_6(tmp_path: Path) -> None:
    federation = found(tmp_path, records=(5, 6, 7))
    silos = list(federation.silos.values())
    run_local_rounds(
        federation.coordinator, silos, 2, deadline_seconds=60.0, progress=silent, tell=lambda _: None
    )
    ledger = silos[0] / "ledger/ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:2]))  # enrol and plan: as if no round had been charged
    refuses(6, "witnessed", "audit", silos[0])


@pytest.mark.parametrize("command", ["status", "budget", "audit"])
def test_reports_are_one_json_envelope(federation: SmallFederation, command: str) -> None:
    result = invoke(command, federation.silos[SiloId("silo-1")], "--json")
    assert result.exit_code == 0
    envelope = json.loads(result.stdout)
    assert (envelope["version"], envelope["command"]) == (1, command)


def test_budget_says_no_sentence_twice(federation: SmallFederation) -> None:
    alone = [
        line for line in invoke("budget", federation.silos[SiloId("silo-1")]).output.splitlines() if line
    ]
    assert any(line.startswith("Spent so far: local ") for line in alone)
    shown = invoke("budget", *federation.silos.values()).output.splitlines()
    sentences = [line for line in shown if line.endswith(".")]
    assert len(sentences) == len(set(sentences)) == 2 * len(federation.silos) + 1
    assert sentences[-1].startswith("Spent so far: see the table.")


def test_budget_shows_what_the_plan_says_it_costs(federation: SmallFederation) -> None:
    result = invoke("budget", federation.silos[SiloId("silo-1")], "--json")
    (silo,) = json.loads(result.stdout)["result"]["silos"]
    assert silo["rounds_charged"] == 1
    assert silo["rounds_left"] == 3
    for view in ("local", "aggregate"):
        assert 0 < silo["spent"][view] < silo["projected"][view] <= silo["caps"][view] == 8.0


def test_an_unexpected_error_is_not_swallowed_and_shows_no_local_variable() -> None:
    """A real traceback for bugs, but Typer must not print the values of local variables in it."""
    script = (
        "from cachefl_secure_cli import main\n"
        "from cachefl_secure.federation import inspection\n"
        "def broken(root):\n"
        "    mask_seed = 'do-not-print-' + 'this-seed'\n"
        "    raise AssertionError('a bug')\n"
        "inspection.status = broken\n"
        "main.app(['status', '.'])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert ran.returncode == 1
    assert "a bug" in ran.stderr
    assert "do-not-print-this-seed" not in ran.stderr + ran.stdout


@pytest.mark.parametrize("columns", ["60", "80"])
def test_names_stay_readable_on_a_narrow_terminal(
    federation: SmallFederation, columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = invoke("budget", *federation.silos.values()).output
    assert all(silo in shown for silo in federation.silos)


def test_running_beyond_the_caps_shows_the_rounds_that_happened_and_exits_5(tmp_path: Path) -> None:
    federation = found(tmp_path, records=(5, 6, 7), epsilon_cap=5.5)
    silos = [word for path in federation.silos.values() for word in ("--in-process", str(path))]
    result = invoke("round", federation.coordinator, "-n", "4", *silos, "--json")
    assert result.exit_code == 5
    assert [each["round"] for each in json.loads(result.stdout)["result"]["rounds"]] == [1, 2]
    assert "3 silos have reached their caps" in result.stderr


def test_an_empty_image_folder_does_not_join(federation: SmallFederation, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    refuses(
        7,
        "holds no images",
        *("join", federation.coordinator / "invite.toml", tmp_path / "a", "--data", tmp_path / "images"),
        *("--name", "a", "--clip", f"local-dir:{tmp_path}"),
    )
