"""What lies in a shared place for everybody to read and change: the package agrees with the second implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import ConfigError, PeerError
from cachefl_secure.federation import enrolment
from cachefl_secure.federation.enrolment import check_voucher, read_join_request, write_join_request
from cachefl_secure.names import COORDINATOR, FederationId, PublicKeyHex, SiloId
from cachefl_secure.plan import FederationPlan
from cachefl_secure.protocol import wire
from cachefl_secure.transport.parcels import Sender, read_card, read_parcel
from tests.small_federation import found_coordinator
from tests.vectors.mail import FEDERATION
from tests.vectors.make import FOLDER


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return content


def bad(name: str) -> list[str]:
    return [case["name"] for case in load(f"{name}_bad_read")["cases"]]


def case_of(name: str, case: str) -> dict[str, str]:
    (found,) = [each for each in load(f"{name}_bad_read")["cases"] if each["name"] == case]
    return dict(found)


HERE, PARCELS, CARDS = FederationId(FEDERATION), load("parcels"), load("contact_cards")


def identities(party: str) -> tuple[PublicKeyHex, ...]:
    return (PublicKeyHex(PARCELS["identities"][party]),)


def own_end(party: str) -> Sender:
    identity = SigningKey(bytes.fromhex(CARDS["identities"][party]))
    return Sender(HERE, party, identity, TransportKey(bytes.fromhex(CARDS["transport_keys"][party])))


@pytest.mark.parametrize("number", range(len(PARCELS["cases"])))
def test_a_parcel_of_the_vectors_is_read_and_opened_and_ours_differ_in_the_seal_alone(number: int) -> None:
    case = PARCELS["cases"][number]
    _, federation, sender, recipient, exchange, phase, answers = case["label"]
    raw = bytes.fromhex(case["parcel"])
    parcel = read_parcel(
        raw, federation_id=HERE, sender=sender, recipient=recipient, identities=identities(sender)
    )
    assert own_end(recipient).unpack(parcel).hex() == case["content"]
    assert (parcel.digest, b"".join(parcel.pieces()), wire.encode(parcel)) == (case["digest"], raw, raw)
    assert (parcel.label.federation_id, parcel.label.number) == (federation, exchange)
    content, key = bytes.fromhex(case["content"]), own_end(recipient).transport_key.public_key
    ours = own_end(sender).pack(recipient, key, exchange, phase, content, answers)
    assert (ours.label, len(ours.sealed)) == (parcel.label, len(parcel.sealed))
    assert own_end(recipient).unpack(ours) == content


def test_an_answer_names_the_request_by_its_digest() -> None:
    assert PARCELS["cases"][1]["label"][-1] == PARCELS["cases"][0]["digest"]


@pytest.mark.claim("C6", "C14")
@pytest.mark.parametrize("name", bad("parcels"))
def test_a_bad_parcel_ends_in_its_error(name: str) -> None:
    case, silo = case_of("parcels", name), load("parcels_bad_read")["recipient"]

    def read() -> bytes:
        raw, keys = bytes.fromhex(case["message"]), identities(COORDINATOR)
        parcel = read_parcel(raw, federation_id=HERE, sender=COORDINATOR, recipient=silo, identities=keys)
        return own_end(silo).unpack(parcel)

    with pytest.raises(PeerError) as refused:
        read()
    assert type(refused.value).__name__ == case["expect"]


@pytest.mark.parametrize("party", CARDS["cards"])
def test_cards_are_those_of_the_vectors_in_every_byte(party: str) -> None:
    own, raw = own_end(party), bytes.fromhex(CARDS["cards"][party])
    assert own.card() == raw
    assert read_card(raw, HERE, party, identities(party)) == own.transport_key.public_key


@pytest.mark.claim("C6", "C14")
@pytest.mark.parametrize("name", bad("contact_cards"))
def test_a_bad_card_ends_in_its_error(name: str) -> None:
    case, party = case_of("contact_cards", name), load("contact_cards_bad_read")["party"]
    with pytest.raises(PeerError) as refused:
        read_card(bytes.fromhex(case["message"]), HERE, party, identities(party))
    assert type(refused.value).__name__ == case["expect"]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FederationPlan:
    """Whose digest is the vectors'."""
    from cachefl_secure.federation.coordinator_files import CoordinatorFiles

    made = CoordinatorFiles.open(found_coordinator(tmp_path / "coordinator")).plan
    monkeypatch.setattr(enrolment, "plan_digest", lambda _: load("join_requests")["plan_digest"])
    return made


def test_requests_are_those_of_the_vectors_in_every_byte(plan: FederationPlan, tmp_path: Path) -> None:
    vector = load("join_requests")
    key, old = (SigningKey(bytes.fromhex(vector[name])) for name in ("key", "old_key"))
    silo, path = SiloId(vector["silo"]), tmp_path / "request.toml"
    assert write_join_request(silo, plan, key).decode() == vector["join"]
    assert write_join_request(silo, plan, key, old_key=old).decode() == vector["rotate"]
    path.write_text(vector["join"])
    applicant = read_join_request(path, plan)
    assert (applicant.member.silo, applicant.member.public_key) == (silo, key.public_key)
    assert applicant.voucher is None
    path.write_text(vector["rotate"])
    applicant = read_join_request(path, plan)
    assert applicant.voucher is not None
    check_voucher(applicant.voucher, old.public_key, applicant.member, plan)


@pytest.mark.claim("C14", "C16")
@pytest.mark.parametrize("name", bad("join_requests"))
def test_a_bad_request_ends_in_a_sentence_about_its_field(
    name: str, plan: FederationPlan, tmp_path: Path
) -> None:
    case, path = case_of("join_requests", name), tmp_path / "request.toml"
    path.write_text(case["request"])
    with pytest.raises(ConfigError) as refused:
        read_join_request(path, plan)
    assert refused.value.field == case["expect"]
