"""The claims of threat_model/claims.toml, and which tests are evidence for which.

A claim is tied to a test by ``@pytest.mark.claim("C4")``. Read by ``conftest.py`` while tests run and by
``threat/test_claims.py`` from the source alone.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
CLAIMS_FILE = REPOSITORY / "threat_model" / "claims.toml"


class Status(Enum):
    ENFORCED = "enforced"
    PLANNED = "planned"
    ASSUMED = "assumed"
    EXCLUDED = "excluded"


@dataclass(frozen=True, slots=True)
class Claim:
    """One ``[[claim]]``. C: a promise, T: an assumption, N: not protected."""

    id: str
    adversary: str
    text: str
    status: Status
    residual: str


def read_claims(path: Path = CLAIMS_FILE) -> dict[str, Claim]:
    """All claims by id, in the order of the file.

    Raises:
        ValueError: an id stands twice, or a field or status is unknown.
    """
    claims: dict[str, Claim] = {}
    for row in tomllib.loads(path.read_text(encoding="utf-8"))["claim"]:
        if row.keys() != set(Claim.__slots__):
            raise ValueError(f"{row.get('id')}: fields must be {', '.join(Claim.__slots__)}")
        claim = Claim(**{**row, "status": Status(row["status"])})
        if claim.id in claims:
            raise ValueError(f"{claim.id} stands twice")
        claims[claim.id] = claim
    return claims


def claim_marks(source: str) -> Iterator[str]:
    """Ids given to ``mark.claim(...)`` anywhere in the source, whether or not the test would run."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "claim"
            and isinstance(node.func.value, ast.Attribute)
            and node.func.value.attr == "mark"
        ):
            yield from (str(arg.value) for arg in node.args if isinstance(arg, ast.Constant))


def files_by_claim(tests: Path) -> dict[str, set[str]]:
    """For each id the names of the test files that mark it."""
    found: dict[str, set[str]] = {}
    for path in sorted(tests.rglob("test_*.py")):
        for claim_id in claim_marks(path.read_text(encoding="utf-8")):
            found.setdefault(claim_id, set()).add(path.name)
    return found


def faults(claims: Mapping[str, Claim], marked: Mapping[str, object]) -> list[str]:
    """Unknown ids, promises without a test, and tests that claim to show what is no promise."""
    wrong = [
        f"{claim_id}: marked by a test, not in claims.toml" for claim_id in marked if claim_id not in claims
    ]
    for claim in claims.values():
        if claim.status is Status.ENFORCED and claim.id not in marked:
            wrong.append(f"{claim.id}: enforced, but no test is marked with it")
        if claim.status is not Status.ENFORCED and claim.id in marked:
            wrong.append(f"{claim.id}: {claim.status.value}, yet a test claims to be its evidence")
    return wrong


def unproven(claims: Mapping[str, Claim], passed: Mapping[str, int]) -> list[Claim]:
    """Enforced claims without one passed test. A skipped test is not evidence."""
    return [
        claim for claim in claims.values() if claim.status is Status.ENFORCED and not passed.get(claim.id)
    ]
