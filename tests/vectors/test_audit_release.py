"""One release, audited by the second implementation; its vectors, good and bad, by both."""

from __future__ import annotations

import ast
import json
import math
import shutil
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure.cache.model import cache_digest, cache_to_bytes
from cachefl_secure.errors import RecordRejected
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.enrolment import read_invite
from cachefl_secure.federation.grid_choices import GridChoices
from cachefl_secure.federation.one_release import StatisticsChoices
from cachefl_secure.federation.record import open_record, sign_record
from cachefl_secure.federation.roster_files import read_history
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.privacy.accounting import cost_of
from cachefl_secure.privacy.mechanism import mechanism_of
from cachefl_secure.privacy_plan import ReleasePlan
from cachefl_secure.protocol.vectors import aggregate_digest
from tests.driven import run
from tests.small_federation import SmallFederation, found, one_release, over_grid
from tests.vectors.audit import Federation, audit
from tests.vectors.audit_release import check_costs, costs, vectors
from tests.vectors.make import FOLDER
from tests.vectors.refusing import Refused
from tests.vectors.release_vectors import FEDERATIONS, restored

SECTIONS = (
    one_release(),
    one_release(
        StatisticsChoices(expected_records=20_000, head="ridge", epsilon=0.5, regulariser=2.5, gamma=1.0)
    ),
    over_grid(),
    over_grid(GridChoices(alphas=(0.5, 3.0, 20.0), betas=(1.0, 7.5), epsilon=0.3, expected_records=30_000)),
)
IDS = ("gda", "ridge-wide", "grid", "grid-wide")
SECOND = (
    *("audit", "audit_cache", "audit_release", "refusing", "reference"),
    *("make", "mail", "parts", "release", "release_vectors"),
)
PUBLIC = ("invite.toml", "roster.bin", "countersignatures.bin", "models", "rounds")


@pytest.fixture(scope="module", params=SECTIONS, ids=IDS)
def played(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> SmallFederation:
    federation = found(tmp_path_factory.mktemp("audit"), privacy=request.param)
    run(federation)
    return federation


@pytest.fixture
def published(played: SmallFederation, tmp_path: Path) -> Path:
    """What the coordinator shows to an auditor, nothing of its keys."""
    for name in PUBLIC:
        source = played.coordinator / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    return tmp_path


@pytest.mark.claim("C20")
def test_the_second_implementation_recomputes_the_cache_of_a_release(
    played: SmallFederation, published: Path
) -> None:
    (held,) = CoordinatorFiles.open(played.coordinator).chain().verified
    assert audit(published) == [played.plan.cache.initial_digest, held.record.cache_after]


@pytest.mark.parametrize("section", SECTIONS, ids=IDS)
@pytest.mark.parametrize(("silos", "colluders"), [(3, 0), (5, 1)])
def test_both_implementations_find_one_cost_of_a_release(
    tmp_path: Path, section: ReleasePlan, silos: int, colluders: int
) -> None:
    federation = found(tmp_path, privacy=section, records=(9,) * silos, colluders=colluders)
    plan = federation.plan
    theirs = cost_of([(mechanism_of(plan), 1)], plan.privacy.delta)
    ours = costs(tomllib.loads((federation.coordinator / "invite.toml").read_text("utf-8"))["plan"])
    for mine, other in zip(ours, (theirs.local, theirs.aggregate), strict=True):
        assert mine <= other <= mine + 2e-4  # PLD's grid, upwards


def test_a_plan_that_says_less_than_its_release_costs_is_found(published: Path) -> None:
    plan = Federation(published).plan
    check_costs(plan)
    local, aggregate = costs(plan)
    changes: tuple[dict[str, float], ...] = (
        {"epsilon_local": local * 0.999},
        {"epsilon_aggregate": aggregate * 0.999},
        {"noise_multiplier": plan["privacy"]["noise_multiplier"] * 0.99},
        {"delta": plan["privacy"]["delta"] / 2},
        {"epsilon_local": math.inf},
    )
    for change in changes:
        with pytest.raises(Refused):
            check_costs(plan | {"privacy": plan["privacy"] | change})


@pytest.mark.claim("C20")
def test_sums_that_the_record_names_but_not_its_cache_are_found(
    played: SmallFederation, published: Path
) -> None:
    """The coordinator names another sum than it opened, and signs: of statistics any, of a grid one in which others win."""
    files, folder = CoordinatorFiles.open(played.coordinator), published / "rounds/0001"
    record, _ = open_record((folder / "record.json").read_bytes(), files.plan)
    total = (folder / "aggregate.bin").read_bytes()
    for altered in _other_sums(total, Federation(published).plan, len(record.cohort)):
        (folder / "aggregate.bin").write_bytes(altered)
        lie = msgspec.structs.replace(record, aggregate_digest=aggregate_digest(altered))
        (folder / "record.json").write_bytes(sign_record(lie, files.state.signing_key()))
        with pytest.raises(Refused, match=r"another cache|beyond what"):
            audit(published)


def _other_sums(total: bytes, plan: dict[str, Any], silos: int) -> list[bytes]:
    if plan["privacy"]["mechanism"] == "statistics":
        return [total[:at] + bytes([total[at] ^ 1]) + total[at + 1 :] for at in range(10, len(total), 97)]
    (vector,) = vectors(plan, silos)
    words = [total[at : at + vector.word_bytes] for at in range(10, len(total), vector.word_bytes)]
    counts = [int.from_bytes(word, "little", signed=True) for word in words]
    most, best = max(counts), counts.index(max(counts))
    others = []
    for index in range(len(words)):
        wins = (most + (index > best)).to_bytes(
            vector.word_bytes, "little", signed=True
        )  # of equals the first
        if index != best:
            others.append(total[:10] + b"".join([*words[:index], wins, *words[index + 1 :]]))
    return others


@pytest.mark.claim("C20")
def test_a_second_release_and_another_cache_on_disk_are_found(
    played: SmallFederation, published: Path
) -> None:
    files = CoordinatorFiles.open(played.coordinator)
    kept, first = published / "models/0001.safetensors", published / "rounds/0001"
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Refused, match="kept"):
        audit(published)
    kept.write_bytes((published / "models/0000.safetensors").read_bytes())
    with pytest.raises(Refused, match="kept"):
        audit(published)
    kept.unlink()  # recomputed: an auditor needs it not
    assert len(audit(published)) == 2
    record, digest = open_record((first / "record.json").read_bytes(), files.plan)
    again = msgspec.structs.replace(record, round=2, previous_record=digest, cache_before=record.cache_after)
    shutil.copytree(first, published / "rounds/0002")
    (published / "rounds/0002/record.json").write_bytes(sign_record(again, files.state.signing_key()))
    with pytest.raises(Refused, match="second release"):
        audit(published)


