"""The plan: everything that all parties agree on and anybody may know.

``plan.toml`` is read into a ``FederationPlan``; unknown fields are refused. Its digest is bound into
every signature, so two parties with different plans never take part in the same round. Private
configuration (paths, caps) is in ``silo.toml`` and is never sent.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar, assert_never

import msgspec
import tomli_w
from msgspec import Meta

from cachefl_secure.errors import ConfigError
from cachefl_secure.fields import ClassName, Count, Hex64, Positive, Strict
from cachefl_secure.lattice import Lattice
from cachefl_secure.names import Digest, FederationId, PublicKeyHex, digest_of
from cachefl_secure.privacy_plan import (
    DistributedPlan,
    GridPlan,
    LocalPlan,
    NoPrivacyPlan,
    PrivacyPlan,
    ReleasePlan,
    StatisticsPlan,
)
from cachefl_secure.server_plan import FEDAVG, ServerPlan
from cachefl_secure.statistics_layout import entries

PROTOCOL = "CF-SecAgg/1"

MAX_TOML_BYTES = 256 * 1024  # a class list of ImageNet takes 20 KB
MAX_KEY_DOTS = 8  # tomllib needs 13.7 s for one dotted key of 20,000 parts
# A string without an end is taken to the end of its line: that keeps the search linear, and it is no TOML.
_STRING_OR_COMMENT = re.compile(rb"\"(?:[^\"\\]|\\.)*\"?|'[^']*'?|#.*")
_LONG_KEY = re.compile(rb"(?<![\"\w-])(?:[\"\w-]+\s*\.\s*){%d}" % (MAX_KEY_DOTS + 1))


class EncoderPlan(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The frozen CLIP. ``weights_digest`` pins its parameters; where they lie on disk is each party's own."""

    model: Annotated[str, Meta(min_length=1, max_length=200)]
    """``embedded``, an open_clip model name, ``hf-hub:...``, or ``local-dir`` (each party says where)."""
    pretrained: Annotated[str, Meta(max_length=200)] = ""
    weights_digest: Hex64
    preprocessing_digest: Hex64
    """Pins resizing, normalisation and the architecture: the same weights under another one give other features."""
    feature_dim: Count
    templates: Annotated[tuple[str, ...], Meta(min_length=1, max_length=200)]
    """Prompts with one ``{}`` for the class name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"template {template!r} must hold exactly one {{}}")


Trained = Literal["keys", "class_residual"]
"""What silos train: every cache key by itself, or one residual for all keys of a class. See ``cache.heads``."""


class CachePlan(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Tip-Adapter's cache model (Zhang et al. 2022): logits = scale W f + alpha L^T exp(-beta (1 - F f))."""

    images_per_class: Count
    """K: cache keys a class."""
    alpha: Positive
    alpha_norm: Literal["sum", "mean"] = "sum"
    """What alpha weighs: a class's summed affinities, or their mean, so that one alpha suits every K."""
    beta: Positive
    logit_scale: Positive
    trained: Trained = "keys"
    initial_digest: Hex64
    """Digest of the cache file that round 1 starts from."""

    @property
    def model_alpha(self) -> float:
        """The alpha of the cache model, which sums."""
        return self.in_model(self.alpha)

    def in_model(self, alpha: float) -> float:
        """The same for another alpha than the plan's."""
        return alpha if self.alpha_norm == "sum" else alpha / self.images_per_class


