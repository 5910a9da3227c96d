"""Pictures of the small class-conditional diffusion model that lies beside the real data: a real synthetic start.

It is no pipeline, so the sampling is spelt out: 30 DDIM steps, classifier-free guidance 2.5 (Ho and Salimans 2022).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

STEPS, GUIDANCE, NO_CLASS = 30, 2.5, 6


def draw(
    model: Path,
    target: Path,
    classes: Sequence[str],
    count: int,
    progress: Callable[[int, int, str], None],
) -> Path:
    """``target/<class>/0000.png`` ..., made once: the same numbers whenever it is called."""
    if all((target / name / f"{count - 1:04d}.png").is_file() for name in classes):
        return target
    from diffusers import DDIMScheduler, UNet2DModel

    known = json.loads((model / "classes.json").read_text())
    network = UNet2DModel.from_pretrained(
        model / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    ).float()
    schedule = DDIMScheduler.from_pretrained(model / "scheduler", local_files_only=True)
    schedule.set_timesteps(STEPS)
    for done, name in enumerate(classes):
        progress(done, len(classes), "draw mednist")
        pictures = _sample(network.eval(), schedule, known.index(name), count)
        (target / name).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            Image.fromarray(picture.numpy(), "L").save(target / name / f"{number:04d}.png")
    return target


@torch.no_grad()
def _sample(network: Any, schedule: Any, label: int, count: int) -> Tensor:
    """(count, 32, 32) uint8."""
    generator = torch.Generator().manual_seed(label)
    pictures = torch.randn(count, 1, 32, 32, generator=generator)
    labels = torch.tensor([label] * count + [NO_CLASS] * count)
    for time in schedule.timesteps:
        with_class, without = network(
            torch.cat([pictures, pictures]), time, class_labels=labels
        ).sample.chunk(2)
        pictures = schedule.step(without + GUIDANCE * (with_class - without), time, pictures).prev_sample
    return ((pictures[:, 0] / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
