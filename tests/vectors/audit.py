"""Finished rounds verified a second time, from a coordinator's public files alone, without the package.

Written from the formats' description: TOML and JSON of the standard library, MessagePack, safetensors and the
cache's arithmetic by hand, Ed25519 from pyca. It reads complete-graph federations of this version:

    invite.toml, roster.bin, countersignatures.bin, models/0000.safetensors, rounds/*/{record.json,aggregate.bin}
    rosters/0002.bin, rosters/0002.countersignatures.bin and so on, if the roster changed
    models/0007.safetensors     the cache after the last round, if it is there

Of a plan of one release also its epsilons (``audit_release``), and that there is no second.

``python -m tests.vectors.audit DIRECTORY`` prints the digest of every cache.
"""

from __future__ import annotations

import json
import math
import sys
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.vectors.audit_cache import Cache, Server
from tests.vectors.audit_release import ONE_RELEASE, Sums, check_costs, chosen
from tests.vectors.reference import COORDINATOR, PROTOCOL, _map, msgpack, named
from tests.vectors.refusing import Refused, require


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


@dataclass
class Roster:
    """Who is in during an epoch."""

    digest: str
    epoch: int
    previous: str | None
    keys: dict[str, str]
    quorum: int
    is_countersigned: bool = False


class Federation:
    """What all parties agreed on, checked."""

    def __init__(self, root: Path) -> None:
        invite = tomllib.loads((root / "invite.toml").read_text("utf-8"))
        self.plan = invite["plan"]
        self.coordinator = self.plan["coordinator_public_key"]
        self.plan_digest = named("cachefl-secure/plan/1", canonical(self.plan))
        signature = bytes.fromhex(invite["signature"])
        check_signature(self.coordinator, "cachefl-secure/invite/1", self.plan_digest.encode(), signature)
        self.rosters: dict[str, Roster] = {}
        """By digest, in order."""
        self._follow(root, (root / "roster.bin").read_bytes(), [], [])
        while (path := root / f"rosters/{len(self.rosters) + 1:04d}.bin").exists():
            kind, roster, vouchers, approvals = read_msgpack(path.read_bytes())
            require(kind == "RosterChange", "not a change of the roster")
            self._follow(root, roster, vouchers, approvals)

    def _follow(self, root: Path, raw: bytes, vouchers: list[Any], approvals: list[Any]) -> None:
        """The next roster: signed, agreed to by a quorum of those before, and by all in it."""
        new, last = self._roster(raw), list(self.rosters.values())[-1:]
        require(new.epoch == len(self.rosters) + 1, "not the next epoch")
        require(new.previous == (last[0].digest if last else None), "follows another roster")
        if last:
            self._succeed(last[0], new, vouchers, approvals)
        self.rosters[new.digest] = new
        name = "countersignatures.bin"
        path = root / name if new.epoch == 1 else root / f"rosters/{new.epoch:04d}.{name}"
        if not last or path.exists():  # one that not all took up led to no round: see ``audit``
            countersigned, text = read_msgpack(path.read_bytes()), new.digest.encode()
            for kind, silo, each in countersigned:
                require(kind == "Countersignature" and silo in new.keys, "not a member's countersignature")
                check_signature(new.keys[silo], "cachefl-secure/roster-countersignature/1", text, each)
            new.is_countersigned = [each[1] for each in countersigned] == sorted(new.keys)

    def _roster(self, raw: bytes) -> Roster:
        signed = read_msgpack(raw)
        check_signature(self.coordinator, "cachefl-secure/roster/1", signed["roster"], signed["signature"])
        roster = json.loads(signed["roster"])
        require(roster["plan_digest"] == self.plan_digest, "roster of another plan")
        require(roster["federation_id"] == self.plan["federation_id"], "roster of another federation")
        keys = {member["silo"]: member["public_key"] for member in roster["members"]}
        members = [_map(silo=silo, public_key=key) for silo, key in keys.items()]
        fields = {name: roster[name] for name in ("federation_id", "plan_digest", "epoch")}
        after = {"previous": roster["previous"]} if "previous" in roster else {}
        digest = named("cachefl-secure/roster/1", _map(**fields, members=members, **after))
        quorum = (len(keys) + self.plan["secure_sum"]["colluders"]) // 2 + 1
        return Roster(digest, roster["epoch"], roster.get("previous"), keys, quorum)

    def _succeed(self, old: Roster, new: Roster, vouchers: list[Any], approvals: list[Any]) -> None:
        vouched = {silo: signatures for _, silo, *signatures in vouchers}
        names = {silo for each in self.rosters.values() for silo in each.keys}
        used = {key for each in self.rosters.values() for key in each.keys.values()}
        require(len(set(new.keys) & set(old.keys)) >= old.quorum, "too few stay")
        for silo, key in new.keys.items():
            if old.keys.get(silo) == key:
                continue
            require(key not in used, "a key returns")
            require(silo in old.keys or silo not in names, "a name returns")
            if silo in old.keys:
                by_old, by_new = vouched[silo]
                over = canonical([silo, key, self.plan_digest]).encode()
                check_signature(old.keys[silo], "cachefl-secure/new-key/1", over, by_old)
                check_signature(key, "cachefl-secure/join-request/1", over, by_new)
        approving = {silo for _, silo, digest, _ in approvals if digest == new.digest}
        require(len(approving) == len(approvals) >= old.quorum, "no quorum approves")
        require(approving <= set(old.keys), "a stranger approves")
        for _, silo, digest, signature in approvals:
            check_signature(old.keys[silo], "cachefl-secure/roster-approval/1", digest.encode(), signature)

    @property
    def is_one_release(self) -> bool:
        return self.plan["privacy"]["mechanism"] in ONE_RELEASE

    def encoding(self, silos: int) -> tuple[float, int, int, int]:
        """(grid step, largest entry, largest noise in a sum, bytes of a word) of a cohort of so many silos."""
        privacy, tail = self.plan["privacy"], 0
        if privacy["mechanism"] == "distributed":
            step, largest, noise = self.integers()
            entries = self.rows_and_dimension()[0] * self.rows_and_dimension()[1]
            tail = math.ceil(math.sqrt(2 * math.log(2 * entries * 2.0**40)) * noise * math.sqrt(silos))
            clamp = largest * step
        else:
            signal = privacy["learning_rate"] * privacy["steps_per_round"] * (1 + privacy["replay_weight"])
            gradients = privacy["sampling_rate"] * privacy["expected_records"] * privacy["clip_norm"]
            if privacy["mechanism"] == "none":
                clamp, step = signal, 2 * signal / 65536
            else:
                length = privacy["learning_rate"] / gradients
                deviation = length * privacy["noise_multiplier"] * privacy["clip_norm"]
                noises, kept = 0.0, 1.0
                for _ in range(privacy["steps_per_round"]):
                    noises, kept = noises + kept * kept, kept * (1 - privacy["proximal"])
                deviation *= math.sqrt(noises)
                clamp, step = 8 * deviation + signal, deviation / 32
        largest = math.ceil(clamp / step) + 1
        bits = (2 * (silos * largest + tail)).bit_length()
        return step, largest, tail, 2 if bits <= 16 else 4

    def rows_and_dimension(self) -> tuple[int, int]:
        """Of an update: a row for every key, or for every class."""
        cache, classes = self.plan["cache"], len(self.plan["classes"])
        rows = {"keys": classes * cache["images_per_class"], "class_residual": classes}[cache["trained"]]
        return rows, self.plan["encoder"]["feature_dim"]

    def integers(self) -> tuple[float, int, float]:
        """(grid step, clamp, noise of one silo) of integer gradients, the last two in steps."""
        privacy, (rows, dimension) = self.plan["privacy"], self.rows_and_dimension()
        features = min(max(7, math.ceil(math.log2(dimension) / 2) + 2), 9)
        unit = 2 ** (features + min(max(7, math.ceil(math.log2(rows) / 2) + 2), 17 - features))
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
    require(not cache.sums, "an initial cache with sums")
    last, number, digests = named("cachefl-secure/genesis/1", agreed.plan_digest), 0, [cache.digest]
    epoch, server = 1, Server(agreed.plan["server"], math.prod(agreed.rows_and_dimension()))
    for folder in sorted(path for path in (root / "rounds").iterdir() if (path / "record.json").exists()):
        signed = json.loads((folder / "record.json").read_bytes())
        body, signature = signed["record"].encode(), bytes.fromhex(signed["signature"])
        check_signature(agreed.coordinator, "cachefl-secure/record/1", body, signature)
        record = json.loads(body)
        require(record["round"] > number and record["previous_record"] == last, "not the next record")
        require(number == 0 or not agreed.is_one_release, "a second release")
        require(record["cache_before"] == cache.digest, "starts from another cache")
        require(record["roster_digest"] in agreed.rosters, "another roster")
        roster = agreed.rosters[record["roster_digest"]]
        require(roster.epoch >= epoch and roster.is_countersigned, "a roster that was over, or never begun")
        certified(record, agreed, roster)
        epoch = roster.epoch
        total = (folder / "aggregate.bin").read_bytes()
        require(named("cachefl-secure/aggregate/1", total) == record["aggregate_digest"], "another sum")
        if agreed.is_one_release:
            release(record, total, agreed, cache)
        else:
            cache.add(server.change(mean(record, total, agreed)))
        require(cache.digest == record["cache_after"], "the sum gives another cache")
        last, number = named("cachefl-secure/record-digest/1", body), record["round"]
        digests.append(cache.digest)
    if number and (path := root / f"models/{number:04d}.safetensors").exists():
        kept = Cache(path.read_bytes())
        require(kept.digest == cache.digest, "the cache that is kept is another one")
    return digests


