"""What a coordinator publishes of a federation of one release, written down a second time.

Every file of an auditor, from names, seeds and integers: plan, roster, caches, the sum and its record. Shares no code
with the package.
"""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass
from typing import Any

from tests.vectors.audit import canonical
from tests.vectors.audit_release import fields_of, vectors
from tests.vectors.mail import signed
from tests.vectors.reference import COORDINATOR, PROTOCOL, _map, fixed, msgpack, named, public_key

CLASSES, WIDTH = 3, 4
ORIGIN = {"kind": "features", "licence": "apache-2.0", "manifest_digest": "ab" * 32, "name": "random numbers"}
SCALARS = {"alpha": 10.0, "beta": 5.0, "logit_scale": 10.0}
Files = dict[str, bytes]


@dataclass(frozen=True)
class Federation:
    """What is given."""

    name: str
    silos: int
    dropped: str | None
    head: str
    expected_records: int
    number: int
    """Of the round: those before were given up."""

    @property
    def names(self) -> list[str]:
        return [f"silo-{i}" for i in range(1, self.silos + 1)]

    @property
    def survivors(self) -> list[str]:
        return [silo for silo in self.names if silo != self.dropped]

    @property
    def colluders(self) -> int:
        return 1 if self.silos > 3 else 0

    def key(self, party: str) -> bytes:
        return fixed(f"{self.name} {party}")

    @property
    def plan(self) -> dict[str, Any]:
        return {
            "version": 1,
            "protocol": PROTOCOL,
            "federation_id": "0f" * 16,
            "name": self.name,
            "coordinator_public_key": public_key(self.key(COORDINATOR)),
            "channel": "inproc:",
            "classes": [f"class {i}" for i in range(CLASSES)],
            "encoder": {
                "model": "local-dir",
                "pretrained": "",
                "weights_digest": "00" * 32,
                "preprocessing_digest": "11" * 32,
                "feature_dim": WIDTH,
                "templates": ["a {}"],
            },
            "cache": {
                "images_per_class": 1,
                "alpha": SCALARS["alpha"],
                "alpha_norm": "sum",
                "beta": SCALARS["beta"],
                "logit_scale": SCALARS["logit_scale"],
                "trained": "keys",
                "initial_digest": Cache().digest,
            },
            "privacy": {
                "mechanism": "statistics",
                "noise_multiplier": 1.994,
                "epsilon_local": 2.954,
                "epsilon_aggregate": 2.0,
                "rdp_order": 7,
                "expected_records": self.expected_records,
                "delta": 1e-05,
                "head": self.head,
                "regulariser": 0.1,
                "gamma": 8.0,
            },
            "secure_sum": {
                "minimum_cohort": 3,
                "minimum_survivors": 3,
                "colluders": self.colluders,
                "dropout_percent": 10,
            },
            "server": {"optimizer": "mean"},
        }

    @property
    def plan_digest(self) -> str:
        return named("cachefl-secure/plan/1", canonical(self.plan))

    @property
    def roster_digest(self) -> str:
        members = [_map(silo=silo, public_key=public_key(self.key(silo))) for silo in self.names]
        head = {"federation_id": self.plan["federation_id"], "plan_digest": self.plan_digest, "epoch": 1}
        return named("cachefl-secure/roster/1", _map(**head, members=members))

    def sums(self) -> tuple[list[int], list[int]]:
        """As large as the survivors can make them, and between."""
        rng, each = random.Random(self.name), vectors(self.plan, self.silos)
        most = len(self.survivors) * each[0].largest
        first, second = ([rng.randint(-most, most) for _ in range(v.entries)] for v in each)
        first[0], first[1], second[0], second[-1] = most, -most, -most, most
        return first, second