class SecureSumPlan(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a silo insists on before it contributes. Thresholds follow from these; see protocol.parameters."""

    minimum_cohort: Annotated[int, Meta(ge=3, le=1024)] = 3
    """Fewest silos that a round may begin with."""
    minimum_survivors: Annotated[int, Meta(ge=2, le=1024)] = 3
    """Fewest updates in a sum. With 2, each of two survivors learns the other's update from the sum."""
    colluders: Annotated[int, Meta(ge=0, le=1022)] = 1
    """Silos that may pool what they know with the coordinator."""
    dropout_percent: Annotated[int, Meta(ge=0, le=50)] = 10
    """Part of a cohort of more than 128 that may drop out by chance; smaller ones need no such number."""

    @property
    def guaranteed_survivors(self) -> int:
        """Fewest updates in any sum that an honest silo lets be opened, whatever the roster."""
        # A roster is no smaller than the cohort, and thresholds count over it (protocol.parameters).
        threshold = (self.minimum_cohort + self.colluders) // 2 + 1
        return max(self.minimum_survivors, threshold, self.colluders + 2)

    @property
    def honest_survivors(self) -> int:
        """h: silos in every sum whose share of the noise nobody can subtract, the silo itself among them."""
        return self.guaranteed_survivors - self.colluders


class FederationPlan(Strict, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole agreement. Constructing one checks every field; ``plan_digest`` names it."""

    version: Literal[1] = 1
    protocol: Literal["CF-SecAgg/1"] = "CF-SecAgg/1"
    federation_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    name: Annotated[str, Meta(min_length=1, max_length=100)]
    coordinator_public_key: Hex64
    channel: Annotated[str, Meta(pattern=r"^inproc:\Z")] = "inproc:"
    classes: Annotated[tuple[ClassName, ...], Meta(min_length=2, max_length=100_000)]
    encoder: EncoderPlan
    cache: CachePlan
    privacy: PrivacyPlan
    secure_sum: SecureSumPlan
    server: ServerPlan = FEDAVG

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes: a name stands twice")
        if self.is_one_release and (self.cache.trained != "keys" or self.server != FEDAVG):
            raise ValueError(
                "privacy: one release trains nothing, so cache.trained and server stay as they are"
            )

    @property
    def number_of_keys(self) -> int:
        """NK."""
        return len(self.classes) * self.cache.images_per_class

    @property
    def trained_rows(self) -> int:
        """Rows of an update: NK, or N if the keys of a class move together."""
        return self.number_of_keys if self.cache.trained == "keys" else len(self.classes)

    @property
    def number_of_parameters(self) -> int:
        """What a silo sends, in ring elements: d = rows * C, the entries of class sums and Gram matrix, or one a pair."""
        match self.privacy:
            case DistributedPlan() | LocalPlan() | NoPrivacyPlan():
                return self.trained_rows * self.encoder.feature_dim
            case StatisticsPlan():
                return sum(entries(len(self.classes), self.encoder.feature_dim).values())
            case GridPlan():
                return len(self.privacy.pairs)
            case unknown:
                assert_never(unknown)

    @property
    def is_one_release(self) -> bool:
        """Whether one round of sums is all there is (mechanisms ``statistics`` and ``grid``), and no training."""
        return isinstance(self.privacy, ReleasePlan)

    @property
    def lattice(self) -> Lattice:
        """The integers of private gradients."""
        return Lattice.of(self.trained_rows, self.encoder.feature_dim)

    @property
    def id(self) -> FederationId:
        return FederationId(self.federation_id)

    @property
    def coordinator_key(self) -> PublicKeyHex:
        return PublicKeyHex(self.coordinator_public_key)


@lru_cache(64)
def plan_digest(plan: FederationPlan) -> Digest:
    """Digest of the plan's canonical JSON (sorted keys, shortest floats), whatever the layout of the file."""
    return digest_of("cachefl-secure/plan/1", msgspec.json.encode(plan, order="sorted"))


T = TypeVar("T", bound=msgspec.Struct)


def read_toml(path: Path, kind: type[T]) -> T:
    """A TOML file as a checked object.

    Size and key depth are capped before the parser sees the text: ``tomllib`` is quadratic in dotted keys.

    Raises:
        ConfigError: absent, too large, not TOML, or a field is missing, unknown or out of range.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_TOML_BYTES + 1)  # no more than decode_toml would accept
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    return decode_toml(raw, kind, file=str(path))


def decode_toml(raw: bytes, kind: type[T], *, file: str) -> T:
    """As ``read_toml``, from bytes already in hand."""
    if len(raw) > MAX_TOML_BYTES:
        raise ConfigError(file, "", f"{len(raw)} bytes, more than the {MAX_TOML_BYTES} allowed")
    for number, line in enumerate(raw.split(b"\n"), 1):
        skeleton = _STRING_OR_COMMENT.sub(lambda found: b"" if found[0][:1] == b"#" else b'"', line)
        if b'""' in skeleton:  # refused, so that every string ends on its line and no key hides behind one
            raise ConfigError(file, f"line {number}", "a multi-line string")
        if _LONG_KEY.search(skeleton):
            raise ConfigError(file, f"line {number}", f"a key of more than {MAX_KEY_DOTS} parts")
    try:
        return msgspec.toml.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        raise ConfigError(file, place.strip("`.") if place else "", reason) from None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # ValueError: a number of 5,000 digits
        raise ConfigError(file, "", f"not TOML: {error}") from None


def encode_toml(value: msgspec.Struct) -> bytes:
    """The object as TOML text; ``decode_toml`` gives it back unchanged."""
    return tomli_w.dumps(msgspec.to_builtins(value), multiline_strings=False).encode()
