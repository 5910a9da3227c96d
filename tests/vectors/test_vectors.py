"""The stored vectors, the slow reference that wrote them, and the fast code: all three agree, byte for byte."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cachefl_secure.crypto.derive import Purpose, derive
from cachefl_secure.crypto.expand import Keystream
from cachefl_secure.crypto.seal import SealingKey
from cachefl_secure.crypto.shamir import CoefficientSeed, combine, split
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.errors import PeerError
from cachefl_secure.names import Digest, FederationId, SiloId
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.encoding import RoundingSeed, decode_sum, encode
from cachefl_secure.protocol.masking import MaskSeed
from cachefl_secure.protocol.messages import Manifest, Member, Phase, Roster, roster_digest
from cachefl_secure.protocol.packing import pack, unpack
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.silo import SiloSession
from cachefl_secure.protocol.silo_secrets import (
    ChannelPrivateKey,
    MaskPrivateKey,
    SelfMaskSeed,
    ShareSeed,
    SiloSecrets,
)
from cachefl_secure.protocol.vectors import AggregateSum, EncodedUpdate
from cachefl_secure.updates import PrivateUpdate
from tests.protocol.rounds import integers
from tests.vectors.make import BAD_OF, FOLDER, LEDGER_HEAD, ROUNDS, TO_A_SILO, everything


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return content


NAMES = sorted(path.stem for path in Path(FOLDER).glob("*.json"))
ALL_BAD = [(name, case["name"]) for name in NAMES if "_bad_" in name for case in load(name)["cases"]]
BAD = [(name, case) for name, case in ALL_BAD if name.startswith(BAD_OF)]  # the others: see test_mail


def test_the_files_are_those_that_the_reference_writes() -> None:
    made = everything()
    assert sorted(made) == NAMES
    for name, content in made.items():
        assert load(name) == json.loads(json.dumps(content)), name


def test_most_vectors_are_of_what_must_fail() -> None:
    good = len([name for name in NAMES if "_bad_" not in name])
    assert len(BAD) >= 150
    assert len(ALL_BAD) >= 0.6 * (len(ALL_BAD) + good)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("packing")])
def test_words_are_packed_as_in_the_vectors(name: str) -> None:
    vector = load(name)
    words = np.array(vector["words"], "<u2" if vector["bits"] <= 16 else "<u4")
    packed = pack(words, vector["bits"])
    assert packed.tobytes().hex() == vector["packed"]
    assert unpack(packed, words.size, vector["bits"]).tolist() == vector["words"]


def test_mask_streams_are_those_of_the_vectors() -> None:
    for vector in load("mask_streams")["streams"]:
        stream = np.empty(64, np.uint8)
        Keystream(MaskSeed(bytes.fromhex(vector["seed"]))).fill(stream)
        assert stream.tobytes().hex() == vector["keystream"]
        assert stream[:32].view("<u2").tolist() == vector["words_16"]
        assert stream.view("<u4").tolist() == vector["words_32"]


def test_shares_are_those_of_the_vectors_and_combine() -> None:
    vector = load("shares")
    secrets = [bytes.fromhex(secret) for secret in vector["secrets"]]
    places = [int(place) for place in vector["shares"]]
    seed = CoefficientSeed(bytes.fromhex(vector["coefficient_seed"]))
    rows = split(secrets, threshold=vector["threshold"], holders=places, seed=seed)
    assert [b"".join(row).hex() for row in rows] == list(vector["shares"].values())
    assert combine(dict(zip(places[1:], rows[1:], strict=True))) == secrets


def test_secrets_are_derived_as_in_the_vectors() -> None:
    vector = load("derivations")
    source, got = SelfMaskSeed(bytes.fromhex(vector["source"])), set()
    for case in vector["cases"]:
        purpose = Purpose(f"cachefl-secure/CF-SecAgg/1/{case['purpose']}")
        context = bytes.fromhex(case["context"])
        kind = SealingKey if purpose is Purpose.SHARE_CHANNEL else MaskSeed
        secret = derive(kind, purpose, source, context=context, parties=case["parties"]).reveal()
        assert secret.hex() == case["secret"]
        got.add(secret)
    assert len(got) == len(vector["cases"])
    assert {case["purpose"] for case in vector["cases"]} == {p.value.rpartition("/")[2] for p in Purpose}


def a_round(clamp: float, grid_step: float, dimension: int, silos: int = 3) -> RoundParameters:
    threshold = silos // 2 + 1
    return RoundParameters(
        cohort_size=silos,
        roster_size=silos,
        colluders=0,
        threshold=threshold,
        minimum_survivors=max(threshold, 3),
        dimension=dimension,
        clamp=clamp,
        grid_step=grid_step,
        vector_bits=(2 * silos * (math.ceil(clamp / grid_step) + 1)).bit_length(),
    )


@pytest.mark.parametrize("number", range(len(load("encoding")["cases"])))
def test_updates_are_rounded_as_in_the_vectors(number: int) -> None:
    case = load("encoding")["cases"][number]
    values = np.array([float.fromhex(value) for value in case["values"]])
    parameters = a_round(float.fromhex(case["clamp"]), float.fromhex(case["grid_step"]), values.size)
    got = encode(PrivateUpdate(values), parameters, RoundingSeed(bytes.fromhex(case["seed"])))
    assert integers(got) == [*case["integers"], case["clamped"]]
    assert case["clamped"] >= 2


@pytest.mark.claim("C19")
def test_sums_decode_as_in_the_vectors_and_the_bad_ones_never() -> None:
    vector = load("sums")
    parameters = a_round(float(vector["bound"]), 1.0, vector["dimension"], vector["silos"])
    assert parameters.word == np.dtype("<u2")
    for case in vector["good"]:
        decoded = decode_sum(AggregateSum.from_bytes(bytes.fromhex(case["sum"]), parameters), parameters)
        assert decoded.values.tolist() == case["values"]
        assert decoded.saturated == case["clamped"]
    for case in vector["bad"]:
        with pytest.raises((PeerError, ValueError)) as raised:
            decode_sum(AggregateSum.from_bytes(bytes.fromhex(case["sum"]), parameters), parameters)
        assert type(raised.value).__name__ == case["expect"], case["name"]


class Game:
    """The real sessions under a vector's values."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self.vector, self.silos = vector, [SiloId(each["silo"]) for each in vector["silos"]]
        identities = {each["silo"]: SigningKey(bytes.fromhex(each["identity"])) for each in vector["silos"]}
        coordinator = SigningKey(bytes.fromhex(vector["coordinator_identity"]))
        values = {each["silo"]: [int(value) for value in each["values"]] for each in vector["silos"]}
        roster = Roster(
            FederationId("0f" * 16),
            Digest("ab" * 32),
            1,
            tuple(Member(silo, identities[silo].public_key) for silo in self.silos),
        )
        manifest = Manifest(
            plan_digest=roster.plan_digest,
            roster_digest=roster_digest(roster),
            round=7,
            attempt=1,
            cohort=tuple(self.silos),
            cache_digest=Digest("cd" * 32),
            previous_record=Digest("ef" * 32),
        )
        n, f, threshold = len(self.silos), vector["colluders"], vector["threshold"]
        self.parameters = RoundParameters(
            cohort_size=n,
            roster_size=n,
            colluders=f,
            threshold=threshold,
            minimum_survivors=max(threshold, 3, f + 2),
            dimension=len(values[self.silos[0]]) - 1,
            clamp=float(vector["bound"]),
            grid_step=1.0,
            vector_bits=vector["bits"],
        )
        self.updates = {
            silo: EncodedUpdate(
                np.array([v % 2**32 for v in values[silo][:-1]], "<u4").astype(self.parameters.word),
                np.array(values[silo][-1:], "<u8"),
            )
            for silo in self.silos
        }
        self.sessions = {
            SiloId(each["silo"]): SiloSession(
                manifest,
                SiloId(each["silo"]),
                identities[each["silo"]],
                roster,
                coordinator.public_key,
                self.parameters,
                SiloSecrets(
                    MaskPrivateKey(bytes.fromhex(each["mask_key"])),
                    ChannelPrivateKey(bytes.fromhex(each["channel_key"])),
                    SelfMaskSeed(bytes.fromhex(each["self_mask_seed"])),
                    ShareSeed(bytes.fromhex(each["share_seed"])),
                ),
            )
            for each in vector["silos"]
        }
        self.coordinator = CoordinatorSession(manifest, coordinator, roster, self.parameters)

    def stored(self, phase: str) -> dict[SiloId, bytes]:
        return {SiloId(s): bytes.fromhex(m) for s, m in self.vector["messages"][phase].items()}

    def arrived(self, phase: str) -> dict[SiloId, bytes]:
        """As stored, but for what the dropped silo sent too late."""
        late = phase in ("masked-input", "certify", "unmask")
        return {s: m for s, m in self.stored(phase).items() if not (late and s == self.vector["dropped"])}

    def answer(self, silo: SiloId, phase: str, data: bytes) -> bytes:
        session = self.sessions[silo]
        match phase:
            case "key-list":
                return session.on_key_list(data)
            case "share-delivery":
                return session.on_share_delivery(data, self.updates[silo], Digest(LEDGER_HEAD))
            case "survivor-set":
                return session.on_survivor_set(data)
            case _:
                return session.on_certificate(data)


