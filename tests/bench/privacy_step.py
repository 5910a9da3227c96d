"""What privacy costs in one training step: CPU time and memory, against plain SGD on the same model and batch.

    python tests/bench/privacy_step.py           1600 x 512 and 16000 x 1024 cache keys; about ten minutes
    python tests/bench/privacy_step.py --quick   the small size only
    python tests/bench/privacy_step.py --hooks   also Opacus' hooks: 2 GB, and a minute at the large size

256 records, one thread. Every variant lives in a process of its own and they take turns, a step each, so that a
busy machine slows all of them; the least CPU time of several turns counts, page faults included. Memory is by how much
a process grows during its first step at full size: model and batch are there before, and so are the libraries,
warmed up on a small problem.

A plain step is forward, autograd and ``torch.optim.SGD``. A private step of ``distributed`` is the whole of
``train_privately``: from features to the noised integers that go into the secure sum. With ``local`` and ``none`` four steps
are timed in one call, and a quarter is reported. "torch noise" puts ``torch.normal_`` of the same size in the place of exact
discrete noise: what Opacus would draw, for comparison only. Text logits are computed by everybody in every step. The
line "two products, torch.normal_" is what such a step cannot do without, so where the goal for torch noise is below it, it is
out of reach on that machine. Its memory means nothing: its three results are there before. With ``local`` the memory is that of
four steps and of the float64 update at their end.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RECORDS = 256
LOCAL_STEPS = 4
PHYSICAL_BATCH = 16  # of the hooks at the large size: a whole batch of gradients would be 17 GB


@dataclass(frozen=True)
class Size:
    classes: int
    images: int
    dim: int

    @property
    def name(self) -> str:
        return f"{self.classes * self.images} x {self.dim}"


SMALL, LARGE, WARM_UP = Size(100, 16, 512), Size(1000, 16, 1024), Size(5, 2, 16)
SIZES = {size.name: size for size in (SMALL, LARGE)}


@dataclass(frozen=True)
class Figure:
    """One measured figure; ``met`` is None where there is no target."""

    name: str
    value: float
    unit: str
    against: str
    target: str
    met: bool | None


PLAIN = "plain SGD"
FLOOR = "two products, torch.normal_"
OPACUS = ("Opacus ghost", "Opacus hooks")
GOALS = {  # CPU, memory, in units of plain SGD's
    "distributed, torch noise": (1.1, 1.0),
    "distributed, exact noise": (1.5, 1.0),
    "local, torch noise": (1.1, 1.0),
    "local, exact noise": (1.5, 1.0),
}


# --- in a variant's own process ------------------------------------------------------------------------


class WithoutNoise:
    """In the place of ``DiscreteGaussian``."""

    limit = 0

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def add_to(self, integers: Any, stream: Any) -> None:
        """Nothing is added."""


class TorchNoise(WithoutNoise):
    """Rounded normals of ``torch.normal_``: neither exact nor unpredictable."""

    def add_to(self, integers: Any, stream: Any) -> None:
        import torch

        left, drawn = torch.from_numpy(integers), torch.empty(1 << 16)
        for start in range(0, len(left), len(drawn)):
            part = left[start : start + len(drawn)]
            part.add_(drawn[: len(part)].normal_(0.0, self.scale).round_().int())


def a_model(size: Size) -> Any:
    import torch
    from torch.nn.functional import normalize

    from cachefl_secure.cache.model import CacheModel

    generator = torch.Generator().manual_seed(0)
    return CacheModel(
        cache_keys=normalize(torch.randn(size.classes * size.images, size.dim, generator=generator), dim=1),
        key_labels=torch.arange(size.classes).repeat_interleave(size.images),
        text_classifier=normalize(torch.randn(size.classes, size.dim, generator=generator), dim=1),
        alpha=1.0,
        beta=5.5,
        logit_scale=100.0,
    )


def a_batch(size: Size) -> Any:
    import torch
    from torch.nn.functional import normalize

    from cachefl_secure.cache.features import FeatureSet

    generator = torch.Generator().manual_seed(1)
    features = normalize(torch.randn(RECORDS, size.dim, generator=generator), dim=1)
    return FeatureSet(features, torch.randint(0, size.classes, (RECORDS,), generator=generator))


def ours(size: Size, kind: str, noise: str) -> Callable[[], object]:
    from cachefl_secure.lattice import Lattice
    from cachefl_secure.privacy import optimizers, training
    from cachefl_secure.privacy.mechanism import DistributedMechanism, LocalMechanism, NoMechanism

    if noise != "exact noise":
        sampler = TorchNoise if noise == "torch noise" else WithoutNoise
        vars(optimizers)["DiscreteGaussian"] = sampler
    model, batch = a_model(size), a_batch(size)
    lattice = Lattice.of(model.number_of_keys, size.dim)
    public: dict[str, Any] = {
        "sampling_rate": 1.0,
        "clip_norm": 0.1,
        "expected_records": RECORDS,
        "learning_rate": 1.0,
    }
    private: dict[str, Any] = {
        **public,
        "feature_bits": lattice.feature_bits,
        "gradient_bits": lattice.gradient_bits,
        "dimension": model.number_of_keys * size.dim,
    }
    mechanism: Any
    if kind == "distributed":
        mechanism = DistributedMechanism(**private, noise_multiplier=4.0, honest_survivors=4)
    elif kind == "local":
        mechanism = LocalMechanism(**private, noise_multiplier=8.0, steps=LOCAL_STEPS)
    else:
        mechanism = NoMechanism(**public, steps=LOCAL_STEPS)
    return lambda: training.train_privately(model, batch, mechanism)


def plain(size: Size, learner: str) -> Callable[[], object]:
    """One step of SGD by autograd: plain, or through Opacus' hooks or ghost clipping."""
    import torch
    from opacus import PrivacyEngine
    from torch import nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = a_model(size)
            self.keys = nn.Linear(size.dim, model.number_of_keys, bias=False)
            self.keys.weight.data = model.cache_keys
            self.text, self.alpha, self.beta = model.text_classifier, model.alpha, model.beta
            self.scale, self.offset = model.logit_scale, torch.tensor(-model.beta)

        def forward(self, features: Any) -> Any:
            if learner == PLAIN:  # in as few passes as autograd allows; Opacus' hooks forbid writing in place
                scaled = torch.addmm(self.offset, features, self.keys.weight.T, alpha=self.beta)
                activations = scaled.exp_()
            else:
                activations = torch.exp(self.beta * (self.keys(features) - 1.0))
            by_class = activations.view(len(features), -1, size.images).sum(dim=2)
            return torch.add((self.scale * features) @ self.text.T, by_class, alpha=self.alpha)

    batch, model, loss = a_batch(size), Plain(), nn.CrossEntropyLoss()
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.01)
    physical = RECORDS
    if learner != PLAIN:
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(batch.features, batch.labels), batch_size=RECORDS
        )
        mode = "ghost" if learner == "Opacus ghost" else "hooks"
        model, optimizer, *rest = PrivacyEngine().make_private(
            module=model,
            optimizer=optimizer,
            criterion=loss,
            data_loader=loader,
            noise_multiplier=1.0,
            max_grad_norm=0.1,
            grad_sample_mode=mode,
            poisson_sampling=False,
        )
        if mode == "ghost":
            loss = rest[0]
        elif size == LARGE:
            physical = PHYSICAL_BATCH

    def step() -> None:
        features, labels = batch.features.split(physical), batch.labels.split(physical)
        for number, (some, theirs) in enumerate(zip(features, labels, strict=True), 1):
            if physical < RECORDS:
                optimizer.signal_skip_step(do_skip=number < len(features))
            optimizer.zero_grad()
            loss(model(some), theirs).backward()
            optimizer.step()

    return step


