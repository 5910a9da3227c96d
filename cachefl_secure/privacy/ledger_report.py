"""What a verified ledger says: its charges one by one, and all of them together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from cachefl_secure.names import Digest, SiloId
from cachefl_secure.privacy.accounting import Cost, charged, is_mixed
from cachefl_secure.privacy.entries import Randomness
from cachefl_secure.privacy.mechanism import Mechanism, View
from cachefl_secure.privacy.statements import aggregate_statement, local_statement, meter
from cachefl_secure.privacy.terms import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """One charged round. Epsilons are totals of the ledger at ``delta``, not costs of the round."""

    sequence: int
    plan_digest: Digest
    round: int
    attempt: int
    cache_digest: Digest
    data_commitment: Digest
    mechanism: Mechanism
    delta: float
    survivors: int
    colluders: int
    before: Cost
    after: Cost
    caps: Cost
    randomness: Randomness
    update_digest: Digest | None = None
    """The one update of the round, once ``sent`` has bound it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerReport:
    """A ledger in which every step held."""

    silo: str
    entries: int
    head: Digest
    delta: float
    """The smallest delta of any spend: what all epsilons are computed at. 1.0 without spends."""
    spent: Cost
    second: Cost
    """The same by the accountant that does not decide."""
    spends: tuple[Spend, ...]
    second_opinions: tuple[Cost, ...]
    """After each spend."""
    rdp_order: int
    """Of the Renyi filter; 0 before the first terms with noise."""

    @property
    def insecure_rounds(self) -> int:
        """Rounds with noise that somebody can repeat. If there are any, nothing may be claimed."""
        return sum(spend.randomness != "os" for spend in self.spends)

    @property
    def data_commitments(self) -> frozenset[Digest]:
        """One name for each set of records that was trained on. Their costs are added up all the same."""
        return frozenset(spend.data_commitment for spend in self.spends)

    @property
    def plans(self) -> frozenset[Digest]:
        """The plans under which rounds were charged: more than one if federations share the ledger."""
        return frozenset(spend.plan_digest for spend in self.spends)

    def delta_of(self, view: View) -> float:
        """The delta at which the view's epsilon may be claimed.

        Twice ``delta`` once settings are mixed: whether to mix them may have been decided after seeing results,
        and then what would have happened without counts as well (decision 0025).
        """
        mixed = is_mixed(Counter(spend.mechanism for spend in self.spends).items(), view)
        return 2 * self.delta if mixed else self.delta

    def allows(self, terms: Terms) -> bool:
        """Whether one more round on these terms would stay within its caps."""
        rounds = [*((spend.mechanism, 1) for spend in self.spends), (terms.mechanism, 1)]
        after = charged(rounds, min(self.delta, terms.delta), self.rdp_order or terms.rdp_order)
        return after.at_least(self.spent).within(terms.caps)

    def guaranteed(self, terms: Terms) -> Cost:
        """What holds whenever the rounds end: the largest caps that rounds were, or are, charged under.

        As far as caps were not raised after seeing results; a cap in the ledger tells when that was.
        """
        most = terms.caps.at_least(self.spent)
        for spend in self.spends:
            most = most.at_least(spend.caps)
        return most

    def statements(self, silo: SiloId, terms: Terms) -> tuple[str, str, str]:
        """The two sentences that may be printed, local first, and what was spent so far: see ``statements``.

        ``terms`` are those of the silo's present plan; all that rounds were charged under count besides.
        """
        insecure, holds = self.insecure_rounds, self.guaranteed(terms)
        alone, together = (self.delta_of(view) if self.spends else terms.delta for view in View)
        survivors = {terms.survivors, *(spend.survivors for spend in self.spends)}
        return (
            local_statement(silo, holds.local, alone, insecure_rounds=insecure),
            aggregate_statement(
                silo,
                holds.aggregate,
                together,
                colluders=min([terms.colluders, *(spend.colluders for spend in self.spends)]),
                survivors=survivors.pop() if len(survivors) == 1 else None,
                insecure_rounds=insecure,
            ),
            meter(self.spent.local, self.spent.aggregate),
        )
