"""predict: use the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.options import (
    Clip,
    Device,
    DeviceOption,
    Offline,
    Party,
    Precision,
    PrecisionOption,
    encoder_when_needed,
)
from cachefl_secure_cli.output import Json, console, print_json, table


@explained
def command(
    directory: Party,
    images: Annotated[list[Path], typer.Argument(help="Images to classify.", show_default=False)],
    most: Annotated[int, typer.Option("-m", "--most", min=1, help="How many classes to show.")] = 3,
    clip: Clip = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Classify images with the latest model: for each the best classes with their scores. Nothing leaves this machine.

    Example: cachefl-secure predict clinic-1 image.png
    """
    from cachefl_secure.federation.accuracy import predict_images
    from cachefl_secure.federation.inspection import open_chain
    from cachefl_secure.federation.witnesses import is_silo

    chain = open_chain(directory)
    offline = offline or is_silo(directory)
    encoder = encoder_when_needed(chain.plan.encoder, clip, device, precision, offline=offline)
    predictions = predict_images(chain, encoder(), images, most=most)
    if json:
        listed = [{"image": str(p.image), "classes": dict(p.classes)} for p in predictions]
        print_json("predict", {"round": chain.position.round, "predictions": listed})
        return
    rows = [
        (str(p.image), ", ".join(f"{name} {score:.3f}" for name, score in p.classes)) for p in predictions
    ]
    columns, caption = ("image", "score of each class"), "a score ranks the classes; it is no probability"
    console().print(table(f"model after round {chain.position.round}", columns, rows, caption=caption))
