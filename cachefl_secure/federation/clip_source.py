"""Where a party finds the frozen CLIP, and the check that it is the one the plan pins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cachefl_secure.errors import ConfigError
from cachefl_secure.plan import EncoderPlan

if TYPE_CHECKING:
    from cachefl_secure.cache.encoder import Encoder

EMBEDDED, LOCAL_DIR = "embedded", "local-dir"


@dataclass(frozen=True, slots=True)
class ClipSource:
    """What was given to ``--clip`` (and ``--pretrained``)."""

    model: str
    pretrained: str = ""
    local_dir: Path | None = None
    weights: Path | None = None
    """A safetensors file with the weights of ``pretrained``, which a party brought."""

    @classmethod
    def parse(cls, text: str, pretrained: str = "") -> ClipSource:
        """``embedded``, ``local-dir:PATH``, ``hf-hub:NAME``, or an architecture with ``--pretrained``.

        Raises:
            ConfigError: a local-dir without a path.
        """
        if text == EMBEDDED:
            from cachefl_secure.embedded import CLIP_DIR

            return cls(EMBEDDED, "", CLIP_DIR)
        model, colon, place = text.partition(":")
        if model == LOCAL_DIR:
            if not (colon and place):
                raise ConfigError("--clip", "", "write local-dir:PATH, a folder with open_clip_config.json")
            return cls(LOCAL_DIR, "", Path(place).expanduser().resolve())
        return cls(text, pretrained)

    @property
    def text(self) -> str:
        """As ``--clip`` takes it."""
        if self.weights is not None:
            return str(self.weights)
        return f"{LOCAL_DIR}:{self.local_dir}" if self.model == LOCAL_DIR else self.model

    @classmethod
    def of_plan(cls, plan: EncoderPlan, text: str | None) -> ClipSource:
        """A party's source for the plan's encoder: as the plan names it unless the operator says otherwise.

        Beside what ``parse`` takes: a ``.safetensors`` file, the weights of the plan's architecture.

        Raises:
            ConfigError: the plan's encoder is a local folder and nobody said where it lies here, or a file was
                given where a folder is needed.
        """
        if text and text.endswith(".safetensors") and not text.startswith(f"{LOCAL_DIR}:"):
            if plan.model in {EMBEDDED, LOCAL_DIR} or ":" in plan.model:
                reason = f"this plan's encoder is {plan.model[:60]!r}: give its folder, --clip local-dir:PATH"
                raise ConfigError("--clip", text, reason)
            return cls(plan.model, plan.pretrained, None, Path(text).expanduser().resolve())
        if text:
            return cls.parse(text, plan.pretrained)
        if plan.model == LOCAL_DIR:
            raise ConfigError(
                "--clip", "", "this plan's encoder is a local folder: give --clip local-dir:PATH"
            )
        return cls.parse(plan.model, plan.pretrained)


def load_source(
    source: ClipSource, *, device: str, precision: str = "float32", offline: bool = False
) -> Encoder:
    """The encoder, whatever its weights are. With ``offline`` nothing is downloaded."""
    from cachefl_secure.cache.encoder import load_encoder

    return load_encoder(
        source.model,
        source.pretrained,
        local_dir=source.local_dir,
        weights=source.weights,
        device=device,
        precision=precision,
        offline=offline,
    )


def open_encoder(
    plan: EncoderPlan, source: ClipSource, *, device: str, precision: str = "float32", offline: bool = False
) -> Encoder:
    """The plan's encoder.

    Raises:
        ConfigError: it cannot be loaded, or its weights are not the pinned ones.
    """
    encoder = load_source(source, device=device, precision=precision, offline=offline)
    if encoder.weights_digest != plan.weights_digest:
        found, pinned = encoder.weights_digest[:16], plan.weights_digest[:16]
        raise ConfigError("--clip", source.text, f"weights {found}, but the plan pins {pinned}")
    if encoder.preprocessing_digest != plan.preprocessing_digest:
        reason = "the plan's weights, but another architecture or preprocessing than it pins"
        raise ConfigError("--clip", source.text, reason)
    return encoder
