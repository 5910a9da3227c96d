"""Finished rounds verified a second time, from a coordinator's public files alone, without the package.

Written from the formats' description: TOML and JSON of the standard library, MessagePack, safetensors and the
cache's arithmetic by hand, Ed25519 from pyca. It reads complete-graph federations of this version:

    invite.toml, roster.bin, countersignatures.bin, models/0000.safetensors, rounds/*/{record.json,aggregate.bin}

``python -m tests.vectors.audit DIRECTORY`` prints the digest of every cache.
"""

from __future__ import annotations

import json
import math
import struct
import sys
import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.vectors.reference import COORDINATOR, PROTOCOL, _map, msgpack, named


class Refused(Exception):
    """What a check found."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(what)


def check_signature(key: str, purpose: str, message: bytes, signature: bytes) -> None:
    signed = bytes.fromhex(named("cachefl-secure/signature/1", purpose, message))
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(signature, signed)
    except (InvalidSignature, ValueError):
        raise Refused(f"signature of {purpose}") from None


def canonical(value: Any) -> str:
    """JSON with sorted keys, no spaces, nothing escaped that need not be, and shortest floats."""
    match value:
        case dict():
            return "{" + ",".join(f"{canonical(k)}:{canonical(value[k])}" for k in sorted(value)) + "}"
        case list():
            return "[" + ",".join(map(canonical, value)) + "]"
        case float():
            sign, figures, exponent = Decimal(repr(value)).normalize().as_tuple()
            digits, point = "".join(map(str, figures)), len(figures) + int(exponent)
            if value == 0:
                text = "0.0"
            elif 0 < point <= 16:
                text = digits.ljust(point, "0")[:point] + "." + (digits[point:] or "0")
            elif -5 < point <= 0:
                text = "0." + "0" * -point + digits
            else:
                text = digits[0] + ("." + digits[1:] if digits[1:] else "") + f"e{point - 1}"
            return "-" * sign + text
    return json.dumps(value, ensure_ascii=False)


def read_msgpack(raw: bytes) -> Any:
    """The arrays, maps, texts and bytes that are in the files."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        require(at + count <= len(raw), "MessagePack is cut short")
        at += count
        return raw[at - count : at]

    def value() -> Any:
        head = take(1)[0]
        if head >> 5 == 0b101:
            return take(head & 31).decode()
        if head >> 4 == 0b1001:
            return [value() for _ in range(head & 15)]
        if head >> 4 == 0b1000:
            return {value(): value() for _ in range(head & 15)}
        sizes = {0xC4: 1, 0xC5: 2, 0xD9: 1, 0xDC: 2}
        require(head in sizes, "MessagePack of another type")
        size = int.from_bytes(take(sizes[head]), "big")
        if head == 0xDC:
            return [value() for _ in range(size)]
        return take(size).decode() if head == 0xD9 else take(size)

    found = value()
    require(at == len(raw), "bytes after MessagePack")
    return found


class Cache:
    """Keys as float32 numbers; all else as the bytes that its digest is over."""

    def __init__(self, raw: bytes) -> None:
        size = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
        fields = json.loads(header["__metadata__"]["cachefl-secure"])
        self.scalars = b"".join(
            len(part).to_bytes(8, "big") + part
            for part in (struct.pack(">d", float(fields[n])) for n in ("alpha", "beta", "logit_scale"))
        )

        def content(name: str) -> bytes:
            begin, end = header[name]["data_offsets"]
            return bytes(data[begin:end])

        self.labels, self.text = content("key_labels"), content("text_classifier")
        keys = content("cache_keys")
        self.shape = (*header["cache_keys"]["shape"], header["text_classifier"]["shape"][0])
        self.keys = struct.unpack(f"<{len(keys) // 4}f", keys)

    @property
    def digest(self) -> str:
        rows, width, classes = self.shape
        sizes = [size.to_bytes(8, "big") for size in (rows, classes, width)]
        scalars = [self.scalars[i + 8 : i + 16] for i in (0, 16, 32)]
        packed = struct.pack(f"<{len(self.keys)}f", *self.keys)
        return named("cachefl-secure/cache/1", *sizes, *scalars, packed, self.labels, self.text)

    def add(self, update: list[float]) -> None:
        """In double precision, rounded once to single."""
        total = [key + change for key, change in zip(self.keys, update, strict=True)]
        self.keys = struct.unpack(f"<{len(total)}f", struct.pack(f"<{len(total)}f", *total))


