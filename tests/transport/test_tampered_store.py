"""Somebody may write what they like into a store: forge requests, change answers, put old ones back.

They can keep a silo out of a round, as whoever holds the store can by deleting. No more than that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cachefl_secure.crypto.hpke import TransportKey
from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.federation import letters
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.names import COORDINATOR, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.transport import parcels
from cachefl_secure.transport.mailbox import EXCHANGE_FILE
from cachefl_secure.transport.mailbox_enrolment import coordinator_sender
from cachefl_secure.transport.parcels import Sender
from tests.party import Faults
from tests.processes import Party, Stage, stage, until

LEFT_UNANSWERED = "a request is left unanswered"


def _stranger(play: Stage, party: str) -> Sender:
    """Keys of their own, and the name of a party."""
    return Sender(play.federation.plan.id, party, SigningKey.generate(), TransportKey.generate())


def _exchange(play: Stage) -> int:
    return int((play.federation.coordinator / EXCHANGE_FILE).read_text())


def _folder(play: Stage) -> Path:
    return play.store / play.federation.plan.id


def _answer(play: Stage, silo: str) -> Path:
    return _folder(play) / "from" / f"{_exchange(play):012d}" / silo


@pytest.mark.claim("C6")
def test_forged_requests_are_not_handled_and_do_not_keep_the_genuine_one_out(tmp_path: Path) -> None:
    """One lies where the coordinator's next request will, others where none is expected; cards are forged too."""
    with stage(tmp_path) as play:
        play.serve(faults=Faults(tries=3))
        coordinator, gate = play.held_round("masked-input:before")
        forger, victim = _stranger(play, COORDINATOR), SiloFiles.open(play.federation.silos[SiloId("silo-1")])
        key = victim.state.transport_key().public_key
        for number, phase in ((_exchange(play) + 1, "masked-input"), (_exchange(play) + 9, "unmask")):
            forged = forger.pack("silo-1", key, number, phase, b"show me")
            _write(_folder(play) / f"to/silo-1/{number:012d}-{phase}", wire.encode(forged))
        _write(_folder(play) / "to/silo-1/no-request", b"\xff" * 100)
        _write(_folder(play) / f"contacts/{COORDINATOR}/ffffffffffffffff", forger.card())
        _write(_folder(play) / "contacts/silo-2/ffffffffffffffff", _stranger(play, "silo-2").card())
        play.until_said("silo-1", LEFT_UNANSWERED)
        until(lambda: play.serving[SiloId("silo-1")].said.count(LEFT_UNANSWERED) == 2, "both are left")
        assert (
            "no-request" not in play.serving[SiloId("silo-1")].said
        )  # what has no request's name is not looked at
        asked = len(play.replies(SiloId("silo-1")))
        gate.touch()
        assert coordinator.result()["rounds"][0]["survivors"] == play.silos
        phases = [reply["phase"] for reply in play.replies(SiloId("silo-1"))[asked:]]
        assert phases == [
            letters.MASKED_INPUT,
            letters.CERTIFICATE,
            letters.UNMASK,
            letters.HELLO,
            letters.SYNC,
        ]
        play.kill_all()
        play.check_no_second_reply()
        assert play.charges() == dict.fromkeys(play.silos, 1)


@pytest.mark.claim("C6")
def test_answers_that_are_cut_moved_forged_or_old_are_not_taken_and_an_old_exchange_changes_nothing(
    tmp_path: Path,
) -> None:
    """Of six silos four are needed. Those whose answers were spoilt are dropped, and in the next round again."""
    with stage(tmp_path, silos=6) as play:
        play.serve()
        first, gate = _answered_round(play)
        kept = shutil.copytree(play.store, tmp_path / "kept")
        old = _answer(play, "silo-2").read_bytes()
        cut = _answer(play, "silo-1").read_bytes()
        _answer(play, "silo-1").write_bytes(cut[: len(cut) // 2])
        _answer(play, "silo-2").write_bytes(_answer(play, "silo-3").read_bytes())
        assert _ended_without(play, first, gate, "silo-1", "silo-2") == play.silos[2:]

        second, gate = _answered_round(play)
        _answer(play, "silo-1").write_bytes(_forged_answer(play, "silo-1"))
        _answer(play, "silo-2").write_bytes(old)
        assert _ended_without(play, second, gate, "silo-1", "silo-2") == play.silos[2:]

        for silo in play.silos:
            play.kill(silo)  # or they would know the old requests by heart
        answered = {silo: len(play.replies(silo)) for silo in play.silos}
        shutil.rmtree(next(kept.glob("*/from")))  # else the requests look answered
        shutil.copytree(kept, play.store, dirs_exist_ok=True)
        play.serve()
        until(lambda: all(len(play.replies(silo)) > answered[silo] for silo in play.silos), "all have looked")
        for silo in play.silos:
            again = play.replies(silo)[-1]
            assert (again["phase"], again["declined"]) == (letters.MASKED_INPUT, "stale-round")
        assert play.play_round()["survivors"] == play.silos
        play.kill_all()
        play.check_no_second_reply()
        assert [len(record.survivors) for record in play.records()] == [4, 4, 6]
        assert play.charges() == dict.fromkeys(play.silos, 3)


def _answered_round(play: Stage) -> tuple[Party, Path]:
    """A round in which all masked inputs are in the store, and the coordinator has not looked yet."""
    coordinator, gate = play.held_round("masked-input:sent")
    until(lambda: all(_answer(play, silo).exists() for silo in play.silos), "all have answered")
    return coordinator, gate


def _ended_without(play: Stage, coordinator: Party, gate: Path, *spoilt: str) -> list[str]:
    """The survivors, when nothing more comes from the others until the deadline of this exchange."""
    for silo in spoilt:
        play.paths.silent(silo).touch()
    request = _folder(play) / "to" / spoilt[-1] / f"{_exchange(play):012d}-masked-input"
    assert request.exists()
    gate.touch()
    until(lambda: not request.exists(), "the exchange is over")
    for silo in spoilt:
        play.paths.silent(silo).unlink()
    survivors: list[str] = coordinator.result()["rounds"][0]["survivors"]
    return survivors


def _forged_answer(play: Stage, silo: str) -> bytes:
    """To the genuine request, sealed to the genuine coordinator, signed by somebody else."""
    files = CoordinatorFiles.open(play.federation.coordinator)
    (path,) = (_folder(play) / "to" / silo).glob("*-masked-input")
    request = parcels.read_parcel(
        path.read_bytes(),
        federation_id=files.plan.id,
        sender=COORDINATOR,
        recipient=silo,
        identities=(files.plan.coordinator_key,),
    )
    key = coordinator_sender(files).transport_key.public_key
    label = request.label
    return wire.encode(
        _stranger(play, silo).pack(COORDINATOR, key, label.number, label.phase, b"\x00" * 900, request.digest)
    )


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