def floor(size: Size) -> Callable[[], object]:
    """What no private step of this kind can do without: one product each way, and a normal for every entry."""
    import torch

    model, batch = a_model(size), a_batch(size)
    keys, features = model.cache_keys, batch.features
    a, total, noise = torch.empty(RECORDS, len(keys)), torch.empty_like(keys), torch.empty_like(keys)

    def step() -> None:
        torch.mm(features, keys.T, out=a)
        torch.mm(a.T, features, out=total)
        noise.normal_()

    return step


def variant(name: str, size: Size) -> tuple[Callable[[], object], int]:
    """What a turn does, and how many steps that is."""
    if name == PLAIN or name in OPACUS:
        return plain(size, name), 1
    if name == FLOOR:
        return floor(size), 1
    kind, _, noise = name.partition(", ")
    return ours(size, kind, noise), 1 if kind == "distributed" else LOCAL_STEPS


def memory_bytes(field: str) -> int:
    """Of this process: ``VmRSS`` is what it has now, ``VmHWM`` the most it had."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {field}")


def growth_bytes(task: Callable[[], object]) -> int | None:
    """How much more memory this process had at most while the task ran; None where the system does not say."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # gives back what was freed before, or the task would be lent it unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the most that it had becomes what it has
    except OSError:
        task()
        return None
    before = memory_bytes("VmRSS")
    task()
    return memory_bytes("VmHWM") - before


