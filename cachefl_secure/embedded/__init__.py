"""The default that needs no download: a tiny CLIP, a tiny generator, real handwriting in five silos.

The story: a public model knows digits from print only, the silos hold handwriting, and the federation closes
the gap. Reading order:

``glyphs``           printed digits made to look like 8 x 8 scans; the only training material of both models
``build_clip``       trains ``clip/``, in open_clip's own local format
``build_generator``  trains ``generator/``, a diffusers ``DiTPipeline``
``digits``           scikit-learn's bundled handwriting, split into five silos and a held-out set

Origin and licences. The weights in ``clip/`` and ``generator/`` were trained from scratch by the two
scripts, which anybody can run again; they are ours, under the project's Apache-2.0. The fonts (DejaVu,
STIX, Computer Modern, as matplotlib ships them) are used for rendering only and are not redistributed here.
The handwriting is scikit-learn's copy of the UCI data set "Optical Recognition of Handwritten Digits"
(Alpaydin and Kaynak 1998, CC BY 4.0); no model here was trained or selected on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

CLIP_DIR: Final = Path(__file__).parent / "clip"
"""For ``open_clip.create_model_and_transforms(f"local-dir:{CLIP_DIR}")``."""

GENERATOR_DIR: Final = Path(__file__).parent / "generator"
"""For ``diffusers.DiffusionPipeline.from_pretrained(GENERATOR_DIR)``."""

GENERATOR_STEPS: Final = 25
"""Enough for it; the pipeline's own default is 50."""

CLASSES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Class names, in the order of the labels 0..9."""

TEMPLATES: Final = (
    "a photo of the digit {}.",
    "a picture of the number {}.",
    "the number {}.",
    "a scan of the digit {}.",
    "a blurry photo of the digit {}.",
    "a drawing of a {}.",
)
"""Prompts with one ``{}``; the tiny CLIP was trained with exactly these."""