@dataclass(frozen=True)
class Cache:
    """Keys and text features whose rows are (0.5, ..) up to signs; with a release, its sums and what stands beside them."""

    sums: tuple[list[int], list[int]] | None = None
    fields: tuple[tuple[str, str], ...] = ()

    @property
    def tensors(self) -> dict[str, tuple[str, list[int], bytes]]:
        """Type, shape and content by name, in the order of the file."""

        def rows(first: int) -> bytes:
            signs = (
                0.5 - (first * row + column) % 3 % 2 for row in range(CLASSES) for column in range(WIDTH)
            )
            return struct.pack(f"<{CLASSES * WIDTH}f", *signs)

        found: dict[str, tuple[str, list[int], bytes]] = {}
        if self.sums is not None:
            for name, shape, numbers in (
                ("class_sums", [CLASSES, WIDTH], self.sums[0]),
                ("gram", [WIDTH * (WIDTH + 1) // 2], self.sums[1]),
            ):
                found[name] = "I64", shape, struct.pack(f"<{len(numbers)}q", *numbers)
        found["key_labels"] = "I64", [CLASSES], struct.pack(f"<{CLASSES}q", *range(CLASSES))
        found["cache_keys"] = "F32", [CLASSES, WIDTH], rows(1)
        found["text_classifier"] = "F32", [CLASSES, WIDTH], rows(2)
        return found

    @property
    def digest(self) -> str:
        tensors = {name: content for name, (_, _, content) in self.tensors.items()}
        sizes = [size.to_bytes(8, "big") for size in (CLASSES, CLASSES, WIDTH)]
        scalars = [struct.pack(">d", value) for value in SCALARS.values()]
        origin = [ORIGIN[name] for name in ("kind", "name", "licence", "manifest_digest")]
        arrays = [tensors[name] for name in ("cache_keys", "key_labels", "text_classifier")]
        more: list[str | bytes] = []
        if self.sums is not None:
            texts = [text for _, text in sorted(self.fields)]
            more = ["released-sums/1", *texts, tensors["class_sums"], tensors["gram"]]
        return named("cachefl-secure/cache/1", *sizes, *scalars, *arrays, *origin, *more)

    @property
    def file(self) -> bytes:
        """As safetensors, whose header is filled up to whole words of eight bytes."""
        fields = {name: repr(value) for name, value in SCALARS.items()} | dict(self.fields)
        fields |= {f"origin_{name}": text for name, text in ORIGIN.items()} | {"kind": "cache/1"}
        header: dict[str, Any] = {"__metadata__": {"cachefl-secure": canonical(fields)}}
        at = 0
        for name, (kind, shape, content) in self.tensors.items():
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(content)]}
            at += len(content)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text + b"".join(c for _, _, c in self.tensors.values())