STEPS = (
    ("key-list", "share"),
    ("share-delivery", "masked-input"),
    ("survivor-set", "certify"),
    ("certificate", "unmask"),
)


@pytest.mark.claim("C2", "C20")
@pytest.mark.parametrize("name", ROUNDS)
def test_a_whole_round_is_that_of_the_vector_in_every_byte(name: str) -> None:
    game = Game(load(name))
    assert game.stored("manifest") == dict.fromkeys(game.silos, game.coordinator.manifest_message())
    assert {silo: session.advertise() for silo, session in game.sessions.items()} == game.stored("advertise")
    downs = (
        game.coordinator.on_advertisements,
        game.coordinator.on_sealed_shares,
        game.coordinator.on_masked_inputs,
        game.coordinator.on_statements,
    )
    up = "advertise"
    for step, (down, following) in zip(downs, STEPS, strict=True):
        assert step(game.arrived(up)) == game.stored(down)
        assert {s: game.answer(s, down, m) for s, m in game.stored(down).items()} == game.stored(following)
        up = following
    total = game.coordinator.on_unmask_shares(game.arrived("unmask"))
    assert [str(value) for value in integers(total)] == game.vector["sum"]
    assert not game.coordinator.rejected


@pytest.mark.claim("C6", "C14")
@pytest.mark.parametrize(("name", "case"), BAD)
def test_a_bad_message_ends_in_its_error_and_the_good_one_still_does_its_work(name: str, case: str) -> None:
    vector = load(name)
    phase, silo = vector["phase"], SiloId(vector["silo"])
    (wrong,) = [each for each in vector["cases"] if each["name"] == case]
    game = Game(load(BAD_OF))
    if phase in TO_A_SILO:
        game.sessions[silo].advertise()
        for down, up in STEPS:
            if down == phase:
                with pytest.raises(PeerError) as raised:
                    game.answer(silo, down, bytes.fromhex(wrong["message"]))
                assert type(raised.value).__name__ == wrong["expect"]
            assert game.answer(silo, down, game.stored(down)[silo]) == game.stored(up)[silo]
            if down == phase:
                return
    downs = (
        game.coordinator.on_advertisements,
        game.coordinator.on_sealed_shares,
        game.coordinator.on_masked_inputs,
        game.coordinator.on_statements,
        game.coordinator.on_unmask_shares,
    )
    for up, step in zip(("advertise", "share", "masked-input", "certify", "unmask"), downs, strict=True):
        answers = game.arrived(up)
        if up != phase:
            step(answers)
            continue
        step(answers | {silo: bytes.fromhex(wrong["message"])})
        assert type(game.coordinator.rejected[silo]).__name__ == wrong["expect"]
        return


def test_phases_have_the_names_of_the_protocol() -> None:
    assert {phase.value for phase in Phase} == set(load("round_n3")["messages"])
