"""Accuracy by training option: heads, alpha and beta, FedProx, synthetic replay, the server's optimizer.

    python tests/bench/training_options.py                       both tasks, three seeds; about ten minutes on one core
    python tests/bench/training_options.py --only digits --seeds 1

Five silos, 20 rounds, delta 1e-5, defaults of ``init`` but for the option named; the same partitions for every row. Everything
goes through ``train_together``, as ``compare`` does: the training of a round without masks, which cancel exactly.

digits        embedded handwriting and CLIP, a synthetic cache of 4 printed digits a class; silos by Dirichlet(0.3) and (0.1)
caltech101    60 classes for which there are text features, OpenAI CLIP ViT-B/32 features in ``$CACHEFL_SECURE_DATA`` (or
              ``../shared/data``): four public photos a class stand in for synthetic ones, the test split is cut into silos by
              Dirichlet(0.1), the validation split is held out

Three blocks: without noise; ``distributed`` at an aggregate epsilon of 2, four honest shares; ``local`` at an epsilon of 2. Nothing
is tuned on the held-out records: every row has the learning rate that ``init`` would give it. A row's ``points`` are against the
first row of its block on the same seeds, with the standard error of that mean.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from cachefl_secure.cache.evaluate import evaluate, zero_shot
from cachefl_secure.cache.features import FeatureSet
from cachefl_secure.cache.leave_one_out import choose_alpha_beta
from cachefl_secure.cache.model import CacheModel
from cachefl_secure.datasets.schemes import dirichlet_by_class
from cachefl_secure.federation.calibration import PrivacyChoices, ServerName, Sizes, server_section
from cachefl_secure.federation.comparison import train_together
from cachefl_secure.plan import CachePlan, EncoderPlan, FederationPlan, SecureSumPlan

SILOS = 5
CONCENTRATIONS = {"digits": (0.3, 0.1), "caltech101": (0.1,)}
DATA = Path(os.environ.get("CACHEFL_SECURE_DATA") or Path(__file__).parents[3] / "shared" / "data")


@dataclass(frozen=True)
class Task:
    """A start that everybody knows, the silos' records, and held-out ones."""

    start: CacheModel
    silos: tuple[FeatureSet, ...]
    held_out: FeatureSet


@dataclass(frozen=True)
class Row:
    """One option: what differs from the defaults of ``init``."""

    name: str
    steps: int = 1
    cache: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    server: ServerName = "mean"
    server_rate: float | None = None
    leave_one_out: bool = False


HEADS = (
    Row("keys"),
    Row("class_residual", cache={"trained": "class_residual"}),
    Row("alpha_norm mean", cache={"alpha_norm": "mean"}),
    Row("alpha, beta leave-one-out", leave_one_out=True),
    Row("class_residual, leave-one-out", cache={"trained": "class_residual"}, leave_one_out=True),
)
SERVERS = (
    Row("momentum .9, rate .1", server="momentum"),
    Row("momentum .9, rate 1", server="momentum", server_rate=1.0),
    Row("adam", server="adam"),
)
REPLAY = tuple(Row(f"replay {weight:g}", choices={"replay_weight": weight}) for weight in (0.1, 0.3, 1.0))
STEPS = (
    Row("5 steps", steps=5),
    *(Row(f"5 steps, FedProx {part:g}", steps=5, choices={"proximal": part}) for part in (0.01, 0.1, 0.3)),
    Row("5 steps, replay 0.3", steps=5, choices={"replay_weight": 0.3}),
)
BLOCKS: dict[str, tuple[dict[str, Any], tuple[Row, ...]]] = {
    "no noise": ({"mechanism": "none"}, (*HEADS, *SERVERS, *REPLAY, *STEPS)),
    "distributed, epsilon 2": (
        {"mechanism": "distributed", "epsilon": 2.0, "epsilon_local": 20.0},
        (*HEADS, *SERVERS),
    ),
    "local, epsilon 2": ({"mechanism": "local", "epsilon": 2.0}, (HEADS[0], HEADS[1], *REPLAY, *STEPS[:3])),
}


# --- tasks


def _dirichlet(labels: np.ndarray[Any, Any], seed: int, concentration: float) -> list[np.ndarray[Any, Any]]:
    """Each class to five silos by a Dirichlet draw; none gets fewer than 20 records."""
    for attempt in range(1000):
        rng = np.random.default_rng((seed, attempt))
        silos = dirichlet_by_class(labels, np.arange(len(labels)), SILOS, concentration, rng)
        if min(map(len, silos)) >= 20:
            return silos
    raise ValueError("no such partition")


