"""Train the tiny class-conditional generator on printed glyphs and write it as a diffusers pipeline.

    python -m cachefl_secure.embedded.build_generator --seed 0 --out cachefl_secure/embedded/generator

A stock ``DiTPipeline`` (Peebles and Xie 2023): ``DiffusionPipeline.from_pretrained(folder)`` loads it with
nothing of ours installed. The latent *is* the 8 x 8 scan, scaled to [-1, 1]: the transformer makes scans,
and the autoencoder's decoder learns to enlarge one exactly as ``glyphs.to_clip_image`` does, so the
pipeline's 32 x 32 pictures and the silos' are alike.

v-prediction on a cosine schedule with zero terminal signal; one label in ten is dropped for guidance, to
class 1000, which ``DiTPipeline`` hard-codes (the table's 990 unused rows stay zero and compress to
nothing).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.nn import functional

from cachefl_secure.embedded import CLASSES, GENERATOR_DIR
from cachefl_secure.embedded.glyphs import CLIP_SIZE, LEVELS, clip_pixels, draw_glyphs

TRAINING_GLYPHS = 40_000
BATCH = 128
AUTOENCODER_STEPS = 600
PEAK_LEARNING_RATE = 2e-3
WARM_UP_STEPS = 100
LABEL_DROPOUT = 0.1
AVERAGE_DECAY = 0.998
NO_CLASS = 1000  # hard-coded in DiTPipeline.__call__

CARD = """---
license: apache-2.0
library_name: diffusers
---
# The tiny digit generator of cachefl-secure

Draws 32 x 32 grey digits, class by class. Trained from scratch on printed glyphs rendered from the fonts
that matplotlib ships; it has never seen handwriting. 25 DDIM steps with the pipeline's default guidance are
enough. Rebuild: `python -m cachefl_secure.embedded.build_generator --seed {seed}`.
"""


def main(
    seed: Annotated[int, typer.Option(help="Seed of glyphs, initial weights and batches.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = GENERATOR_DIR,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    steps: Annotated[int, typer.Option(help="Training steps of 128 glyphs.")] = 1800,
) -> None:
    """Train the tiny generator and write it to a folder."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    labels = rng.integers(10, size=TRAINING_GLYPHS)
    scans = draw_glyphs(labels, seed)
    latents = torch.from_numpy(scans).float()[:, None] / (LEVELS / 2) - 1
    autoencoder = train_autoencoder(latents, clip_pixels(scans), rng, device)
    transformer = train_transformer(latents, torch.from_numpy(labels), steps, device)
    save(transformer, autoencoder, out, seed)


def train_autoencoder(
    latents: Tensor, pictures: NDArray[np.uint8], rng: np.random.Generator, device: str
) -> Any:
    """An ``AutoencoderKL`` whose latent is the scan: decoding enlarges, encoding counts."""
    from diffusers import AutoencoderKL

    autoencoder = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=1,
        sample_size=CLIP_SIZE,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    ).to(device)
    _fix_variance(autoencoder)
    optimizer = torch.optim.Adam(autoencoder.parameters())
    for step in track(range(AUTOENCODER_STEPS), "training the autoencoder "):
        optimizer.param_groups[0]["lr"] = _learning_rate(step, AUTOENCODER_STEPS)
        batch = rng.integers(len(latents), size=BATCH // 4)
        scan = latents[batch].to(device)
        picture = torch.from_numpy(pictures[batch]).float()[:, None].to(device) / 127.5 - 1
        # A little noise, because a diffusion sample is never a clean scan.
        enlarged = autoencoder.decode(scan + 0.03 * torch.randn_like(scan)).sample
        loss = functional.mse_loss(enlarged, picture)
        loss = loss + functional.mse_loss(autoencoder.encode(picture).latent_dist.mean, scan)
        _step(optimizer, loss, autoencoder)
    return autoencoder.eval()


def _fix_variance(autoencoder: Any) -> None:
    """The encoder's second channel, a log-variance, starts at -30 and has no gradient: no randomness."""
    with torch.no_grad():
        autoencoder.encoder.conv_out.weight[1].zero_()
        autoencoder.encoder.conv_out.bias[1].fill_(-30.0)


def train_transformer(latents: Tensor, labels: Tensor, steps: int, device: str) -> Any:
    """A ``DiTTransformer2DModel`` that predicts v; the weights returned are a moving average."""
    from torch.optim.swa_utils import AveragedModel

    scheduler, transformer = _scheduler(), _transformer().to(device)
    averaged = AveragedModel(transformer, avg_fn=_moving_average)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.0)
    for step in track(range(steps), "training the transformer "):
        optimizer.param_groups[0]["lr"] = _learning_rate(step, steps)
        batch = torch.randint(len(latents), (BATCH,))
        clean, label = latents[batch].to(device), labels[batch].clone()
        label[torch.rand(BATCH) < LABEL_DROPOUT] = NO_CLASS
        noise = torch.randn(clean.shape).to(device)
        time = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), device=device)
        noisy = scheduler.add_noise(clean, noise, time)
        predicted = transformer(noisy, timestep=time, class_labels=label.to(device)).sample
        _step(
            optimizer, functional.mse_loss(predicted, scheduler.get_velocity(clean, noise, time)), transformer
        )
        averaged.update_parameters(transformer)
    return averaged.module.eval()


def _moving_average(average: Tensor, value: Tensor, _: Tensor | int) -> Tensor:
    return average.lerp(value, 1 - AVERAGE_DECAY)


def _transformer() -> Any:
    from diffusers import DiTTransformer2DModel

    transformer = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=24,
        in_channels=1,
        out_channels=1,  # stated, because DiTPipeline divides it
        num_layers=4,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    # Evaluation mode also for training: each block holds its own label table and would drop labels by itself,
    # so that one block may see the class that another must not. We drop once, for all of them.
    transformer.eval()
    with (
        torch.no_grad()
    ):  # adaLN-zero: every block starts as the identity (Peebles and Xie 2023, section 3.2)
        for block in transformer.transformer_blocks:
            block.norm1.linear.weight.zero_()
            block.norm1.linear.bias.zero_()
            table = block.norm1.emb.class_embedder.embedding_table.weight
            table[len(CLASSES) : NO_CLASS].zero_()
        transformer.proj_out_2.weight.zero_()
        transformer.proj_out_2.bias.zero_()
    return transformer


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        # Guidance overshoots at first; clipping there, without recomputing the noise, ends in specks.
        clip_sample=False,
    )


def _learning_rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return PEAK_LEARNING_RATE * warm * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, model: torch.nn.Module) -> None:
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def save(transformer: Any, autoencoder: Any, out: Path, seed: int) -> None:
    """The pipeline's folder in float16, with the class names in ``model_index.json``, and its card."""
    from diffusers import DiTPipeline

    names = dict(enumerate(CLASSES))
    pipeline = DiTPipeline(transformer.cpu().half(), autoencoder.cpu().half(), _scheduler(), id2label=names)
    pipeline.register_to_config(id2label={str(label): name for label, name in names.items()})
    pipeline.save_pretrained(out, safe_serialization=True)
    for file in out.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes for the owner only
    (out / "README.md").write_text(CARD.format(seed=seed), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