def test_what_audits_and_what_writes_vectors_imports_nothing_of_the_package() -> None:
    for name in SECOND:
        tree = ast.parse((FOLDER.parent / f"{name}.py").read_text("utf-8"))
        imports = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imports |= {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        ours = {each.removeprefix("tests.vectors.") for each in imports if each.startswith("tests.vectors.")}
        assert ours <= set(SECOND), name
        assert not any(each.startswith("cachefl") for each in imports), name


# --- vectors


def vector(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return content


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in restored(files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def chain_of(root: Path) -> Chain:
    state, plan = StateDir(root), read_invite(root / "invite.toml")
    return Chain(state, plan, read_history(state, plan))


CASES = [(of, case["name"]) for of in FEDERATIONS for case in vector(f"{of}_bad_published")["cases"]]


@pytest.mark.claim("C20")
@pytest.mark.parametrize("of", FEDERATIONS)
def test_a_published_release_gives_the_caches_of_the_vector_in_every_byte(tmp_path: Path, of: str) -> None:
    stored = vector(of)
    write(tmp_path, stored["files"])
    chain = chain_of(tmp_path)
    models = dict(chain.models())
    assert [cache_digest(model) for model in models.values()] == stored["caches"] == audit(tmp_path)
    for number, model in models.items():
        name = f"models/{0 if number == 0 else FEDERATIONS[of].number:04d}.safetensors"
        assert cache_to_bytes(model) == (tmp_path / name).read_bytes()
    (held,) = chain.verified
    assert held.record.round == FEDERATIONS[of].number


@pytest.mark.claim("C20")
@pytest.mark.parametrize(("of", "case"), CASES)
def test_a_lie_about_a_release_ends_in_its_step_and_at_the_auditor(
    tmp_path: Path, of: str, case: str
) -> None:
    (wrong,) = [each for each in vector(f"{of}_bad_published")["cases"] if each["name"] == case]
    write(tmp_path, vector(of)["files"])
    write(tmp_path, wrong["files"])
    with pytest.raises(RecordRejected) as raised:
        list(chain_of(tmp_path).models())
    assert (type(raised.value).__name__, raised.value.step) == (wrong["expect"], wrong["step"])
    with pytest.raises(Refused):
        audit(tmp_path)