def digits(seed: int, concentration: float) -> Task:
    from cachefl_secure.embedded.digits import draw_partition

    features, labels, starts = _digits()
    partition = draw_partition(labels, seed, concentration=concentration)

    def part(rows: tuple[int, ...]) -> FeatureSet:
        return FeatureSet(features[list(rows)], torch.from_numpy(labels[list(rows)]))

    return Task(starts, tuple(part(rows) for rows in partition.silos.values()), part(partition.held_out))


@cache
def _digits() -> tuple[torch.Tensor, np.ndarray[Any, Any], CacheModel]:
    """All scans encoded, and the start that ``init`` makes of seed 0."""
    from cachefl_secure.cache.model import load_cache
    from cachefl_secure.embedded import CLASSES, GENERATOR_DIR, TEMPLATES
    from cachefl_secure.embedded.digits import load_scans
    from cachefl_secure.embedded.glyphs import to_clip_image
    from cachefl_secure.federation.clip_source import ClipSource, load_source
    from cachefl_secure.federation.founding import found_federation
    from cachefl_secure.federation.founding_choices import FoundingChoices

    scans, labels = load_scans()
    clip = ClipSource.parse("embedded", "")
    encoder = load_source(clip, device="cpu")
    batches = [
        encoder.encode_images([to_clip_image(scan) for scan in scans[at : at + 64]])
        for at in range(0, len(scans), 64)
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "coordinator"
        choices = FoundingChoices(
            name="digits",
            classes=CLASSES,
            templates=TEMPLATES,
            clip=clip,
            generator=str(GENERATOR_DIR),
            privacy=PrivacyChoices(mechanism="none"),
            secure_sum=SecureSumPlan(),
        )
        found_federation(root, choices)
        start = load_cache(root / "models/0000.safetensors")
    return torch.cat(batches), labels, start


def caltech101(seed: int, concentration: float) -> Task:
    folder = DATA / "clip_vitb32_features"
    with np.load(folder / "detic_text_a_cname.npz", allow_pickle=False) as text:
        rows = {name.lower(): row for row, name in enumerate(text["names"].tolist())}
        text_features = text["text"].astype(np.float32)
    with np.load(folder / "caltech101.npz", allow_pickle=False) as arrays:
        names = [name.lower().replace("_", " ") for name in arrays["classnames"].tolist()]
        kept = [label for label, name in enumerate(names) if name in rows]
        parts = {
            name: _of_classes(arrays[features], arrays[labels], kept)
            for name, features, labels in (
                ("records", "test_f", "test_l"),
                ("held out", "val_f", "val_l"),
                ("photos", "keys_4", "keylab_4"),
            )
        }
    text_rows = torch.from_numpy(text_features[[rows[names[label]] for label in kept]])
    photos, records = parts["photos"], parts["records"]
    by_class = photos.labels.argsort(stable=True)
    start = CacheModel(
        photos.features[by_class], photos.labels[by_class], normalize(text_rows, dim=1), 10.0, 3.0, 100.0
    )
    silos = _dirichlet(records.labels.numpy(), seed, concentration)
    cut = tuple(FeatureSet(records.features[part], records.labels[part]) for part in silos)
    return Task(start, cut, parts["held out"])


def _of_classes(features: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], kept: list[int]) -> FeatureSet:
    place = {label: number for number, label in enumerate(kept)}
    rows = [row for row, label in enumerate(labels.tolist()) if label in place]
    chosen = torch.from_numpy(features[rows].astype(np.float32))
    return FeatureSet(normalize(chosen, dim=1), torch.tensor([place[int(labels[row])] for row in rows]))


TASKS = {"digits": digits, "caltech101": caltech101}


# --- measuring


