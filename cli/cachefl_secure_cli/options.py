"""Options that several commands share, so that they read alike everywhere."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

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
        help="Where this party has the frozen CLIP, if not as the plan says: local-dir:PATH, same weights.",
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


def resolve_device(device: Device) -> str:
    """The device's name for torch; ``auto`` prefers cuda, then mps."""
    if device is not Device.auto:
        return device.value
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
