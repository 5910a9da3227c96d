"""PromptFL (Guo et al. 2023): silos learn the words of the prompt, and average them.

The prompt of class c is "[v_1] ... [v_M] c." (CoOp, Zhou et al. 2022); only the vectors v are trained, through the
frozen text tower, and shared by all classes. 16 of them where the tower's context has room beside the longest name.
The published loop keeps references to one model and so averages the last silo with itself; ours averages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cachefl_secure.cache.encoder import Encoder
from tests.bench.rivals.federated import ROUNDS, Parameters, Training, federated_averaging, sgd
from tests.bench.rivals.method import Choices, Outcome, float32_rounds
from tests.bench.rivals.task import Cell

TOKENS = 16
GRID: Choices = tuple({"learning_rate": rate} for rate in (2e-3, 2e-2))
"""The first is CoOp's; PromptFL's own 1e-3 is for 5 epochs a round."""
MANY_CLASSES, FEW_ROUNDS, LARGE_BATCH = 50, 3, 128
"""With so many classes every step through the text tower is slow: fewer rounds than the others, larger batches."""


@dataclass(frozen=True, eq=False)
class PromptTower:
    """The frozen text tower with room for vectors in front of every class name."""

    model: Any
    before: Tensor
    """(N, 1, width): the embedded start token."""
    after: Tensor
    """(N, L - 1 - M, width): name, full stop, end token, padding."""
    ends: Tensor
    """(N,): place of the end token, whose output is the feature."""
    tokens: int
    """M."""

    @classmethod
    def of(cls, encoder: Encoder, classes: tuple[str, ...]) -> PromptTower:
        """For these class names; "_" reads as a space."""
        model, tokenize, names = (
            encoder._model,
            encoder._tokenize(),
            [name.replace("_", " ") for name in classes],
        )
        plain = tokenize([f"{name}." for name in names])
        longest, context = int(plain.argmax(dim=1).max()) + 1, plain.shape[1]
        count = max(1, min(TOKENS, context - longest))
        places = tokenize([" ".join(["x"] * count + [f"{name}."]) for name in names])
        with torch.no_grad():
            embedded = model.token_embedding(places).float()
        return cls(model, embedded[:, :1], embedded[:, 1 + count :], places.argmax(dim=1), count)

    @property
    def width(self) -> int:
        return self.before.shape[2]

    def classifier(self, vectors: Tensor) -> Tensor:
        """(N, C) of unit rows for vectors (M, width); differentiable in them."""
        model, classes = self.model, len(self.before)
        words = torch.cat([self.before, vectors.expand(classes, -1, -1), self.after], dim=1)
        hidden = model.transformer(words + model.positional_embedding, attn_mask=model.attn_mask)
        ends = model.ln_final(hidden)[torch.arange(classes), self.ends]
        return normalize(ends @ model.text_projection, dim=1)


def run(cell: Cell, learning_rate: float) -> Outcome:
    """SGD with momentum 0.9; vectors start as normals of standard deviation 0.02."""
    if cell.task.encoder is None:
        raise ValueError("PromptFL needs a text tower")
    many = len(cell.task.classes) >= MANY_CLASSES
    rounds, batch = (FEW_ROUNDS, LARGE_BATCH) if many else (ROUNDS, 32)
    tower, scale = PromptTower.of(cell.task.encoder, cell.task.classes), cell.task.logit_scale

    def logits(parameters: Parameters, features: Tensor) -> Tensor:
        return scale * features @ tower.classifier(parameters[0]).T

    generator = torch.Generator().manual_seed(cell.seed)
    start = 0.02 * torch.randn(tower.tokens, tower.width, generator=generator)
    training = Training(sgd, learning_rate, rounds=rounds, batch=batch)
    vectors = federated_averaging(logits, (start,), cell.silos, training, cell.seed)
    with torch.no_grad():
        learned = scale * tower.classifier(vectors[0])
    return Outcome((lambda features: features @ learned.T,), float32_rounds(vectors, rounds))
