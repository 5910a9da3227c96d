"""What a GPU is worth: private training and encoding on one, against the processors of the same machine.

    python tests/bench/on_a_gpu.py          1600 x 512 and 16000 x 1024 cache keys, ViT-B-16; a minute or two
    python tests/bench/on_a_gpu.py --quick  the small size only

Elapsed time, the median of several runs that take turns, since a GPU's work is not CPU time. A step of ``distributed`` is the
whole of ``train_privately`` over 2,048 records, with exact noise, which is drawn on the processor, and without noise, which
shows what the GPU itself does. Encoding has architecture and random weights of ViT-B-16, and pictures of its size in memory:
the speed does not depend on weights, how near half precision comes does, so that is shown for the embedded model in
``tests/gpu``. Without a CUDA device there is nothing to measure.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.bench.privacy_step import LARGE, SMALL, Size, WithoutNoise, a_model

RECORDS = 2048
BATCH = 256


@dataclass(frozen=True)
class Figure:
    """One measured figure."""

    name: str
    value: float
    unit: str


def elapsed(runs: int, **tasks: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each task; they take turns, after one turn that does not count."""
    import torch

    turns: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(runs + 1):
        for name, task in tasks.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            task()
            torch.cuda.synchronize()
            turns[name].append(time.perf_counter() - start)
    return {name: median(seconds[1:]) for name, seconds in turns.items()}


def training(size: Size, runs: int) -> list[Figure]:
    import torch
    from torch.nn.functional import normalize

    from cachefl_secure.cache.features import FeatureSet
    from cachefl_secure.lattice import Lattice
    from cachefl_secure.privacy import optimizers
    from cachefl_secure.privacy.discrete_gaussian import DiscreteGaussian
    from cachefl_secure.privacy.mechanism import DistributedMechanism
    from cachefl_secure.privacy.training import train_privately

    model, generator = a_model(size), torch.Generator().manual_seed(1)
    records = FeatureSet(
        normalize(torch.randn(RECORDS, size.dim, generator=generator), dim=1),
        torch.randint(0, size.classes, (RECORDS,), generator=generator),
    )
    lattice = Lattice.of(model.number_of_keys, size.dim)
    mechanism = DistributedMechanism(
        sampling_rate=1.0,
        clip_norm=0.1,
        expected_records=RECORDS,
        learning_rate=1.0,
        feature_bits=lattice.feature_bits,
        gradient_bits=lattice.gradient_bits,
        dimension=model.number_of_keys * size.dim,
        noise_multiplier=4.0,
        honest_survivors=4,
    )

    def step(device: str, sampler: Any) -> Callable[[], object]:
        def task() -> None:
            vars(optimizers)["DiscreteGaussian"] = sampler
            try:
                train_privately(model, records, mechanism, device=device)
            finally:
                vars(optimizers)["DiscreteGaussian"] = DiscreteGaussian

        return task

    seconds = elapsed(
        runs,
        processor=step("cpu", DiscreteGaussian),
        gpu=step("cuda", DiscreteGaussian),
        processor_alone=step("cpu", WithoutNoise),
        gpu_alone=step("cuda", WithoutNoise),
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step("cuda", WithoutNoise)()
    memory = torch.cuda.max_memory_allocated() - before
    return [
        Figure(f"{size.name}: private step, processors", seconds["processor"] * 1e3, "ms"),
        Figure(f"{size.name}: private step, GPU", seconds["gpu"] * 1e3, "ms"),
        Figure(f"{size.name}: times faster", seconds["processor"] / seconds["gpu"], "x"),
        Figure(f"{size.name}: the same without noise, GPU", seconds["gpu_alone"] * 1e3, "ms"),
        Figure(
            f"{size.name}: times faster without noise", seconds["processor_alone"] / seconds["gpu_alone"], "x"
        ),
        Figure(f"{size.name}: memory of the GPU", memory / 2**20, "MiB"),
    ]


def encoding(runs: int) -> list[Figure]:
    """Pixels in memory to features: what stays when reading and resizing is done elsewhere."""
    import open_clip
    import torch

    torch.manual_seed(0)
    on_cpu = open_clip.create_model("ViT-B-16").eval()
    on_gpu = open_clip.create_model("ViT-B-16", device="cuda").eval()
    pixels = torch.randn(BATCH, 3, 224, 224)

    def encode(half: torch.dtype | None) -> Callable[[], object]:
        def task() -> None:
            with torch.inference_mode(), torch.autocast("cuda", dtype=half, enabled=half is not None):
                on_gpu.encode_image(pixels.to("cuda")).float().cpu()

        return task

    def slowly() -> None:
        with torch.inference_mode():
            on_cpu.encode_image(pixels[:16])

    tasks = {"float32": encode(None), "float16": encode(torch.float16), "bfloat16": encode(torch.bfloat16)}
    seconds = elapsed(runs, **tasks)
    processors = elapsed(1, processors=slowly)["processors"] * BATCH / 16
    figures = [Figure("ViT-B-16, processors", BATCH / processors, "images/s")]
    for name in tasks:
        figures.append(Figure(f"ViT-B-16, GPU, {name}", BATCH / seconds[name], "images/s"))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        print("no CUDA device here: nothing to measure")
        return
    figures = [
        figure
        for size in ((SMALL,) if chosen.quick else (SMALL, LARGE))
        for figure in training(size, chosen.runs)
    ]
    figures += encoding(chosen.runs)
    if chosen.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
        return
    print(f"{torch.cuda.get_device_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for figure in figures:
        print(f"{figure.name:<48}{figure.value:>10.1f} {figure.unit}")


if __name__ == "__main__":
    main()