class Federation:
    """What all parties agreed on, checked."""

    def __init__(self, root: Path) -> None:
        invite = tomllib.loads((root / "invite.toml").read_text("utf-8"))
        self.plan = invite["plan"]
        self.coordinator = self.plan["coordinator_public_key"]
        self.plan_digest = named("cachefl-secure/plan/1", canonical(self.plan))
        signature = bytes.fromhex(invite["signature"])
        check_signature(self.coordinator, "cachefl-secure/invite/1", self.plan_digest.encode(), signature)
        signed = read_msgpack((root / "roster.bin").read_bytes())
        check_signature(self.coordinator, "cachefl-secure/roster/1", signed["roster"], signed["signature"])
        roster = json.loads(signed["roster"])
        require(roster["plan_digest"] == self.plan_digest, "roster of another plan")
        self.keys = {member["silo"]: member["public_key"] for member in roster["members"]}
        members = [_map(silo=silo, public_key=key) for silo, key in self.keys.items()]
        fields = {name: roster[name] for name in ("federation_id", "plan_digest", "epoch")}
        self.roster_digest = named("cachefl-secure/roster/1", _map(**fields, members=members))
        countersigned = read_msgpack((root / "countersignatures.bin").read_bytes())
        expected = [["Countersignature", silo] for silo in sorted(self.keys)]
        require([each[:2] for each in countersigned] == expected, "not countersigned by all")
        for _, silo, each in countersigned:
            purpose, text = "cachefl-secure/roster-countersignature/1", self.roster_digest.encode()
            check_signature(self.keys[silo], purpose, text, each)
        self.quorum = (len(self.keys) + self.plan["secure_sum"]["colluders"]) // 2 + 1

    def encoding(self, silos: int) -> tuple[float, int, int, int]:
        """(grid step, largest entry, largest noise in a sum, bytes of a word) of a cohort of so many silos."""
        privacy, tail = self.plan["privacy"], 0
        if privacy["mechanism"] == "distributed":
            step, largest, noise = self.integers()
            entries = self.keys_and_dimension()[0] * self.keys_and_dimension()[1]
            tail = math.ceil(math.sqrt(2 * math.log(2 * entries * 2.0**40)) * noise * math.sqrt(silos))
            clamp = largest * step
        else:
            signal = privacy["learning_rate"] * privacy["steps_per_round"]
            gradients = privacy["sampling_rate"] * privacy["expected_records"] * privacy["clip_norm"]
            if privacy["mechanism"] == "none":
                clamp, step = signal, 2 * signal / 65536
            else:
                length = privacy["learning_rate"] / gradients
                deviation = length * privacy["noise_multiplier"] * privacy["clip_norm"]
                deviation *= math.sqrt(privacy["steps_per_round"])
                clamp, step = 8 * deviation + signal, deviation / 32
        largest = math.ceil(clamp / step) + 1
        bits = (2 * (silos * largest + tail)).bit_length()
        return step, largest, tail, 2 if bits <= 16 else 4

    def keys_and_dimension(self) -> tuple[int, int]:
        keys = len(self.plan["classes"]) * self.plan["cache"]["images_per_class"]
        return keys, self.plan["encoder"]["feature_dim"]

    def integers(self) -> tuple[float, int, float]:
        """(grid step, clamp, noise of one silo) of integer gradients, the last two in steps."""
        privacy, (keys, dimension) = self.plan["privacy"], self.keys_and_dimension()
        features = min(max(7, math.ceil(math.log2(dimension) / 2) + 2), 9)
        unit = 2 ** (features + min(max(7, math.ceil(math.log2(keys) / 2) + 2), 17 - features))
        drawn = privacy["sampling_rate"] * privacy["expected_records"]
        length = privacy["learning_rate"] / (drawn * privacy["clip_norm"])
        noise = privacy["noise_multiplier"] * unit
        clamp = min(math.ceil(drawn) * unit, math.ceil(128 * privacy["noise_multiplier"] * unit))
        return length * (privacy["clip_norm"] / unit), clamp, noise