def plan_of(task: Task, row: Row, choices: dict[str, Any]) -> tuple[FederationPlan, CacheModel]:
    """The plan that ``init`` would make, and the start with its alpha and beta."""
    start, classes = task.start, task.start.number_of_classes
    section = CachePlan(
        images_per_class=start.number_of_keys // classes,
        alpha=start.alpha,
        beta=start.beta,
        logit_scale=start.logit_scale,
        initial_digest="0" * 64,
        **row.cache,
    )
    alpha, beta = section.model_alpha, section.beta
    if row.leave_one_out:
        chosen = choose_alpha_beta(start)
        alpha, beta = chosen.alpha, chosen.beta
    server = server_section(row.server, row.server_rate, 0.9, rounds=20, feature_dim=start.feature_dim)
    secure_sum = SecureSumPlan(minimum_cohort=SILOS, minimum_survivors=SILOS)
    rows = classes if section.trained == "class_residual" else start.number_of_keys
    sizes = Sizes(
        trained_rows=rows,
        feature_dim=start.feature_dim,
        cohort_size=SILOS,
        honest_survivors=secure_sum.honest_survivors,
        server=server,
        keys_a_row=start.number_of_keys // rows,
    )
    privacy = PrivacyChoices(**choices, **row.choices, steps_per_round=row.steps).plan(sizes)
    plan = FederationPlan(
        federation_id="0" * 32,
        name="bench",
        coordinator_public_key="0" * 64,
        classes=tuple(str(number) for number in range(classes)),
        encoder=EncoderPlan(
            model="embedded",
            weights_digest="0" * 64,
            preprocessing_digest="0" * 64,
            feature_dim=start.feature_dim,
            templates=("{}",),
        ),
        cache=section,
        privacy=privacy,
        secure_sum=secure_sum,
        server=server,
    )
    return plan, replace(start, alpha=alpha, beta=beta)


@dataclass(frozen=True)
class Figure:
    """Per cent over seeds on one partition; ``points`` against the first row of the block."""

    task: str
    concentration: float
    block: str
    row: str
    accuracy: float
    spread: float
    points: float
    standard_error: float


def measure(
    name: str, concentration: float, seeds: int, only_block: str = "", only_rows: str = ""
) -> list[Figure]:
    tasks, figures = [TASKS[name](seed, concentration) for seed in range(seeds)], []
    for what, function in (("zero-shot", zero_shot), ("start", evaluate)):
        values = [100 * function(task.start, task.held_out).top1 for task in tasks]
        figures.append(_figure(name, concentration, "before training", what, values, values))
    for block, (choices, rows) in BLOCKS.items():
        if only_block not in block:
            continue
        first: list[float] = []
        for row in rows:
            if first and only_rows not in row.name:
                continue
            # The sum of one full-batch step does not depend on who holds which record (decision 0035).
            alike = name == "caltech101" and choices["mechanism"] == "none" and row.steps == 1
            values = [accuracy(task, row, choices) for task in (tasks[:1] if alike else tasks)]
            values = values * len(tasks) if alike else values
            first = first or values
            figures.append(_figure(name, concentration, block, row.name, values, first))
            print(line(figures[-1]), file=sys.stderr, flush=True)
    return figures


def accuracy(task: Task, row: Row, choices: dict[str, Any]) -> float:
    """Per cent on the held-out records after all rounds."""
    plan, start = plan_of(task, row, choices)
    *_, last = train_together(start, task.silos, plan)
    return 100 * evaluate(last, task.held_out).top1


def _figure(
    name: str, concentration: float, block: str, row: str, values: list[float], first: list[float]
) -> Figure:
    points = [value - other for value, other in zip(values, first, strict=True)]
    error = statistics.stdev(points) / math.sqrt(len(points)) if len(points) > 1 else math.nan
    spread = max(values) - min(values)
    mean = statistics.mean(values)
    return Figure(name, concentration, block, row, mean, spread, statistics.mean(points), error)


def line(figure: Figure) -> str:
    return (
        f"| {figure.task} {figure.concentration:g} | {figure.block} | {figure.row} | {figure.accuracy:.1f} | "
        f"{figure.spread:.1f} | {figure.points:+.1f} +- {figure.standard_error:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=tuple(TASKS), help="one task")
    parser.add_argument("--concentration", type=float, help="one partition")
    parser.add_argument("--block", default="", help="only blocks with this in their name")
    parser.add_argument("--rows", default="", help="only rows with this in their name, and the first")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(1)
    started, figures = time.monotonic(), []
    for name in [arguments.only] if arguments.only else list(TASKS):
        if name == "caltech101" and not (DATA / "clip_vitb32_features").is_dir():
            print(f"skipped {name}: features absent, set CACHEFL_SECURE_DATA", file=sys.stderr)
            continue
        for concentration in [arguments.concentration] if arguments.concentration else CONCENTRATIONS[name]:
            figures += measure(name, concentration, arguments.seeds, arguments.block, arguments.rows)
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
        return
    print("| task, Dirichlet | block | option | accuracy % | spread | points against the block's first |")
    print("| --- | --- | --- | --- | --- | --- |")
    for figure in figures:
        print(line(figure))
    print(f"\n{arguments.seeds} seed(s), {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
