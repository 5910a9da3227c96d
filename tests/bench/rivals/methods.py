"""All rows of the table, in its order, each with where its numbers come from."""

from __future__ import annotations

from functools import partial

from cachefl_secure.cache.closed_form import HeadKind
from tests.bench.rivals import (
    cachefl,
    closed_form,
    fedclip,
    linear_probe,
    promptfl,
    real_cache,
    reference,
    tip_adapter,
)
from tests.bench.rivals.method import Kind, Method

_VALIDATED = "validation split"
OURS = "CacheFL, options by validation"
LOCAL_ONLY = "local only"

METHODS = (
    Method("zero-shot", Kind.REFERENCE, reference.zero_shot, "nothing to choose"),
    Method("synthetic cache, round 0", Kind.REFERENCE, reference.synthetic_cache, "product's defaults"),
    Method(LOCAL_ONLY, Kind.ALONE, cachefl.alone, "one of CacheFL's options, fixed beforehand"),
    Method(
        "Tip-Adapter, all records as keys",
        Kind.CENTRAL,
        tip_adapter.training_free,
        f"alpha, beta by {_VALIDATED}",
    ),
    Method(
        "Tip-Adapter-F, 16 keys a class",
        Kind.CENTRAL,
        tip_adapter.trained,
        f"optimiser as published; alpha, beta by {_VALIDATED}",
    ),
    Method(
        "real-data cache (NOT PRIVATE: keys are records)",
        Kind.MULTI_ROUND,
        real_cache.run,
        f"optimiser as published; alpha, beta by {_VALIDATED}",
    ),
    Method(
        "linear probe from zero-shot",
        Kind.MULTI_ROUND,
        linear_probe.run,
        f"learning rate by {_VALIDATED}",
        linear_probe.GRID,
    ),
    Method(
        "FedCLIP adapter",
        Kind.MULTI_ROUND,
        fedclip.run,
        f"as published; learning rate by {_VALIDATED}",
        fedclip.GRID,
    ),
    Method(
        "PromptFL",
        Kind.MULTI_ROUND,
        promptfl.run,
        f"as CoOp, fewer rounds of many classes; learning rate by {_VALIDATED}",
        promptfl.GRID,
        needs_text_tower=True,
    ),
    Method(
        "one-round ridge",
        Kind.ONE_ROUND,
        partial(closed_form.run, kind=HeadKind.RIDGE),
        f"product's regulariser; gamma by {_VALIDATED}",
    ),
    Method(
        "one-round GDA",
        Kind.ONE_ROUND,
        partial(closed_form.run, kind=HeadKind.GDA),
        f"shrinkage as published; gamma by {_VALIDATED}",
    ),
    Method("CacheFL, defaults", Kind.OURS, cachefl.without_noise, "product's defaults"),
    Method(
        OURS,
        Kind.OURS,
        cachefl.without_noise,
        f"one of {len(cachefl.OPTIONS)} options by {_VALIDATED}",
        cachefl.CHOICES,
    ),
    *(
        Method(
            f"CacheFL {mechanism}, epsilon {epsilon:g}",
            Kind.OURS_PRIVATE,
            partial(cachefl.private, mechanism=mechanism, epsilon=epsilon),
            "product's defaults and calibration",
            epsilon=f"{epsilon:g} {'aggregate' if mechanism == 'distributed' else 'local'}",
        )
        for mechanism in ("distributed", "local")
        for epsilon in (8.0, 2.0)
    ),
    Method(
        "CacheFL class residual, distributed, epsilon 2",
        Kind.OURS_PRIVATE,
        partial(cachefl.private, mechanism="distributed", epsilon=2.0, trained="class_residual"),
        "product's defaults and calibration",
        epsilon="2 aggregate",
        needs_several_keys=True,
    ),
)
