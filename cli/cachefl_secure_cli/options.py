"""Options that several commands share, so that they read alike everywhere."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachefl_secure.cache.encoder import Encoder
    from cachefl_secure.plan import EncoderPlan

Coordinator = Annotated[
    Path,
    typer.Argument(
        metavar="COORDINATOR", help="The coordinator's directory, made by init.", show_default=False
    ),
]
Party = Annotated[
    Path,
    typer.Argument(metavar="DIRECTORY", help="A coordinator's or a silo's directory.", show_default=False),
]
Clip = Annotated[
    str | None,
    typer.Option(
        "--clip",
        help="Where this party has the frozen CLIP, if not as the plan says: local-dir:PATH, or a .safetensors "
        "file for the plan's architecture; same weights.",
        show_default=False,
    ),
]


class Device(enum.StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where to compute; auto takes a GPU if there is one.")
]


class Precision(enum.StrEnum):
    """Of the image tower."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


PrecisionOption = Annotated[
    Precision,
    typer.Option("--precision", help="Of encoding; auto takes float16 on a CUDA GPU, float32 elsewhere."),
]
Offline = Annotated[
    bool,
    typer.Option(
        "--offline",
        help="Download nothing, neither encoder nor generator; say which files to bring. A silo never downloads.",
    ),
]
SkipUnreadable = Annotated[
    bool, typer.Option("--skip-unreadable", help="Leave out images that cannot be read, and list them.")
]
SOURCES = "A folder with one sub-folder a class, a .csv or .parquet of path,label, or features as .npz, .safetensors or a pair of .npy, whose labels are whole numbers from 0 in the order of the invite's classes"


def tell_skipped(skipped: tuple[str, ...]) -> None:
    """How many images were left out, and the first of them."""
    from cachefl_secure_cli.failures import say

    if skipped:
        more = f" and {len(skipped) - 20} more" if len(skipped) > 20 else ""
        say(f"{counted(len(skipped), 'unreadable image')} left out: {', '.join(skipped[:20])}{more}")


def encoder_when_needed(
    plan: EncoderPlan, clip: str | None, device: Device, precision: Precision, *, offline: bool
) -> Callable[[], Encoder]:
    """Opens the plan's encoder once, at the first call: features that were made elsewhere need none."""
    import functools

    from cachefl_secure.federation.clip_source import ClipSource, open_encoder

    @functools.cache
    def opened() -> Encoder:
        source, target = ClipSource.of_plan(plan, clip), resolve_device(device)
        return open_encoder(plan, source, device=target, precision=precision.value, offline=offline)

    return opened


def resolve_device(device: Device) -> str:
    """The device's name for torch; ``auto`` prefers cuda, then mps."""
    if device is not Device.auto:
        return device.value
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
