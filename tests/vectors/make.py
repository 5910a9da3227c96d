"""python -m tests.vectors.make: writes tests/vectors/v1 anew, from the reference alone.

packing_b08.json ...            words and their packed bytes, for every width from 8 to 32
mask_streams.json               seeds and the first words of their masks
encoding.json                   updates, coins' seeds, and the integers that they are rounded to
sums.json                       sums that decode, and (bad) sums that no cohort can have sent
derivations.json                secrets derived for every purpose
shares.json                     secrets, coefficients' seed, and the shares of some places
round_n5_drop1.json ...         a whole attempt: everything given, every message, the sum
parcels.json, contact_cards.json, join_requests.json, and each with _bad_read: what lies in a shared place
release_n4_drop1.json ...       what a coordinator publishes of one release of statistics; with _bad_published lies about it
round_n6_drop1_bad_<phase>.json messages with one thing wrong each, and the error that they must end in
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.protocol import reference as slow
from tests.vectors import mail, release_vectors
from tests.vectors.parts import primitives
from tests.vectors.reference import (
    COORDINATOR,
    RoundReference,
    Silo,
    fixed,
    msgpack,
    named,
)

FOLDER = Path(__file__).parent / "v1"
ROUNDS = {  # name -> silos, colluders, dropped, bits, largest integer, dimension
    "round_n3": (3, 0, None, 9, 80, 5),
    "round_n4_drop1": (4, 0, 1, 16, 7000, 11),
    "round_n5_drop1": (5, 1, 3, 21, 200_000, 9),
    "round_n6": (6, 2, None, 32, 300_000_000, 3),
    "round_n6_drop1": (6, 1, 3, 21, 150_000, 9),
}
BAD_OF = "round_n6_drop1"  # one more may be lost
TO_A_SILO = ("key-list", "share-delivery", "survivor-set", "certificate")
TO_THE_COORDINATOR = ("advertise", "share", "masked-input", "certify", "unmask")
LEDGER_HEAD = "1e" * 32


def build(name: str) -> tuple[RoundReference, dict[str, Any]]:
    """The round of this name, played, and its vector."""
    number, colluders, dropped, bits, bound, dimension = ROUNDS[name]
    rng, names = random.Random(name), [f"silo-{i:03d}" for i in range(1, number + 1)]
    silos = [
        Silo(
            silo,
            identity=fixed(f"{name} {silo} identity"),
            mask_key=fixed(f"{name} {silo} mask key"),
            channel_key=fixed(f"{name} {silo} channel key"),
            self_mask=fixed(f"{name} {silo} self mask"),
            share_seed=fixed(f"{name} {silo} shares"),
            values=[*(rng.randint(-bound, bound) for _ in range(dimension)), rng.randrange(2**64)],
        )
        for silo in names
    ]
    threshold = (number + colluders) // 2 + 1
    gone = None if dropped is None else names[dropped]
    played = RoundReference(silos, fixed(f"{name} coordinator"), threshold, gone, bits, 1, LEDGER_HEAD)
    total = played.play()
    vector = {
        "version": 1,
        "source": "tests/vectors/reference.py, written from the protocol's description",
        "silos": [
            {
                "silo": silo.name,
                "identity": silo.identity.hex(),
                "mask_key": silo.mask_key.hex(),
                "channel_key": silo.channel_key.hex(),
                "self_mask_seed": silo.self_mask.hex(),
                "share_seed": silo.share_seed.hex(),
                "values": [str(value) for value in silo.values],
            }
            for silo in silos
        ],
        "coordinator_identity": played.coordinator.hex(),
        "colluders": colluders,
        "threshold": threshold,
        "bits": bits,
        "bound": bound,
        "dropped": gone,
        "messages": {phase: {s: m.hex() for s, m in each.items()} for phase, each in played.messages.items()},
        "sum": [str(value) for value in total],
    }
    return played, vector


def resigned(played: RoundReference, phase: str, sender: str, body: bytes, **changes: str) -> bytes:
    views = {
        "advertise": "",
        "key-list": "",
        "share": played.key_list,
        "share-delivery": played.key_list,
        "masked-input": played.share_view,
        "survivor-set": played.share_view,
    }
    view = changes.pop("view", views.get(phase, played.certified))
    return played.envelope(phase, sender, body, view, **changes)


def bad(played: RoundReference, phase: str) -> list[dict[str, str]]:
    """Messages of this phase with one thing wrong each, to or from the second silo."""
    silo = played.names[1]
    sender = COORDINATOR if phase in TO_A_SILO else silo
    good, body = played.messages[phase][silo], played.body_of(phase, silo)
    other = played.names[2]
    forged = good[:-1] + bytes([good[-1] ^ 1])
    wide = b"\x95" + msgpack("Signed") + b"\xd9" + bytes([len(sender)]) + sender.encode()
    wide += good[len(b"\x95" + msgpack("Signed") + msgpack(sender)) :]
    cases = {
        "truncated": (good[:-10], "MalformedMessage"),
        "empty": (b"", "MalformedMessage"),
        "trailing_byte": (good + b"\0", "MalformedMessage"),
        "name_in_a_longer_encoding": (wide, "MalformedMessage"),
        "signature_changed": (forged, "BadSignature"),
        "body_changed": (
            msgpack(["Signed", sender, phase, body[:-1] + bytes([body[-1] ^ 1]), good[-64:]]),
            "BadSignature",
        ),
        "sender_changed": (msgpack(["Signed", other, phase, body, good[-64:]]), "UnexpectedMessage"),
        "phase_changed": (msgpack(["Signed", sender, "manifest", body, good[-64:]]), "UnexpectedMessage"),
        "unknown_phase": (msgpack(["Signed", sender, "rumour", body, good[-64:]]), "MalformedMessage"),
        "signed_by_another_silo": (
            good[:-64] + played.signature(phase, other, body, "")[-64:],
            "BadSignature",
        ),
        "of_another_attempt": (
            resigned(played, phase, sender, body, digest=named("cachefl-secure/manifest/1", b"another")),
            "BadSignature",
        ),
        "under_another_view": (resigned(played, phase, sender, body, view="99" * 32), "BadSignature"),
        "body_of_another_kind": (
            resigned(played, phase, sender, msgpack(["Statement", *["11" * 32] * 4]))
            if phase != "certify"
            else resigned(played, phase, sender, msgpack(["Certificate", []])),
            "MalformedMessage",
        ),
        "body_with_trailing_byte": (resigned(played, phase, sender, body + b"\0"), "MalformedMessage"),
        "body_of_one_more_field": (
            resigned(played, phase, sender, bytes([body[0] + 1]) + body[1:] + b"\0"),
            "MalformedMessage",
        ),
    }
    cases |= special(played, phase, silo)
    return [
        {"name": name, "message": message.hex(), "expect": expect}
        for name, (message, expect) in cases.items()
    ]


def special(played: RoundReference, phase: str, silo: str) -> dict[str, tuple[bytes, str]]:
    """What can only be wrong with this kind of message."""

    def say(body: list[Any]) -> bytes:
        return resigned(played, phase, COORDINATOR if phase in TO_A_SILO else silo, msgpack(body))

    listed: list[Any]
    match phase:
        case "advertise":
            usable = slow.public_of(bytes(range(32)))
            return {
                "key_of_low_order": (say(["Advertisement", bytes(32), usable]), "PeerError"),
                "key_of_31_bytes": (say(["Advertisement", usable[:31], usable]), "MalformedMessage"),
            }
        case "key-list":
            listed = played.adverts
            own = played.names.index(silo)
            return {
                "unsorted": (say(["KeyList", listed[::-1]]), "MalformedMessage"),
                "a_silo_twice": (say(["KeyList", [listed[0], *listed]]), "MalformedMessage"),
                "without_this_silo": (say(["KeyList", [*listed[:own], *listed[own + 1 :]]]), "PeerError"),
                "too_few": (say(["KeyList", listed[:2]]), "PeerError"),
                "another_silos_key_resigned_by_the_coordinator": (
                    say(
                        [
                            "KeyList",
                            [
                                [
                                    *listed[0][:4],
                                    played.signature("advertise", COORDINATOR, listed[0][3], ""),
                                ],
                                *listed[1:],
                            ],
                        ]
                    ),
                    "BadSignature",
                ),
            }
        case "share":
            shares = [[name, bytes(88)] for name in played.names if name != silo]
            return {
                "a_share_missing": (say(["SealedShares", "11" * 32, shares[1:]]), "MalformedMessage"),
                "a_share_too_long": (
                    say(["SealedShares", "11" * 32, [[shares[0][0], bytes(89)], *shares[1:]]]),
                    "MalformedMessage",
                ),
                "no_digest": (say(["SealedShares", "11" * 31, shares]), "MalformedMessage"),
            }
        case "share-delivery":
            shares = [[name, bytes(88)] for name in played.names if name != silo]
            return {
                "shares_that_do_not_open": (say(["ShareDelivery", played.names, shares]), "PeerError"),
                "without_this_silo": (
                    say(["ShareDelivery", [name for name in played.names if name != silo], shares]),
                    "PeerError",
                ),
                "a_stranger": (
                    say(["ShareDelivery", [*played.names, "zz"], [*shares, ["zz", bytes(88)]]]),
                    "PeerError",
                ),
            }
        case "masked-input":
            return {
                "a_word_too_few": (
                    say(["MaskedInput", bytes(22), bytes(8), LEDGER_HEAD]),
                    "MalformedMessage",
                ),
                "a_counter_too_many": (
                    say(["MaskedInput", bytes(25), bytes(16), LEDGER_HEAD]),
                    "MalformedMessage",
                ),
            }
        case "survivor-set":
            headers: list[Any] = played.headers()
            own = played.survivors.index(silo)
            return {
                "without_this_silo": (
                    say(["SurvivorSet", [*headers[:own], *headers[own + 1 :]]]),
                    "SurvivorSetRejected",
                ),
                "too_few": (say(["SurvivorSet", headers[:2]]), "SurvivorSetRejected"),
                "a_silo_twice": (say(["SurvivorSet", [headers[0], *headers]]), "MalformedMessage"),
                "another_input_of_this_silo": (
                    say(["SurvivorSet", [[h[0], "22" * 32, h[2]] if h[0] == silo else h for h in headers]]),
                    "SurvivorSetRejected",
                ),
                "another_input_of_another_silo": (
                    say(["SurvivorSet", [[headers[0][0], "22" * 32, headers[0][2]], *headers[1:]]]),
                    "BadSignature",
                ),
                "the_dropped_silo": (
                    say(["SurvivorSet", sorted([*headers, [played.dropped, "22" * 32, bytes(64)]])]),
                    "BadSignature",
                ),
            }
        case "certify":
            lie = [*played.statement()[:4], "33" * 32]
            return {"another_statement": (say(lie), "UnexpectedMessage")}
        case "certificate":
            signatures = [[name, played.messages["certify"][name][-64:]] for name in played.survivors]
            return {
                "one_short_of_a_quorum": (say(["Certificate", signatures[:3]]), "SurvivorSetRejected"),
                "one_twice": (say(["Certificate", [*signatures[:3], signatures[2]]]), "MalformedMessage"),
                "a_forged_one": (
                    say(["Certificate", [*signatures[:3], [signatures[3][0], bytes(64)]]]),
                    "BadSignature",
                ),
                "a_stranger": (
                    say(["Certificate", [*signatures[:3], ["zz", bytes(64)]]]),
                    "SurvivorSetRejected",
                ),
            }
        case _:
            held = played.silo(silo).held
            seeds = [[name, held[name][:36]] for name in played.survivors]
            keys = [[name, held[name][36:]] for name in played.names if name == played.dropped]
            return {
                "both_kinds_of_one_silo": (
                    say(["UnmaskShares", sorted([*seeds, [played.dropped, bytes(36)]]), keys]),
                    "MalformedMessage",
                ),
                "a_share_missing": (say(["UnmaskShares", seeds[1:], keys]), "MalformedMessage"),
                "a_share_outside_the_field": (
                    say(["UnmaskShares", [[seeds[0][0], b"\xff" * 36], *seeds[1:]], keys]),
                    "MalformedMessage",
                ),
            }


def everything() -> dict[str, dict[str, Any]]:
    """File name, without .json, -> content."""
    files = primitives() | mail.everything() | release_vectors.everything()
    for name in ROUNDS:
        played, files[name] = build(name)
        if name == BAD_OF:
            for phase in (*TO_A_SILO, *TO_THE_COORDINATOR):
                files[f"{name}_bad_{phase.replace('-', '_')}"] = {
                    "of": name,
                    "phase": phase,
                    "silo": played.names[1],
                    "cases": bad(played, phase),
                }
    return files


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, content in everything().items():
        (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
