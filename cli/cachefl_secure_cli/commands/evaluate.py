"""evaluate: how good the models are."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachefl_secure.wording import counted
from cachefl_secure_cli.failures import explained
from cachefl_secure_cli.options import (
    SOURCES,
    Clip,
    Device,
    DeviceOption,
    Offline,
    Party,
    Precision,
    PrecisionOption,
    SkipUnreadable,
    encoder_when_needed,
    tell_skipped,
)
from cachefl_secure_cli.output import (
    Json,
    console,
    epsilon_text,
    percent,
    print_json,
    progress_bar,
    table,
    write_report,
)

if TYPE_CHECKING:
    from cachefl_secure.federation.accuracy import Evaluation


@explained
def command(
    directory: Party,
    data: Annotated[Path, typer.Option(help=f"Labelled images. {SOURCES}.", show_default=False)],
    every_round: Annotated[
        bool, typer.Option("--every-round", help="Not only the first and the last.")
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="Also draw accuracy by round into this PNG.")] = None,
    report: Annotated[Path | None, typer.Option(help="Also write every figure into this JSON file.")] = None,
    skip_unreadable: SkipUnreadable = False,
    clip: Clip = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    offline: Offline = False,
    json: Json = False,
) -> None:
    """Measure accuracy on labelled images: zero-shot CLIP, the synthetic cache, and after rounds.

    Figures on private images are private; nothing is sent.

    Example: cachefl-secure evaluate coordinator --data held-out
    """
    from cachefl_secure.federation.accuracy import evaluate_rounds, read_records
    from cachefl_secure.federation.inspection import open_chain
    from cachefl_secure.federation.witnesses import is_silo

    chain = open_chain(directory)
    plan = chain.plan
    encoder = encoder_when_needed(
        plan.encoder, clip, device, precision, offline=offline or is_silo(directory)
    )
    with progress_bar(quiet=json) as progress:
        records, skipped = read_records(
            data, plan, encoder, skip_unreadable=skip_unreadable, progress=progress
        )
    tell_skipped(skipped)
    evaluation = evaluate_rounds(chain, records, every_round=every_round or figure is not None)
    if figure is not None:
        from cachefl_secure_cli.figures import accuracy_by_round

        accuracy_by_round(figure, evaluation, plan.name)
    if report is not None:
        write_report(report, _plain(evaluation))
    if json:
        print_json("evaluate", _plain(evaluation))
        return
    rows = [
        (
            "zero-shot CLIP",
            "-",
            "-",
            percent(evaluation.zero_shot.top1),
            percent(evaluation.zero_shot.macro_f1),
        )
    ]
    for point in evaluation.rounds:
        what = "synthetic cache" if point.round == 0 else f"after round {point.round}"
        if point.round and evaluation.closed_form is not None:
            what += ": closed form, text and cache"
        spent = ("0", "0")
        if point.round:
            spent = epsilon_text(point.cost.aggregate), epsilon_text(point.cost.local)
        rows.append((what, *spent, percent(point.accuracy.top1), percent(point.accuracy.macro_f1)))
    if evaluation.closed_form is not None:
        alone = percent(evaluation.closed_form.top1), percent(evaluation.closed_form.macro_f1)
        rows.append(("closed form alone", *spent, *alone))
    caption = f"{counted(evaluation.zero_shot.records, 'image')}; delta {plan.privacy.delta:g}"
    columns = ("model", "aggregate epsilon", "local epsilon", "top-1", "macro F1")
    console().print(table("accuracy", columns, rows, caption=caption))
    if figure is not None:
        console().print(f"figure: {figure}")


def _plain(evaluation: Evaluation) -> dict[str, Any]:
    rounds = [
        {
            "round": point.round,
            "epsilon_aggregate": point.cost.aggregate,
            "epsilon_local": point.cost.local,
            **dataclasses.asdict(point.accuracy),
        }
        for point in evaluation.rounds
    ]
    alone = evaluation.closed_form
    return {
        "zero_shot": dataclasses.asdict(evaluation.zero_shot),
        "rounds": rounds,
        "closed_form_alone": None if alone is None else dataclasses.asdict(alone),
    }