@dataclass(frozen=True)
class Release:
    """One record and its sum, as honest parties would make them unless something is replaced."""

    of: Federation
    numbers: tuple[list[int], list[int]]
    number: int
    before: str
    previous: str
    update: int = 0
    clamped: int = 0

    @classmethod
    def honest(cls, of: Federation) -> Release:
        genesis = named("cachefl-secure/genesis/1", of.plan_digest)
        return cls(of, of.sums(), of.number, Cache().digest, genesis)

    @property
    def after(self) -> Cache:
        return Cache(self.numbers, tuple(fields_of(self.of.plan, len(self.of.survivors)).items()))

    @property
    def total(self) -> bytes:
        words = [v.word_bytes for v in vectors(self.of.plan, self.of.silos)]
        return b"".join(
            [
                self.update.to_bytes(2, "little", signed=True),
                self.clamped.to_bytes(8, "little"),
                *(n.to_bytes(words[0], "little", signed=True) for n in self.numbers[0]),
                *(n.to_bytes(words[1], "little", signed=True) for n in self.numbers[1]),
            ]
        )

    def record(self, **changes: Any) -> dict[str, Any]:
        """With ``changes`` to its fields, which no silo certified."""
        of, survivors = self.of, self.of.survivors
        head = [of.plan_digest, of.roster_digest, self.number, 1, of.names, self.before, self.previous]
        manifest = named("cachefl-secure/manifest/1", msgpack(["Manifest", *head]))
        uploads = {silo: fixed(f"{of.name} upload {silo} {self.number}").hex() for silo in survivors}
        key_list = fixed(f"{of.name} key list {self.number}").hex()
        pairs = [part for silo in survivors for part in (silo, uploads[silo])]
        statement = ["Statement", manifest, key_list, named("cachefl-secure/share-set/1", *of.names)]
        statement.append(named("cachefl-secure/survivor-set/1", *pairs))
        what = named("cachefl-secure/body/1", msgpack(list(statement)))
        signatures = {}
        for silo in survivors:
            over = named("cachefl-secure/statement/1", manifest, "certify", silo, what, what)
            purpose = f"cachefl-secure/{PROTOCOL}/certify"
            signatures[silo] = signed(of.key(silo), purpose, bytes.fromhex(over)).hex()
        return {
            "version": 1,
            "federation_id": of.plan["federation_id"],
            "plan_digest": of.plan_digest,
            "roster_digest": of.roster_digest,
            "round": self.number,
            "attempt": 1,
            "manifest_digest": manifest,
            "cohort": of.names,
            "survivors": survivors,
            "previous_record": self.previous,
            "transcript_digest": "77" * 32,
            "certificate": {
                "key_list_digest": key_list,
                "share_set": of.names,
                "uploads": uploads,
                "signatures": signatures,
            },
            "aggregate_digest": named("cachefl-secure/aggregate/1", self.total),
            "saturated": self.clamped,
            "cache_before": self.before,
            "cache_after": self.after.digest,
            "ledger_heads": {silo: fixed(f"{of.name} ledger {silo}").hex() for silo in survivors},
        } | changes

    @property
    def folder(self) -> str:
        return f"rounds/{self.number:04d}"

    def files(self, **changes: Any) -> Files:
        """Of the round's folder, and the cache after it."""
        body = canonical(self.record(**changes))
        signature = signed(self.of.key(COORDINATOR), "cachefl-secure/record/1", body.encode()).hex()
        return {
            f"{self.folder}/record.json": canonical({"record": body, "signature": signature}).encode()
            + b"\n",
            f"{self.folder}/aggregate.bin": self.total,
            f"models/{self.number:04d}.safetensors": self.after.file,
        }

    @property
    def digest(self) -> str:
        return named("cachefl-secure/record-digest/1", canonical(self.record()))


def agreement(of: Federation) -> Files:
    """Plan, roster and initial cache."""
    key = of.key(COORDINATOR)
    signature = signed(key, "cachefl-secure/invite/1", of.plan_digest.encode()).hex()
    members = [{"silo": silo, "public_key": public_key(of.key(silo))} for silo in of.names]
    roster = {"epoch": 1, "federation_id": of.plan["federation_id"], "members": members}
    body = canonical(roster | {"plan_digest": of.plan_digest}).encode()
    by_coordinator = signed(key, "cachefl-secure/roster/1", body)
    text, purpose = of.roster_digest.encode(), "cachefl-secure/roster-countersignature/1"
    countersigned = [["Countersignature", silo, signed(of.key(silo), purpose, text)] for silo in of.names]
    pair = msgpack("roster") + msgpack(body) + msgpack("signature") + msgpack(by_coordinator)
    return {
        "invite.toml": (f'signature = "{signature}"\n' + toml("plan", of.plan)).encode(),
        "roster.bin": b"\x82" + pair,
        "countersignatures.bin": msgpack(list(countersigned)),
        "models/0000.safetensors": Cache().file,
    }


def toml(name: str, table: dict[str, Any]) -> str:
    """Texts, numbers, lists of texts, then tables."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in plain.items()]
    inner = (toml(f"{name}.{key}", value) for key, value in table.items() if isinstance(value, dict))
    return f"\n[{name}]\n" + "".join(lines) + "".join(inner)