def audit(root: Path) -> list[str]:
    """Digests of all caches, the first one included, each recomputed.

    Raises:
        Refused: something does not hold.
    """
    agreed, cache = Federation(root), Cache((root / "models/0000.safetensors").read_bytes())
    require(cache.digest == agreed.plan["cache"]["initial_digest"], "another initial cache")
    last, number, digests = named("cachefl-secure/genesis/1", agreed.plan_digest), 0, [cache.digest]
    for folder in sorted((root / "rounds").iterdir()):
        signed = json.loads((folder / "record.json").read_bytes())
        body, signature = signed["record"].encode(), bytes.fromhex(signed["signature"])
        check_signature(agreed.coordinator, "cachefl-secure/record/1", body, signature)
        record = json.loads(body)
        require(record["round"] > number and record["previous_record"] == last, "not the next record")
        require(record["cache_before"] == cache.digest, "starts from another cache")
        certified(record, agreed)
        cache.add(mean(record, (folder / "aggregate.bin").read_bytes(), agreed, len(cache.keys)))
        require(cache.digest == record["cache_after"], "the sum gives another cache")
        last, number = named("cachefl-secure/record-digest/1", body), record["round"]
        digests.append(cache.digest)
    return digests


def certified(record: dict[str, Any], agreed: Federation) -> None:
    """That the plan, the roster and a quorum of the survivors stand behind the round."""
    cohort, survivors, certificate = record["cohort"], record["survivors"], record["certificate"]
    rules = agreed.plan["secure_sum"]
    require(record["federation_id"] == agreed.plan["federation_id"], "another federation")
    require(cohort == sorted(set(cohort)) and set(cohort) <= set(agreed.keys), "no legal cohort")
    require(len(cohort) >= max(agreed.quorum, rules["minimum_cohort"]), "the cohort is too small")
    sharers, uploads = certificate["share_set"], certificate["uploads"]
    require(sorted(uploads) == sorted(survivors) == sorted(record["ledger_heads"]), "other survivors")
    require(set(survivors) <= set(sharers) <= set(cohort), "no legal share set")
    least = max(agreed.quorum, rules["minimum_survivors"], rules["colluders"] + 2)
    require(len(survivors) >= least, "too few survivors")
    head = [agreed.plan_digest, agreed.roster_digest, record["round"], record["attempt"], cohort]
    manifest = msgpack(["Manifest", *head, record["cache_before"], record["previous_record"]])
    digest = named("cachefl-secure/manifest/1", manifest)
    require(digest == record["manifest_digest"], "another manifest")
    require(
        (record["plan_digest"], record["roster_digest"]) == (agreed.plan_digest, agreed.roster_digest), ""
    )
    share_set = named("cachefl-secure/share-set/1", *sorted(sharers))
    pairs = [part for silo in sorted(uploads) for part in (silo, uploads[silo])]
    statement = ["Statement", digest, certificate["key_list_digest"], share_set]
    statement.append(named("cachefl-secure/survivor-set/1", *pairs))
    what = named("cachefl-secure/body/1", msgpack(list(statement)))
    signers = certificate["signatures"]
    require(len(signers) >= agreed.quorum and set(signers) <= set(survivors), "no quorum")
    for silo, signature in signers.items():
        require(silo != COORDINATOR, "the coordinator as a silo")
        over = named("cachefl-secure/statement/1", digest, "certify", silo, what, what)
        purpose = f"cachefl-secure/{PROTOCOL}/certify"
        check_signature(agreed.keys[silo], purpose, bytes.fromhex(over), bytes.fromhex(signature))


def mean(record: dict[str, Any], total: bytes, agreed: Federation, entries: int) -> list[float]:
    """The update that the sum gives."""
    silos, survivors = len(record["cohort"]), len(record["survivors"])
    step, largest, tail, width = agreed.encoding(silos)
    require(named("cachefl-secure/aggregate/1", total) == record["aggregate_digest"], "another sum")
    require(len(total) == entries * width + 8, "a sum of another size")
    words = [
        int.from_bytes(total[i : i + width], "little", signed=True) for i in range(0, entries * width, width)
    ]
    require(max(map(abs, words)) <= survivors * largest + tail, "beyond what the survivors can have sent")
    saturated, most = int.from_bytes(total[-8:], "little"), 0 if tail else silos * entries
    require(saturated == record["saturated"] <= most, "another count of clamped entries")
    return [word * step / survivors for word in words]


if __name__ == "__main__":
    print("\n".join(audit(Path(sys.argv[1]))))