def certified(record: dict[str, Any], agreed: Federation, roster: Roster) -> None:
    """That the plan, the roster and a quorum of the survivors stand behind the round."""
    cohort, survivors, certificate = record["cohort"], record["survivors"], record["certificate"]
    rules = agreed.plan["secure_sum"]
    require(record["federation_id"] == agreed.plan["federation_id"], "another federation")
    require(cohort == sorted(set(cohort)) and set(cohort) <= set(roster.keys), "no legal cohort")
    require(len(cohort) >= max(roster.quorum, rules["minimum_cohort"]), "the cohort is too small")
    sharers, uploads = certificate["share_set"], certificate["uploads"]
    require(sorted(uploads) == sorted(survivors) == sorted(record["ledger_heads"]), "other survivors")
    require(set(survivors) <= set(sharers) <= set(cohort), "no legal share set")
    least = max(roster.quorum, rules["minimum_survivors"], rules["colluders"] + 2)
    require(len(survivors) >= least, "too few survivors")
    head = [agreed.plan_digest, roster.digest, record["round"], record["attempt"], cohort]
    manifest = msgpack(["Manifest", *head, record["cache_before"], record["previous_record"]])
    digest = named("cachefl-secure/manifest/1", manifest)
    require(digest == record["manifest_digest"], "another manifest")
    require(record["plan_digest"] == agreed.plan_digest, "another plan")
    share_set = named("cachefl-secure/share-set/1", *sorted(sharers))
    pairs = [part for silo in sorted(uploads) for part in (silo, uploads[silo])]
    statement = ["Statement", digest, certificate["key_list_digest"], share_set]
    statement.append(named("cachefl-secure/survivor-set/1", *pairs))
    what = named("cachefl-secure/body/1", msgpack(list(statement)))
    signers = certificate["signatures"]
    require(len(signers) >= roster.quorum and set(signers) <= set(survivors), "no quorum")
    for silo, signature in signers.items():
        require(silo != COORDINATOR, "the coordinator as a silo")
        over = named("cachefl-secure/statement/1", digest, "certify", silo, what, what)
        purpose = f"cachefl-secure/{PROTOCOL}/certify"
        check_signature(roster.keys[silo], purpose, bytes.fromhex(over), bytes.fromhex(signature))


