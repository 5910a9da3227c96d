"""Train the tiny CLIP on printed glyphs and write it in open_clip's own local format.

    python -m cachefl_secure.embedded.build_clip --seed 0 --out cachefl_secure/embedded/clip

A ViT of 3 layers over 32 x 32 pictures, and a text transformer of 1 layer over open_clip's standard
tokenizer, so plain open_clip 3.3 loads the folder with nothing of ours installed. Half of the file is the
standard tokenizer's table of 49,408 words; the rows of words that no caption uses stay zero and compress to
nothing.

Loss: image to caption and caption to image cross-entropy in a batch where a caption of each class meets many
pictures (several positives, as in UniCL, Yang et al. 2022). The logit scale is learned, as in CLIP.
The handwriting is read once, after the weights are on disk, to print a number; nothing is selected on it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from cachefl_secure.embedded import CLASSES, CLIP_DIR, TEMPLATES
from cachefl_secure.embedded.glyphs import CLIP_SIZE, clip_pixels, draw_glyphs

TRAINING_GLYPHS = 40_000
FRESH_GLYPHS = 2_000
BATCH = 128
WARM_UP_STEPS = 100
PEAK_LEARNING_RATE = 2e-3
CAPTIONS_PER_CLASS = 3

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": CLIP_SIZE,
            "layers": 3,
            "width": 96,
            "head_width": 24,
            "patch_size": 8,
        },
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 24,
            "heads": 2,
            "layers": 1,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}
"""``open_clip_config.json``. Images longer than one side are cropped; all of ours are square."""

CARD = """---
license: apache-2.0
library_name: open_clip
---
# The tiny CLIP of cachefl-secure

Reads digits, and nothing else: trained from scratch on printed glyphs, rendered from fonts that matplotlib
ships. It has never seen handwriting. Rebuild: `python -m cachefl_secure.embedded.build_clip --seed {seed}`.

Zero-shot accuracy: {glyphs:.1%} on {fresh} fresh glyphs, {handwriting:.1%} on scikit-learn's handwriting
(for information; nothing was selected on it).
"""


def to_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """(n, 32, 32) grey as CLIP's input (n, 3, 32, 32) in [-1, 1]: what ``CONFIG``'s preprocessing does."""
    return (torch.from_numpy(pictures).float()[:, None] / 127.5 - 1).expand(-1, 3, -1, -1)


def train(seed: int, steps: int, device: str) -> Any:
    """A tiny CLIP trained on ``TRAINING_GLYPHS`` glyphs, on ``device``, in evaluation mode."""
    import open_clip
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=TRAINING_GLYPHS)
    pictures = clip_pixels(draw_glyphs(labels, seed))
    captions = open_clip.tokenize([t.format(c) for c in CLASSES for t in TEMPLATES], 16).to(device)
    model = CLIP(**CONFIG["model_cfg"]).to(device)
    optimizer = torch.optim.AdamW(_groups(model), lr=PEAK_LEARNING_RATE)
    for step in track(range(steps), "training the tiny CLIP"):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, steps)
        batch = rng.integers(TRAINING_GLYPHS, size=BATCH)
        chosen = rng.integers(len(TEMPLATES), size=(10, CAPTIONS_PER_CLASS))
        rows = (np.arange(10)[:, None] * len(TEMPLATES) + chosen).ravel()
        loss = _loss(model, to_pixels(pictures[batch]).to(device), labels[batch], captions[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
    _zero_unused_words(model, captions)
    return model.eval()


def _loss(model: Any, pixels: Tensor, labels: NDArray[np.int64], captions: Tensor) -> Tensor:
    """Symmetric cross-entropy; all captions of a picture's class, and all its pictures, are positive."""
    images, texts, scale = model(pixels, captions)
    logits = scale * images @ texts.T
    classes = torch.arange(10, device=logits.device).repeat_interleave(CAPTIONS_PER_CLASS)
    positive = (torch.from_numpy(labels).to(logits.device)[:, None] == classes).float()
    by_image = positive / positive.sum(1, keepdim=True)
    by_text = positive / positive.sum(0, keepdim=True).clamp(min=1)
    return (functional.cross_entropy(logits, by_image) + functional.cross_entropy(logits.T, by_text.T)) / 2


def _groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices of layers only: not for biases, norms, the logit scale or the word table."""
    decayed: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or "embedding" in name
        (rest if plain else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]


def _learning_rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return PEAK_LEARNING_RATE * warm * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.005)


def _zero_unused_words(model: Any, captions: Tensor) -> None:
    weight = model.token_embedding.weight
    used = torch.zeros(len(weight), 1, device=weight.device)
    used[captions.flatten()] = 1
    with torch.no_grad():
        weight.mul_(used)


def save(model: torch.nn.Module, out: Path) -> None:
    """``open_clip_config.json`` and float16 ``open_clip_model.safetensors``."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}
    weights = out / "open_clip_model.safetensors"
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes for the owner only
    (out / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def zero_shot_accuracy(folder: Path, scans: NDArray[np.generic], labels: NDArray[np.integer]) -> float:
    """Share of 8 x 8 scans that the saved CLIP reads rightly, through open_clip's own factory."""
    import open_clip

    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    texts = model.encode_text(tokenizer([t.format(c) for c in CLASSES for t in TEMPLATES]), normalize=True)
    classifier = functional.normalize(texts.view(len(CLASSES), len(TEMPLATES), -1).mean(1), dim=-1)
    images = model.encode_image(to_pixels(clip_pixels(scans)), normalize=True)
    return float(((images @ classifier.T).argmax(1).numpy() == labels).mean())


def main(
    seed: Annotated[int, typer.Option(help="Seed of glyphs, initial weights and batches.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = CLIP_DIR,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    steps: Annotated[int, typer.Option(help="Training steps of 128 glyphs.")] = 1500,
) -> None:
    """Train the tiny CLIP and write it to a folder."""
    from sklearn.datasets import load_digits

    save(train(seed, steps, device), out)
    fresh_labels = np.arange(FRESH_GLYPHS) % 10
    glyphs = zero_shot_accuracy(out, draw_glyphs(fresh_labels, seed + 1), fresh_labels)
    scans = load_digits()
    handwriting = zero_shot_accuracy(out, scans.images, scans.target)
    card = CARD.format(seed=seed, fresh=FRESH_GLYPHS, glyphs=glyphs, handwriting=handwriting)
    (out / "README.md").write_text(card, encoding="utf-8")
    typer.echo(f"fresh glyphs {glyphs:.1%}, handwriting {handwriting:.1%} (for information)")


if __name__ == "__main__":
    typer.run(main)
