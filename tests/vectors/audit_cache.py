"""A cache and a server's optimizer, number by number, without the package: for ``audit``."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

from tests.vectors.reference import named
from tests.vectors.refusing import Refused


class Cache:
    """Keys as float32 numbers; all else as the bytes that its digest is over."""

    def __init__(self, raw: bytes) -> None:
        size = int.from_bytes(raw[:8], "little")
        header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
        fields = json.loads(header["__metadata__"]["cachefl-secure"])
        self.alpha, self.beta, self.scale = (float(fields[n]) for n in ("alpha", "beta", "logit_scale"))
        self.origin = [fields[f"origin_{n}"] for n in ("kind", "name", "licence", "manifest_digest")]

        def content(name: str) -> bytes:
            begin, end = header[name]["data_offsets"]
            return bytes(data[begin:end])

        self.labels, self.text = content("key_labels"), content("text_classifier")
        keys = content("cache_keys")
        self.sums: list[bytes] = []
        """What its digest takes of a release."""
        if "class_sums" in header:
            texts = [fields[n].encode() for n in ("gamma", "head", "noise_std", "regulariser", "unit")]
            self.sums = [b"released-sums/1", *texts, content("class_sums"), content("gram")]
        self.classes = struct.unpack(f"<{len(self.labels) // 8}q", self.labels)
        self.shape = (*header["cache_keys"]["shape"], header["text_classifier"]["shape"][0])
        self.keys = struct.unpack(f"<{len(keys) // 4}f", keys)

    @property
    def digest(self) -> str:
        rows, width, classes = self.shape
        sizes = [size.to_bytes(8, "big") for size in (rows, classes, width)]
        scalars = [struct.pack(">d", each) for each in (self.alpha, self.beta, self.scale)]
        packed = struct.pack(f"<{len(self.keys)}f", *self.keys)
        tensors = (packed, self.labels, self.text)
        return named("cachefl-secure/cache/1", *sizes, *scalars, *tensors, *self.origin, *self.sums)

    def add(self, update: list[float]) -> None:
        """In double precision, rounded once to single. A row for every key, or for every class."""
        width = self.shape[1]
        if len(update) != len(self.keys):
            update = [x for c in self.classes for x in update[c * width : (c + 1) * width]]
        total = [key + change for key, change in zip(self.keys, update, strict=True)]
        self.keys = struct.unpack(f"<{len(total)}f", struct.pack(f"<{len(total)}f", *total))


class Server:
    """What becomes of each round's mean update, number by number."""

    def __init__(self, section: dict[str, Any], entries: int) -> None:
        self.section, self.first = section, [0.0] * entries
        self.second = [section.get("epsilon", 0.0) * section.get("epsilon", 0.0)] * entries

    def change(self, mean: list[float]) -> list[float]:
        section = self.section
        match section["optimizer"]:
            case "mean":
                return mean
            case "momentum":
                pairs = zip(self.first, mean, strict=True)
                self.first = [section["momentum"] * before + each for before, each in pairs]
                return [section["rate"] * each for each in self.first]
            case "adam":
                b1, b2 = section["beta1"], section["beta2"]
                self.first = [b1 * m + (1 - b1) * each for m, each in zip(self.first, mean, strict=True)]
                self.second = [
                    b2 * v + (1 - b2) * (each * each) for v, each in zip(self.second, mean, strict=True)
                ]
                both = zip(self.first, self.second, strict=True)
                return [section["rate"] * m / (math.sqrt(v) + section["epsilon"]) for m, v in both]
        raise Refused("an optimizer of another version")
