"""What init tells: choices that are legal and may surprise, and what was founded."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cachefl_secure.wording import counted
from cachefl_secure_cli import task_options as tasks
from cachefl_secure_cli.failures import say
from cachefl_secure_cli.output import console, table
from cachefl_secure_cli.weight_options import Weights

if TYPE_CHECKING:
    from cachefl_secure.federation.founding import Founded
    from cachefl_secure.federation.founding_choices import FoundingChoices
    from cachefl_secure.plan import FederationPlan
    from cachefl_secure.privacy.accounting import Cost


def tell_of_choices(choices: FoundingChoices, weights: Weights) -> None:
    """Before anything slow is begun."""
    from cachefl_secure.federation.clip_source import LOCAL_DIR
    from cachefl_secure.federation.founding_choices import TEXT

    tasks.tell_of_classes(choices.classes)
    if choices.alpha_norm == "mean" and weights.alpha_from == "table":
        say(
            "the table's alpha is meant for the sum of a class's affinities: with --alpha-norm mean choose another"
        )
    if choices.alpha_beta == "leave-one-out" and choices.generator == TEXT:
        say(
            "there are no pictures with --generator text: leave-one-out chooses alpha and beta by sentences about the "
            "classes, which lie apart from pictures"
        )
    privacy = choices.privacy
    if privacy.delta * privacy.expected_records > 0.1 and getattr(privacy, "mechanism", "") != "none":
        say(
            f"with --delta {privacy.delta:g} a silo of more than {math.floor(0.1 / privacy.delta):,} records refuses to "
            f"join, and {privacy.expected_records:,} are expected"
        )
    if choices.clip.model == LOCAL_DIR:
        say(
            f"every silo needs the files of {choices.clip.local_dir} and says where they lie: "
            "`join --clip local-dir:PATH`"
        )


def summary(founded: Founded, engine: str, weights: Weights) -> dict[str, object]:
    """For ``--json``."""
    from cachefl_secure.privacy.terms import planned_cost_of

    keys, plan = founded.first_keys, founded.plan
    planned, without_picture = planned_cost_of(plan.privacy), sum(keys.without_picture.values())
    return {
        "federation_id": plan.federation_id,
        "fingerprint": founded.fingerprint,
        "invite": str(founded.invite),
        "engine": engine,
        "alpha": plan.cache.alpha,
        "beta": plan.cache.beta,
        "alpha_from": weights.alpha_from,
        "beta_from": weights.beta_from,
        "noise_multiplier": plan.privacy.noise_multiplier,
        "learning_rate": getattr(plan.privacy, "learning_rate", None),
        "mechanism": plan.privacy.mechanism,
        "epsilon_local": planned.local,
        "epsilon_aggregate": planned.aggregate,
        "delta": plan.privacy.delta,
        "synthetic_images": plan.number_of_keys - without_picture,
        "keys_without_picture": without_picture,
        "misread_pictures": keys.misread,
        "origin": {"kind": keys.origin.kind, "name": keys.origin.name, "licence": keys.origin.licence},
    }


def tell(founded: Founded, engine: str, weights: Weights, *, after_grid: bool) -> None:
    """For people. ``after_grid``: alpha and beta are those that a grid chose."""
    from cachefl_secure.crypto.spoken import in_words
    from cachefl_secure.privacy.terms import planned_cost_of

    keys, plan = founded.first_keys, founded.plan
    planned = planned_cost_of(plan.privacy)
    pictures_kept = plan.number_of_keys - sum(keys.without_picture.values())
    rows = [
        ("pictures kept for the cache", str(pictures_kept)),
        ("they come from", f"{keys.origin.name} ({keys.origin.licence})"),
        ("alpha and beta", weights.in_words(plan.cache.alpha, plan.cache.beta)),
        ("numbers a silo sends", f"{plan.number_of_parameters:,}"),
        ("noise multiplier", f"{plan.privacy.noise_multiplier:g}"),
        *_what_is_made(plan),
        *_privacy_rows(plan, planned),
        *([("messages go by", engine)] if engine else []),
        ("fingerprint", founded.fingerprint),
        ("the same in words", in_words(founded.fingerprint)),
        ("invite", str(founded.invite)),
    ]
    console().print(table(f"federation {plan.name!r}", ("", ""), rows))
    _tell_of_tighter_local(plan)
    say("send the invite to every silo; read the fingerprint to them over another channel")
    _tell_of_shared_budget(plan, after_grid=after_grid)


def _tell_of_shared_budget(plan: FederationPlan, *, after_grid: bool) -> None:
    """What silos must know where a grid and a training are charged to one ledger."""
    if plan.privacy.mechanism == "grid":
        say(
            "silos that are to train with what it chooses join this one with --epsilon-cap and --epsilon-cap-aggregate "
            "that leave room for the training: the caps of the first ledger bind"
        )
    if after_grid:
        say(
            "silos that took part in the grid join with `--ledger DIRECTORY_OF_THE_GRID`: both are charged to one budget"
        )


def _tell_of_tighter_local(plan: FederationPlan) -> None:
    """Where the bound on the local epsilon asks for more noise than the aggregate one did."""
    reached = _tighter_aggregate(plan)
    if reached is not None:
        say(
            f"the bound on the local epsilon asks for more noise: the aggregate one will be {reached:.3g} after all "
            "rounds; raise --epsilon-local for what was asked"
        )


def _tighter_aggregate(plan: FederationPlan) -> float | None:
    """What the planned rounds cost, where that is clearly less than the aggregate epsilon that was asked for."""
    from cachefl_secure.privacy.accounting import cost_of
    from cachefl_secure.privacy.mechanism import mechanism_of
    from cachefl_secure.privacy_plan import DistributedPlan, ReleasePlan

    section = plan.privacy
    if not isinstance(section, DistributedPlan | ReleasePlan):
        return None
    reached = cost_of([(mechanism_of(plan), section.rounds)], section.delta).aggregate
    return reached if reached < 0.99 * section.epsilon_aggregate else None


def _what_is_made(plan: FederationPlan) -> list[tuple[str, str]]:
    from cachefl_secure.privacy_plan import GridPlan, StatisticsPlan

    if isinstance(plan.privacy, GridPlan):
        alphas, betas = (
            ", ".join(f"{x:g}" for x in values) for values in (plan.privacy.alphas, plan.privacy.betas)
        )
        return [("alphas and betas to try", f"{alphas} and {betas}")]
    if isinstance(plan.privacy, StatisticsPlan):
        return [("linear head", f"{plan.privacy.head}, gamma {plan.privacy.gamma:g}")]
    return [("learning rate", f"{plan.privacy.learning_rate:g}")]


def _privacy_rows(plan: FederationPlan, planned: Cost) -> list[tuple[str, str]]:
    """Both epsilons, each with what it rests on."""
    if plan.privacy.mechanism == "none":
        return [("privacy", "NOT PRIVATE: no noise")]
    times = "one release" if plan.is_one_release else counted(plan.privacy.rounds, "round")
    after = f"delta {plan.privacy.delta:g}, {times}"
    section = plan.secure_sum
    trust = f"at most {section.colluders} collude, {section.guaranteed_survivors} survive every round"
    reached = _tighter_aggregate(plan)
    aggregate = (
        f"{planned.aggregate:g}" if reached is None else f"{reached:.3g}, of {planned.aggregate:g} allowed"
    )
    return [
        ("mechanism", plan.privacy.mechanism),
        ("aggregate epsilon", f"{aggregate} ({after}; {trust})"),
        ("local epsilon", f"{planned.local:g} ({after}; nobody else is trusted)"),
    ]
