"""What a directory can prove about itself: status and audit.

Audit at a silo, in steps (the numbers are printed):

 (1) the ledger verifies in all the steps of ``privacy.verification``, every epsilon recomputed by PLD
     and by the second accountant, and nothing was charged twice or beyond the cap
 (2) every roster follows the one before with a quorum of its members (``roster_change``), each is countersigned by
     all silos in it if this party took part in a round under it (else it says how many are missing), and the
     coordinator's records verify: signature, plan, roster of the time, chain, cohort
 (3) every ledger head that others witnessed is in the ledger: named in a record, or in the receipt that
     the silo signed and the coordinator keeps, of every directory that is audited together. The receipt is proof
     by itself; a head in a record is the coordinator's word, and one that is missing means that either lies
 (4) every cache is the one before plus the mean of the recorded sum

At the coordinator (1) and (3) are replaced by the silos' signed receipts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cachefl_secure.crypto.sign import fingerprint
from cachefl_secure.errors import ConfigError, RecordRejected
from cachefl_secure.federation.applying import chosen_pair
from cachefl_secure.federation.chain import Chain
from cachefl_secure.federation.confirming import change_at_coordinator, change_at_silo, new_key_at_silo
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.countersigning import kept_countersignatures
from cachefl_secure.federation.last_heard import last_heard
from cachefl_secure.federation.roster_change import Difference, spoken
from cachefl_secure.federation.roster_files import read_history
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.standing_aside import standing_aside
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir, round_file
from cachefl_secure.federation.witnesses import (
    Witnessed,
    is_silo,
    receipts_of,
    verified_receipts,
)
from cachefl_secure.names import PublicKeyHex, SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.privacy.ledger import LedgerReport, Spend
from cachefl_secure.privacy.statements import rounded_up
from cachefl_secure.privacy_plan import GridPlan
from cachefl_secure.protocol.messages import roster_digest
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.wording import counted


@dataclass(frozen=True, slots=True)
class AuditStep:
    """One numbered step that held. A step that does not hold raises instead."""

    number: int
    what: str
    finding: str


@dataclass(frozen=True, slots=True)
class Audit:
    """An audit that held in every step."""

    party: str
    steps: tuple[AuditStep, ...]
    ledger: LedgerReport | None


@dataclass(frozen=True, slots=True)
class Status:
    """What a directory says about itself."""

    role: str
    federation: str
    fingerprint: str
    enrolled: bool
    rounds: int
    rounds_planned: int
    waiting_for: str
    silos: Mapping[str, str]
    """At the coordinator: each silo and how far it is known to be."""
    epoch: int = 0
    """Of the roster; 0 before the first."""
    roster_fingerprint: str = ""
    """Of the roster, and so of all before it: the same at every party, to be read aloud (T2)."""
    roster_change: str = ""
    """The change of the roster that waits, and for whom; empty if none does."""
    new_key: str = ""
    """At a silo: the key that it asked for and does not have yet, and what that waits for."""
    alpha: float | None = None
    """As a grid chose it, once its round has happened."""
    beta: float | None = None


def open_chain(root: Path) -> Chain:
    """The verified rounds of a coordinator's or a silo's directory.

    Raises:
        ConfigError: neither, or it has not been admitted yet.
    """
    if not is_silo(root):
        return CoordinatorFiles.open(root).chain()
    files = SiloFiles.open(root)
    if not files.state.has(ROSTER_FILE):
        raise ConfigError(str(root), "", "has not taken part in any round yet")
    return Chain(files.state, files.plan, read_history(files.state, files.plan))


def audit_silo(root: Path, witnessed: Witnessed) -> Audit:
    """Steps (1) to (4) of the module's docstring, with the heads that others witnessed.

    Of a shared ledger, the heads of all federations that write into it.

    Raises:
        LedgerError, RecordRejected, ConfigError: the step that does not hold.
    """
    files = SiloFiles.open(root)
    key = files.state.signing_key().public_key
    heads = {head for _, head in files.witnessed_heads()} | witnessed.get(key, set())
    if not files.state.has(ROSTER_FILE):
        report = files.verified_ledger(heads)
        return Audit(f"silo {files.silo}", (_ledger_step(report),), report)
    chain = open_chain(root)  # (2)
    report = files.verified_ledger(heads)  # (1) (3)
    steps = (
        _ledger_step(report),
        *_roster_steps(files.state, chain, _took_part(files.silo, chain)),
        _records_step(chain),
        AuditStep(3, "witnessed ledger heads", f"{len(heads)} heads that others hold are in the ledger"),
        _caches_step(chain),
    )
    return Audit(f"silo {files.silo}", steps, report)


def audit_coordinator(root: Path) -> Audit:
    """The coordinator's half: records, receipts, caches.

    Raises:
        PeerError, RecordRejected, ConfigError: the step that does not hold.
    """
    files = CoordinatorFiles.open(root)
    chain = files.chain()
    receipts = verified_receipts(files, chain)
    steps = (
        *_roster_steps(files.state, chain, {held.record.roster_digest for held in chain.verified}),
        _records_step(chain),
        AuditStep(
            3, "receipts", f"{len(receipts)} of {counted(len(chain.roster.members), 'silo')} signed receipts"
        ),
        _caches_step(chain),
    )
    return Audit("coordinator", steps, None)


def status(root: Path) -> Status:
    """
    Raises:
        ConfigError: not a directory of this program.
    """
    return _silo_status(root) if is_silo(root) else _coordinator_status(root)


def _silo_status(root: Path) -> Status:
    files = SiloFiles.open(root)
    chain = open_chain(root) if files.state.has(ROSTER_FILE) else None
    enrolled = chain is not None and files.silo in chain.roster.public_keys
    rounds = chain.position.round if chain is not None else 0
    waiting = "the coordinator: " + (
        "to `admit` it, and then its next round" if files.config.engine else "hand over join-request.toml"
    )
    files.records()  # raises if what a round needs is gone
    report, plan = files.verified_ledger(), plan_digest(files.plan)
    charged = [spend.round for spend in report.spends if spend.plan_digest == plan]
    if enrolled:
        waiting = "the coordinator's next round"
    if charged and charged[-1] > rounds:
        waiting += f" (round {charged[-1]} is charged and not finished: repeating it costs nothing)"
    elif rounds >= files.plan.privacy.rounds:
        waiting = "nobody: all planned rounds are done"
    elif not report.allows(files.terms):
        waiting = "nobody: its caps allow no further round; the federation goes on without it"
    if (aside := standing_aside(files.state)) is not None:
        waiting = "nobody: this silo has left" if aside == "left" else "you: paused; `cachefl-secure resume`"
    if chain is not None and (removal := chain.rosters.removal_of(files.silo)) is not None:
        waiting = f"nobody: epoch {removal.epoch} of the roster removed this silo"
    alpha, beta = _chosen(chain)
    return Status(
        role=f"silo {files.silo}",
        federation=files.plan.name,
        fingerprint=fingerprint(files.state.signing_key().public_key),
        enrolled=enrolled,
        rounds=rounds,
        rounds_planned=files.plan.privacy.rounds,
        waiting_for=waiting,
        silos={},
        epoch=chain.roster.epoch if chain is not None else 0,
        roster_fingerprint=spoken(roster_digest(chain.roster)) if chain is not None else "",
        roster_change=change_at_silo(files, chain.rosters) if chain is not None else "",
        new_key=new_key_at_silo(files, chain.rosters) if enrolled and chain is not None else "",
        alpha=alpha,
        beta=beta,
    )


def _coordinator_status(root: Path) -> Status:
    files = CoordinatorFiles.open(root)
    enrolled = files.state.has(ROSTER_FILE)
    chain = files.chain() if enrolled else None
    rounds, planned = (chain.position.round if chain else 0), files.plan.privacy.rounds
    waiting = "silos: `admit` their join requests"
    silos: dict[str, str] = {}
    heard = last_heard(files.state)
    change = change_at_coordinator(files.state, chain.rosters, heard) if chain else ""
    if chain is not None:
        receipts, countersigned = receipts_of(files), kept_countersignatures(files.state, chain.roster)
        needed = RoundParameters.derive(
            files.plan, len(chain.roster.members), len(chain.roster.members)
        ).minimum_survivors
        waiting = f"you: run round {rounds + 1} with at least {needed} silos"
        if _has_begun(files, rounds + 1):
            waiting = f"round {rounds + 1}: it runs, or was interrupted and goes on with `round --resume`"
        if rounds >= planned:
            who = "those who decide about the change of the roster" if change else "nobody"
            waiting = f"{who}: all planned rounds are done"
        for member in chain.roster.members:
            last = receipts[member.silo][-1] if member.silo in receipts else None
            known = f"holds round {last.round}" if last else "admitted"
            words = heard[member.silo].in_words() if member.silo in heard else "not asked yet"
            silos[member.silo] = f"{known}; {words}"
            if member.silo not in countersigned:
                silos[member.silo] += f"; has not countersigned the roster of epoch {chain.roster.epoch}"
    alpha, beta = _chosen(chain)
    return Status(
        role="coordinator",
        federation=files.plan.name,
        fingerprint=fingerprint(PublicKeyHex(files.plan.coordinator_public_key)),
        enrolled=enrolled,
        rounds=rounds,
        rounds_planned=planned,
        waiting_for=waiting,
        silos=silos,
        epoch=chain.roster.epoch if chain else 0,
        roster_fingerprint=spoken(roster_digest(chain.roster)) if chain else "",
        roster_change=change,
        alpha=alpha,
        beta=beta,
    )


def pending_round(root: Path) -> tuple[int, bool]:
    """Rounds recorded at a coordinator, and whether the next one has begun and was not given up."""
    files = CoordinatorFiles.open(root)
    recorded = files.chain().position.round
    return recorded, _has_begun(files, recorded + 1)


def _has_begun(files: CoordinatorFiles, number: int) -> bool:
    begun, ended = (files.state.has(round_file(number, name)) for name in ("attempt", "given-up"))
    return begun and not ended


def chosen_at(root: Path) -> tuple[float, float] | tuple[None, None]:
    """(alpha, beta) that a coordinator's grid has chosen; neither without a grid, or before its round."""
    files = CoordinatorFiles.open(root)
    return _chosen(files.chain()) if isinstance(files.plan.privacy, GridPlan) else (None, None)