def mean(record: dict[str, Any], total: bytes, agreed: Federation) -> list[float]:
    """The update that the sum gives."""
    entries = math.prod(agreed.rows_and_dimension())
    silos, survivors = len(record["cohort"]), len(record["survivors"])
    step, largest, tail, width = agreed.encoding(silos)
    require(len(total) == entries * width + 8, "a sum of another size")
    words = [
        int.from_bytes(total[i : i + width], "little", signed=True) for i in range(0, entries * width, width)
    ]
    require(max(map(abs, words)) <= survivors * largest + tail, "beyond what the survivors can have sent")
    saturated, most = int.from_bytes(total[-8:], "little"), 0 if tail else silos * entries
    require(saturated == record["saturated"] <= most, "another count of clamped entries")
    return [word * step / survivors for word in words]


def release(record: dict[str, Any], total: bytes, agreed: Federation, cache: Cache) -> None:
    """The cache keeps the sums of statistics, or takes the pair that a grid's counts choose."""
    survivors = len(record["survivors"])
    check_costs(agreed.plan)
    sums = Sums.read(agreed.plan, total, len(record["cohort"]), survivors)
    require(sums.clamped == record["saturated"], "another count of clamped entries")
    if agreed.plan["privacy"]["mechanism"] == "grid":
        cache.alpha, cache.beta = chosen(agreed.plan, sums.numbers[0])
    else:
        cache.sums = sums.pieces(agreed.plan, survivors)


if __name__ == "__main__":
    print("\n".join(audit(Path(sys.argv[1]))))
