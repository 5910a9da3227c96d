"""What needs no training: the text classifier alone (zero-shot), and the public cache before any private record."""

from __future__ import annotations

from cachefl_secure.cache.model import logits
from tests.bench.rivals import cachefl
from tests.bench.rivals.method import Outcome, Traffic
from tests.bench.rivals.task import Cell


def zero_shot(cell: Cell) -> Outcome:
    """logits = scale * f W^T."""
    task = cell.task
    return Outcome(
        (lambda features: task.logit_scale * features @ task.text_classifier.T,),
        Traffic(down=4 * task.text_classifier.numel()),
    )


def synthetic_cache(cell: Cell) -> Outcome:
    """CacheFL at round 0, with the product's alpha and beta."""
    model = cachefl.start(cell.task)
    return Outcome((lambda features: logits(model, features),), Traffic(down=cachefl.start_bytes(model)))
