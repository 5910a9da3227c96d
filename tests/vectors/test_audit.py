"""Finished rounds are verified by a second implementation from the public files, and lies in them are found by it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.record import open_record, sign_record
from cachefl_secure.plan import Trained, plan_digest
from cachefl_secure.server_plan import FEDAVG, AdamServer, MomentumServer, ServerPlan
from cachefl_secure.transport.local_federation import run_local_rounds
from tests.small_federation import SmallFederation, found, small_privacy
from tests.vectors.audit import audit, canonical
from tests.vectors.refusing import Refused

PUBLIC = ("invite.toml", "roster.bin", "countersignatures.bin", "models/0000.safetensors")


PLAYED = [
    ("local", "keys"),
    ("distributed", "keys"),
    ("distributed", "class_residual"),
    ("local", "adam"),
    ("distributed", "momentum"),
]


@pytest.fixture(scope="module", params=PLAYED)
def played(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> SmallFederation:
    """Two rounds."""
    mechanism, other = request.param
    choices = PrivacyChoices(mechanism=mechanism, rounds=4, expected_records=15)
    if other == "adam":
        choices = replace(choices, steps_per_round=3, proximal=0.25, replay_weight=0.3)
    trained: Trained = "class_residual" if other == "class_residual" else "keys"
    servers: dict[str, ServerPlan] = {"adam": AdamServer(rate=0.05), "momentum": MomentumServer(rate=0.7)}
    federation = found(
        tmp_path_factory.mktemp("audit"),
        privacy=small_privacy(choices, trained),
        trained=trained,
        server=servers.get(other, FEDAVG),
    )
    run_local_rounds(
        federation.coordinator,
        list(federation.silos.values()),
        2,
        deadline_seconds=60.0,
        progress=silent,
        tell=lambda _: None,
    )
    return federation


@pytest.fixture
def published(played: SmallFederation, tmp_path: Path) -> Path:
    """What the coordinator shows to an auditor, nothing of its keys; and the auditor is content with it."""
    for name in PUBLIC:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(played.coordinator / name, tmp_path / name)
    for number in ("0001", "0002"):
        (tmp_path / "rounds" / number).mkdir(parents=True)
        for name in ("record.json", "aggregate.bin"):
            shutil.copy(played.coordinator / "rounds" / number / name, tmp_path / "rounds" / number / name)
    assert audit(tmp_path) == caches(played)
    return tmp_path


def caches(federation: SmallFederation) -> list[str]:
    chain = CoordinatorFiles.open(federation.coordinator).chain()
    return [federation.plan.cache.initial_digest, *(held.record.cache_after for held in chain.verified)]


@pytest.mark.claim("C20")
def test_a_second_implementation_recomputes_every_cache_from_the_public_files(
    played: SmallFederation, published: Path
) -> None:
    assert audit(published) == caches(played)
    assert len(set(caches(played))) == 3


@pytest.mark.claim("C20")
@pytest.mark.parametrize(
    ("number", "changes"),
    [
        (1, {"federation_id": "f" * 32}),
        (1, {"plan_digest": "f" * 64}),
        (1, {"roster_digest": "f" * 64}),
        (1, {"attempt": 2}),
        (1, {"round": 2}),
        (1, {"previous_record": "f" * 64}),
        (1, {"saturated": 3}),
        (1, {"aggregate_digest": "f" * 64}),
        (1, {"cohort": ("silo-1", "silo-2", "silo-3")}),
        (2, {"manifest_digest": "f" * 64}),
        (2, {"cache_before": "f" * 64}),
        (2, {"cache_after": "f" * 64}),
        (2, {"survivors": ("silo-1", "silo-2", "silo-3", "silo-4")}),
        (2, {"round": 1}),
    ],
)
def test_a_lie_that_the_coordinator_signed_is_found(
    played: SmallFederation, published: Path, number: int, changes: dict[str, Any]
) -> None:
    files, path = CoordinatorFiles.open(played.coordinator), published / f"rounds/{number:04d}/record.json"
    record, _ = open_record(path.read_bytes(), files.plan)
    lie = msgspec.structs.replace(record, **changes)
    path.write_bytes(sign_record(lie, files.state.signing_key()))
    with pytest.raises(Refused):
        audit(published)


@pytest.mark.claim("C20")
def test_a_certificate_of_fewer_silos_or_of_another_round_is_found(
    played: SmallFederation, published: Path
) -> None:
    files, path = CoordinatorFiles.open(played.coordinator), published / "rounds/0001/record.json"
    record, _ = open_record(path.read_bytes(), files.plan)
    other, _ = open_record((published / "rounds/0002/record.json").read_bytes(), files.plan)
    fewer = dict(list(record.certificate.signatures.items())[1:])
    for signatures in (fewer, other.certificate.signatures):
        certificate = msgspec.structs.replace(record.certificate, signatures=signatures)
        lie = msgspec.structs.replace(record, certificate=certificate)
        path.write_bytes(sign_record(lie, files.state.signing_key()))
        with pytest.raises(Refused):
            audit(published)


@pytest.mark.claim("C20")
@pytest.mark.parametrize("name", [*PUBLIC[1:], "rounds/0001/record.json", "rounds/0002/aggregate.bin"])
def test_a_flipped_bit_in_a_public_file_never_gives_other_caches(
    played: SmallFederation, published: Path, name: str
) -> None:
    """Refused, or no file of its format any more; white space may change."""
    content, refused = (published / name).read_bytes(), 0
    places = range(0, len(content), max(1, len(content) // 60))
    for at in places:
        (published / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            assert audit(published) == caches(played)
        except (Refused, ValueError, KeyError, TypeError):
            refused += 1
    assert refused >= 0.95 * len(places)


def test_the_plan_has_one_name_in_both_implementations(played: SmallFederation) -> None:
    """Floats of every size, as the canonical form writes them."""
    values = [0.0, 1.0, 1e-5, 1e-6, 123.456, 1e15, 1e16, 1.5e17, 1e22, 5e-324, 2.5e-7, 0.1, 100.0, -3.25]
    assert canonical(values).encode() == msgspec.json.encode(values)
    assert plan_digest(played.plan) in (played.coordinator / "rounds/0001/record.json").read_text()