def serve(name: str, size_name: str) -> None:
    """Answers every line of the input with the CPU seconds of a step; before that, says how much memory one takes."""
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")  # of Opacus
    variant(name, WARM_UP)[0]()
    turn, steps = variant(name, SIZES[size_name])
    print(json.dumps(growth_bytes(turn)), flush=True)
    for _ in sys.stdin:
        started = time.process_time()
        turn()
        print(json.dumps((time.process_time() - started) / steps), flush=True)


# --- in the process that compares ----------------------------------------------------------------------


class Variant:
    """A process that does steps when asked."""

    def __init__(self, name: str, size: Size) -> None:
        self.name, self.seconds = name, float("inf")
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, size.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.memory: int | None = self._answer()

    def turn(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("turn\n")
        self._process.stdin.flush()
        self.seconds = min(self.seconds, self._answer())

    def end(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: its process ended with {self._process.wait()}")
        return json.loads(line)


def measure(names: Sequence[str], size: Size, runs: int) -> list[Figure]:
    """A turn of a variant whose time is known to be long is measured once."""
    variants = [Variant(name, size) for name in names]
    try:
        for turn in range(runs):
            for each in variants:
                if turn == 0 or each.seconds < 5.0:
                    each.turn()
    finally:
        for each in variants:
            each.end()
    reference = next(each for each in variants if each.name == PLAIN)
    figures = []
    for each in variants:
        cpu_goal, memory_goal = GOALS.get(each.name, (None, None))
        what = f"{each.name}, {size.name}"
        figures.append(Figure(f"{what}: CPU", round(1000 * each.seconds, 2), "ms", "", "", None))
        if each is not reference:
            figures.append(at_most(f"{what}: CPU", each.seconds / reference.seconds, cpu_goal))
        if each.memory is None or not reference.memory:
            continue
        figures.append(Figure(f"{what}: memory", round(each.memory / 2**20, 1), "MiB", "", "", None))
        if each is not reference:
            figures.append(at_most(f"{what}: memory", each.memory / reference.memory, memory_goal))
    return figures


def at_most(name: str, ratio: float, goal: float | None) -> Figure:
    target, met = ("", None) if goal is None else (f"<= {goal:g}", ratio <= goal)
    return Figure(name, round(ratio, 2), "x", PLAIN, target, met)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small size only")
    parser.add_argument("--large", action="store_true", help="the large size only")
    parser.add_argument("--hooks", action="store_true", help="also Opacus' hooks")
    parser.add_argument("--runs", type=int, default=15, help="turns of every variant")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--serve", nargs=2, metavar=("VARIANT", "SIZE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(*arguments.serve)
        return
    names = [
        PLAIN,
        *(f"distributed, {noise}" for noise in ("exact noise", "torch noise", "without noise")),
        *(f"local, {noise}" for noise in ("exact noise", "torch noise", "without noise")),
        "none",
        FLOOR,
        *(OPACUS if arguments.hooks else OPACUS[:1]),
    ]
    figures = [] if arguments.large else measure(names, SMALL, arguments.runs)
    if not arguments.quick:
        figures += measure(names, LARGE, max(3, arguments.runs // 3))
    if not arguments.hooks:
        print("without --hooks: per-record gradients by Opacus' hooks are not measured", file=sys.stderr)
    if arguments.json:
        print(json.dumps([asdict(figure) for figure in figures], indent=1))
        return
    print(f"| {'':52} | {'figure':>8} {'':4} | {'against':10} | {'goal':7} | |")
    print("| --- | --- | --- | --- | --- |")
    for figure in figures:
        met = {True: "met", False: "missed", None: ""}[figure.met]
        value = f"{figure.value:8g} {figure.unit:4}"
        print(f"| {figure.name:52} | {value} | {figure.against:10} | {figure.target:7} | {met} |")


if __name__ == "__main__":
    main()
