"""The threat model is data: claims, tests and documents say the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.claims import REPOSITORY, Status, claim_marks, faults, files_by_claim, read_claims, unproven

CLAIMS = read_claims()
DOCUMENTS = ["README.md", "threat_model/README.md", "threat_model/limits.md"]


def test_every_enforced_claim_has_a_test_and_nothing_else_has_one() -> None:
    assert faults(CLAIMS, files_by_claim(REPOSITORY / "tests")) == []


def test_ids_are_complete_and_say_what_they_are() -> None:
    for letter, statuses in {
        "C": {Status.ENFORCED, Status.PLANNED},
        "T": {Status.ASSUMED},
        "N": {Status.EXCLUDED},
    }.items():
        family = [claim for claim in CLAIMS.values() if claim.id[0] == letter]
        assert [claim.id for claim in family] == [f"{letter}{n}" for n in range(1, len(family) + 1)]
        assert {claim.status for claim in family} <= statuses


def test_every_promise_says_against_whom_and_what_remains() -> None:
    for claim in CLAIMS.values():
        assert claim.text.endswith("."), claim.id
        assert claim.adversary, claim.id
        assert claim.residual or claim.status is Status.EXCLUDED, claim.id


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_only_ids_that_exist(document: str) -> None:
    named = set(re.findall(r"\b[CTN][1-9]\d?\b", (REPOSITORY / document).read_text(encoding="utf-8")))
    assert named
    assert named <= set(CLAIMS)


def test_the_readme_shows_each_claim_with_its_status() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (C\d+) \|.*\| (\w+) \|$", readme, flags=re.MULTILINE))
    assert rows == {claim.id: claim.status.value for claim in CLAIMS.values() if claim.id[0] == "C"}


def test_limits_explains_every_excluded_claim() -> None:
    limits = (REPOSITORY / "threat_model" / "limits.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\*\*(N\d+)\b", limits, flags=re.MULTILINE)
    assert explained == [claim.id for claim in CLAIMS.values() if claim.id[0] == "N"]


def test_a_promise_without_a_test_and_a_test_without_a_promise_are_faults() -> None:
    marked = {"C1": {"test_x.py"}, "C12": {"test_y.py"}, "N1": {"test_z.py"}, "C99": {"test_z.py"}}
    wrong = {line.split(":")[0] for line in faults(CLAIMS, marked)}
    assert {"C12", "N1", "C99", "C7"} <= wrong
    assert "C1" not in wrong


def test_a_claim_none_of_whose_tests_passed_is_unproven() -> None:
    enforced = {claim.id: 1 for claim in CLAIMS.values() if claim.status is Status.ENFORCED}
    assert unproven(CLAIMS, enforced) == []
    assert [claim.id for claim in unproven(CLAIMS, {**enforced, "C7": 0})] == ["C7"]


def test_marks_are_found_on_functions_classes_modules_and_parameters() -> None:
    source = """
import pytest
pytestmark = pytest.mark.claim("C1")
@pytest.mark.claim("C2", "C3")
class TestX:
    @pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.claim("C5"))])
    def test_y(self, x): ...
"""
    assert sorted(claim_marks(source)) == ["C1", "C2", "C3", "C5"]


def _pytest(folder: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of its own over one throw-away test file, under this project's rules."""
    (folder / "test_throw_away.py").write_text(f"import pytest\n\n{body}", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-c", str(REPOSITORY / "pyproject.toml"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": ""}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )


def test_an_unknown_id_is_refused_even_when_only_one_file_is_run(tmp_path: Path) -> None:
    run = _pytest(tmp_path, "@pytest.mark.claim('C99')\ndef test_x(): pass\n", str(tmp_path))
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "no claim 'C99'" in run.stderr


def test_a_partial_run_passes_and_ends_with_the_table(tmp_path: Path) -> None:
    run = _pytest(tmp_path, "@pytest.mark.claim('C7')\ndef test_x(): pass\n", "-v", str(tmp_path))
    assert run.returncode == pytest.ExitCode.OK
    assert re.search(r"^C7 +enforced +1/1  All updates", run.stdout, flags=re.MULTILINE)
    assert re.search(r"^N1 +excluded +0/0  Poisoning", run.stdout, flags=re.MULTILINE)


def test_a_full_run_fails_when_the_only_evidence_was_skipped(tmp_path: Path) -> None:
    enforced = [claim.id for claim in CLAIMS.values() if claim.status is Status.ENFORCED and claim.id != "C7"]
    body = f"@pytest.mark.claim(*{enforced})\ndef test_x(): pass\n\n"
    skipped = "@pytest.mark.claim('C7')\ndef test_y(): pytest.skip('no reason')\n"
    run = _pytest(tmp_path, body + skipped, "-o", f"testpaths={tmp_path}")
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "1 passed, 1 skipped" in run.stdout
    assert [line for line in run.stdout.splitlines() if "no test of it passed" in line] == [
        "C7: enforced, but no test of it passed"
    ]
    shown = _pytest(
        tmp_path, body + skipped.replace("pytest.skip('no reason')", "pass"), "-o", f"testpaths={tmp_path}"
    )
    assert shown.returncode == pytest.ExitCode.OK
