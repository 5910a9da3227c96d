"""A pipeline for a class-conditional UNet on pixels, for which diffusers has a model and a scheduler but no pipeline.

A folder with ``unet/``, ``scheduler/`` and optionally ``classes.json`` (class names in the order of their numbers)
is what a training script leaves behind. Guidance is classifier-free (Ho and Salimans 2022) if the UNet knows one
more class than there are names: the last one, which it was taught to draw without a class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cachefl_secure.cache.pipeline_files import read_json
from cachefl_secure.errors import ConfigError

_DEFAULT_STEPS, _DEFAULT_GUIDANCE = 30, 2.5


@dataclass(frozen=True, slots=True)
class Pictures:
    """As the outputs of diffusers' own pipelines."""

    images: list[Any]


class ClassConditionalPipeline:
    """Draws with DDIM steps (Song et al. 2021), which need no randomness but the first."""

    def __init__(self, unet: Any, scheduler: Any, labels: dict[str, int]) -> None:
        self.unet, self.scheduler, self.labels = unet, scheduler, labels
        has_null_class = bool(labels) and unet.config.num_class_embeds == len(labels) + 1
        self._null_class = len(labels) if has_null_class else None

    def __call__(
        self,
        class_labels: list[int],
        num_inference_steps: int = _DEFAULT_STEPS,
        guidance_scale: float = _DEFAULT_GUIDANCE,
        *,
        generator: list[torch.Generator],
        output_type: str = "pil",
    ) -> Pictures:
        from diffusers.image_processor import VaeImageProcessor

        size = self.unet.config.sample_size
        shape = (1, self.unet.config.in_channels, size, size)
        noise = torch.cat([torch.randn(shape, generator=stream) for stream in generator])
        pictures = self._denoise(noise, torch.tensor(class_labels), num_inference_steps, guidance_scale)
        pixels = VaeImageProcessor.pt_to_numpy((pictures / 2 + 0.5).clamp(0, 1))
        return Pictures(VaeImageProcessor.numpy_to_pil(pixels))

    @torch.no_grad()
    def _denoise(self, noise: Tensor, labels: Tensor, steps: int, guidance: float) -> Tensor:
        """(b, channels, size, size) in about [-1, 1]."""
        picture = noise.to(self.unet.device, self.unet.dtype)
        labels = labels.to(self.unet.device)
        self.scheduler.set_timesteps(steps)
        for time in self.scheduler.timesteps:
            predicted = self.unet(picture, time, class_labels=labels).sample
            if guidance > 1 and self._null_class is not None:
                null = torch.full_like(labels, self._null_class)
                without = self.unet(picture, time, class_labels=null).sample
                predicted = without + guidance * (predicted - without)
            picture = self.scheduler.step(predicted, time, picture).prev_sample
        return picture.float().cpu()


def open_class_conditional(folder: Path, dtype: torch.dtype, device: str) -> ClassConditionalPipeline:
    """The pipeline of a folder without an index.

    Raises:
        ConfigError: the UNet knows no classes, or fewer than ``classes.json`` names.
        Exception: whatever diffusers or safetensors make of files that do not fit.
    """
    from diffusers import DDIMScheduler, UNet2DModel

    unet = UNet2DModel.from_pretrained(
        folder / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False, dtype=dtype
    )
    known = unet.config.num_class_embeds
    if not known:
        raise ConfigError(
            str(folder / "unet" / "config.json"), "num_class_embeds", "this UNet draws no classes"
        )
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
    return ClassConditionalPipeline(
        unet.to(device).eval(), scheduler, _labels(folder / "classes.json", known)
    )


def _labels(file: Path, known: int) -> dict[str, int]:
    names = read_json(file) if file.is_file() else []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(str(file), "", "must be a list of class names")
    if len(names) > known or len(set(names)) != len(names):
        raise ConfigError(str(file), "", f"must be at most {known} different names: the UNet knows no more")
    return {name: number for number, name in enumerate(names)}