def _chosen(chain: Chain | None) -> tuple[float, float] | tuple[None, None]:
    if chain is None or chain.position.round == 0 or not isinstance(chain.plan.privacy, GridPlan):
        return None, None
    return chosen_pair(chain.model(), chain.plan.cache, chain.plan.privacy)


def _ledger_step(report: LedgerReport) -> AuditStep:
    spent, second = report.spent, report.second
    finding = (
        f"{counted(report.entries, 'entry', 'entries')}, {counted(len(report.spends), 'round')} charged; local epsilon {rounded_up(spent.local)}, "
        f"aggregate {rounded_up(spent.aggregate)}; by a second, looser accountant {rounded_up(second.local)} and "
        f"{rounded_up(second.aggregate)}; delta {report.delta!r}"
    )
    if len(report.plans) > 1:
        finding += f"; {len(report.plans)} plans share this ledger"
    if len(report.data_commitments) > 1:
        finding += f"; {len(report.data_commitments)} sets of records, added up as if they were one"
    caps = [
        f"{spend.caps.local:g} and {spend.caps.aggregate:g} from round {spend.round}"
        for spend in _cap_changes(report)
    ]
    if len(caps) > 1:
        finding += f"; the silo changed its caps: {', '.join(caps)}"
    if report.insecure_rounds:
        finding += f"; NOT PRIVATE: {counted(report.insecure_rounds, 'round')} drew noise from a test's repeatable streams"
    return AuditStep(1, "privacy ledger", finding)


def _cap_changes(report: LedgerReport) -> list[Spend]:
    """The first spend under each pair of caps."""
    spends = report.spends
    return [s for i, s in enumerate(spends) if i == 0 or spends[i - 1].caps != s.caps]


def _took_part(silo: SiloId, chain: Chain) -> set[str]:
    """Digests of the rosters under which the silo's update stands in a sum."""
    return {held.record.roster_digest for held in chain.verified if silo in held.record.survivors}


def _roster_steps(state: StateDir, chain: Chain, ran: set[str]) -> list[AuditStep]:
    """One for every epoch. That each follows the one before was verified when the chain was opened.

    ``ran``: rosters under which this party took part in a round, which it may only with everybody's signature.
    """
    steps, rosters = [], chain.rosters
    for roster in rosters.rosters:
        signed, members = kept_countersignatures(state, roster), roster.members
        finding = f"{len(signed)} of {len(members)} silos have countersigned the roster, epoch {roster.epoch}"
        if len(signed) < len(members):
            if roster_digest(roster) in ran:
                raise RecordRejected(2, f"rounds were run, but here only {finding}")
            finding += ": not all yet, and this party takes part in no round before"
        if roster.epoch > 1:
            before = rosters.rosters[roster.epoch - 2]
            approvals = len(rosters.changes[roster.epoch - 2].approvals)
            words = Difference.between(before, roster).in_words()
            finding += f"; {approvals} of the {len(before.members)} before approved it ({words})"
        steps.append(AuditStep(2, "roster", finding))
    return steps


def _records_step(chain: Chain) -> AuditStep:
    return AuditStep(
        2,
        "round records",
        f"{counted(len(chain.verified), 'record')} signed by the coordinator, in one chain",
    )


def _caches_step(chain: Chain) -> AuditStep:
    caches = sum(1 for _ in chain.models())  # raises where a cache is not what the sums give
    return AuditStep(
        4, "caches", f"{caches} caches recomputed from the initial one and the sums, bit for bit"
    )
