"""Planted bugs. The simulator is only worth what it finds: each must be killed, alone or as the pair it is.

Where two layers guard one thing, a mutant takes both away, and says so: killing one alone would be luck.
Not in the list because another layer stands alone: a quorum too small, or a statement without the survivors,
opens nothing while the threshold holds (2 t > N + f), and a journal that is not written only costs the attempt.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure import durable
from cachefl_secure.federation import session_file, silo_attempt, silo_round
from cachefl_secure.federation.roster_change import RosterHistory
from cachefl_secure.federation.sealed_update import seal_update
from cachefl_secure.federation.silo_attempt import SiloAttempt
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.privacy import append_only
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.protocol import answering, collecting, parameters
from cachefl_secure.protocol.answering import AwaitingCertificate, AwaitingKeyList, AwaitingSurvivorSet, Party
from cachefl_secure.protocol.journal import SessionJournal, journal_from_bytes
from cachefl_secure.protocol.masking import KeySchedule, sum_masked
from cachefl_secure.protocol.messages import Advertisement, KeyList, Phase, RevealedShare, UnmaskShares
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.silo import SiloSession
from cachefl_secure.protocol.silo_secrets import SiloSecrets
from tests.simulation.changes import coming_and_going
from tests.simulation.lies import (
    a_second_release,
    a_second_sum_with_those_not_asked,
    different_lists,
    dropped_then_late,
    isolate_one,
    substituted_keys,
    the_same_attempt_again,
    two_small_cohorts,
    two_survivor_sets,
)
from tests.simulation.mechanisms import DISTRIBUTED, GRID, LOCAL, STATISTICS
from tests.simulation.release_bugs import (
    a_record_does_not_end_releases,
    a_release_is_not_noted,
    a_release_without_record_does_not_count,
    a_second_grid_is_answered,
    a_segment_keeps_masks_towards_dropped_silos,
    segments_left_unmasked,
    segments_under_masks_of_the_update,
)
from tests.simulation.world import Faults, Strategy, honest

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """A bug, the claim that it breaks, and the strategy that should find it."""

    plant: Plant
    claim: str
    strategy: Strategy
    within: int = 60
    """Schedules."""
    faults: Faults | None = None
    """Instead of the seed's."""
    mechanism: str = LOCAL

    @property
    def name(self) -> str:
        return self.plant.__name__ if self.mechanism == LOCAL else f"{self.plant.__name__}-{self.mechanism}"


def no_certificate_check(patch: pytest.MonkeyPatch) -> None:
    """Shares for whatever was signed, without a quorum. With it goes the minimum size of a survivor set."""
    patch.setattr(answering, "check_certificate", lambda *_, **__: None)
    patch.setattr(Party, "check_members", lambda *_: None)


def threshold_too_small_by_one(patch: pytest.MonkeyPatch) -> None:
    genuine = parameters._thresholds

    def lower(*arguments: Any) -> tuple[int, int]:
        threshold, survivors = genuine(*arguments)
        return threshold - 1, survivors - 1

    patch.setattr(parameters, "_thresholds", lower)
    patch.setattr(RoundParameters, "__post_init__", lambda self: None)
    patch.setattr(RoundParameters, "quorum", property(lambda self: self.threshold))


def signs_two_survivor_sets(patch: pytest.MonkeyPatch) -> None:
    """In the session, and in the note on disk that guards it."""
    genuine, before = SiloSession._exchange, dict[int, Any]()
    step = SiloSession._step

    def remembering(self: SiloSession, phase: Phase, data: bytes) -> Any:
        if isinstance(self._state, AwaitingSurvivorSet):
            before[id(self)] = self._state
        return step(self, phase, data)

    def forgetful(self: SiloSession, phase: Phase, data: bytes) -> Any:
        if phase is Phase.SURVIVOR_SET and id(self) in before:
            self._state = before[id(self)]
            return None
        return genuine(self, phase, data)

    patch.setattr(SiloSession, "_step", remembering)
    patch.setattr(SiloSession, "_exchange", forgetful)
    patch.setattr(silo_attempt, "note_certified", lambda *_: None)


class BothKinds(UnmaskShares, frozen=True, tag="UnmaskShares"):
    """On the wire an ``UnmaskShares``, without its own check."""

    def __post_init__(self) -> None:
        pass


def both_kinds_of_share(patch: pytest.MonkeyPatch) -> None:
    """Self-mask shares of dropped silos as well: a late input would open. The message itself refuses, too."""

    def generous(self: AwaitingCertificate, _: Any) -> Any:
        held, survivors = self.held, set(self.survivors)
        reply = BothKinds(
            tuple(RevealedShare(silo, held[silo].self_mask.reveal()) for silo in sorted(held)),
            tuple(
                RevealedShare(silo, held[silo].mask_key.reveal())
                for silo in sorted(held)
                if silo not in survivors
            ),
        )
        return answering.Finished(self.survivors, self.statement), reply

    patch.setattr(AwaitingCertificate, "on_certificate", generous)


def survivor_set_of_any_size(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Party, "check_members", lambda *_: None)
    patch.setattr(RoundParameters, "quorum", property(lambda self: 1))


def secrets_used_in_two_attempts(patch: pytest.MonkeyPatch) -> None:
    kept: dict[str, SiloSecrets] = {}
    enter = SiloAttempt.enter

    def again(manifest: Any, chosen: Any, chain: Any, files: Any, *rest: Any) -> SiloAttempt:
        secrets = kept.setdefault(str(files.state.root), SiloSecrets.generate())
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(SiloSecrets, "generate", lambda: secrets)
            return enter(manifest, chosen, chain, files, *rest)

    patch.setattr(SiloAttempt, "enter", again)


def old_attempt_entered_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(silo_round, "last_attempt", lambda *_: 0)
    patch.setattr(silo_round, "signed_statement", lambda *_: None)
    patch.setattr(session_file, "last_attempt", lambda state, number: -1)  # and the journal is not taken up


def restarted_with_new_secrets(patch: pytest.MonkeyPatch) -> None:
    """Replies rebuilt after a crash instead of sent again, and the check that they are the same left out."""
    genuine = journal_from_bytes

    def fresh(content: bytes) -> SessionJournal:
        journal = genuine(content)
        return replace(journal, secrets=SiloSecrets.generate(), exchanges=(), sent=None)

    patch.setattr(session_file, "journal_from_bytes", fresh)


def journal_forgets_the_statement(patch: pytest.MonkeyPatch) -> None:
    """A restarted silo signs again: neither its journal nor the note on disk knows the first statement."""
    genuine = session_file.save_journal

    def forgetful(state: Any, journal: SessionJournal) -> None:
        if journal.exchanges[-1].phase is not Phase.SURVIVOR_SET:
            genuine(state, journal)

    patch.setattr(silo_attempt, "save_journal", forgetful)
    patch.setattr(silo_attempt, "note_certified", lambda *_: None)


def released_update_sent_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(silo_round, "may_enter", lambda *_: True)


def trained_again_for_a_retry(patch: pytest.MonkeyPatch) -> None:
    """Another update under the same charge. The ledger would refuse to note it."""

    def train(self: SiloAttempt) -> None:
        update = self.trainer.train(self.chain.model(), None, None, None, "")  # type: ignore[arg-type]
        seal_update(self.files.state, self.manifest.round, update, self.manifest.plan_digest)

    genuine = SiloAttempt._train

    def always(self: SiloAttempt) -> None:
        if self.ledger.spend_of(self.manifest.plan_digest, self.manifest.round) is None:
            genuine(self)
        else:
            train(self)

    patch.setattr(silo_attempt, "has_update", lambda *_: False)
    patch.setattr(SiloAttempt, "_train", always)
    patch.setattr(Ledger, "note_sent", lambda *_, **__: None)


def charge_after_send(patch: pytest.MonkeyPatch) -> None:
    owed: list[Callable[[], object]] = []
    handle, reserve = SiloService.handle, Ledger.reserve

    def late(self: Ledger, mechanism: Any, **options: Any) -> Any:
        owed.append(lambda: reserve(self, mechanism, **options))
        return type("Spend", (), {"update_digest": None})()

    def paying(self: SiloService, phase: str, content: bytes) -> bytes:
        while owed:
            owed.pop()()
        return handle(self, phase, content)

    patch.setattr(Ledger, "reserve", late)
    patch.setattr(Ledger, "note_sent", lambda *_, **__: None)
    patch.setattr(SiloService, "handle", paying)


def charge_not_synced(patch: pytest.MonkeyPatch) -> None:
    def append(path: Path, content: bytes, *, size: int) -> None:
        with durable.opened(path, os.O_WRONLY | os.O_APPEND) as file:
            durable.write_all(file, content)

    patch.setattr(durable, "append", append)


def last_charge_cut_off_on_opening(patch: pytest.MonkeyPatch) -> None:
    def cut(raw: bytes, _: Any) -> tuple[bytes, str]:
        lines = raw.splitlines(keepends=True)
        return b"".join(lines[:-1]) if len(lines) > 3 else raw, "cut"

    patch.setattr(append_only, "repaired", cut)


def files_overwritten_in_place(patch: pytest.MonkeyPatch) -> None:
    def in_place(path: durable.AnyPath, content: bytes, mode: int) -> None:
        with durable.opened(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            durable.write_all(file, content)
            durable.sync(file)
        durable.sync_folder(str(path).rpartition("/")[0])

    patch.setattr(durable, "replace_file", in_place)


def duplicate_counted_twice(patch: pytest.MonkeyPatch) -> None:
    genuine = sum_masked

    def twice(updates: Any, chosen: RoundParameters) -> Any:
        each = list(updates)
        return genuine([*each, each[0]], chosen)

    patch.setattr(collecting, "sum_masked", twice)


def survivor_left_out_of_the_sum(patch: pytest.MonkeyPatch) -> None:
    genuine = sum_masked
    patch.setattr(collecting, "sum_masked", lambda updates, chosen: genuine(list(updates)[1:], chosen))


def journal_in_the_clear(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(session_file, "seal_at_rest", lambda key, purpose, content: content)
    patch.setattr(session_file, "open_at_rest", lambda key, purpose, content: content)


def advertisements_not_verified(patch: pytest.MonkeyPatch) -> None:
    """Keys in a list are taken for those of the silos whose names stand beside them."""

    def trusting(self: AwaitingKeyList, key_list: KeyList) -> dict[Any, Advertisement]:
        listed = {signed.sender: signed for signed in key_list.advertisements}
        return {
            silo: msgspec.msgpack.decode(listed[silo].body, type=Advertisement)
            for silo in self.party.neighbours(listed)
        }

    patch.setattr(AwaitingKeyList, "_verified", trusting)


def masks_not_bound_to_what_silos_were_told(patch: pytest.MonkeyPatch) -> None:
    """The context dropped from every derivation."""
    patch.setattr(KeySchedule, "context", property(lambda self: bytes(64)))


def thresholds_over_the_cohort_only(patch: pytest.MonkeyPatch) -> None:
    """And no smallest cohort: two cohorts need not share an honest silo."""
    genuine = RoundParameters.derive

    def derive(plan: Any, cohort_size: int, _: int) -> RoundParameters:
        return genuine(plan, cohort_size, cohort_size)

    patch.setattr(RoundParameters, "derive", staticmethod(derive))
    patch.setattr(silo_round, "smallest_cohort", lambda *_: 0)


def release_not_noted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SiloAttempt, "_note_release", lambda self: None)


def names_not_synced(patch: pytest.MonkeyPatch) -> None:
    """A renamed file is not yet there: after a loss of power the old one, or none, is back."""
    patch.setattr(durable, "sync_folder", lambda folder: None)


def failed_look_is_absence(patch: pytest.MonkeyPatch) -> None:
    """Whatever could not be looked at is taken for not there. (So it was until this was written.)"""

    genuine = durable._kind

    def kind(path: durable.AnyPath) -> int:
        try:
            return genuine(path)
        except (OSError, ValueError):
            return 0

    patch.setattr(durable, "_kind", kind)


def folders_not_synced(patch: pytest.MonkeyPatch) -> None:
    """What a round's new folder holds is synced, the folder itself is not. (So it was until this was written.)"""

    genuine = durable.make_folders

    def make(folder: Path, below: Path, mode: int = 0o700) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(durable, "sync_folder", lambda folder: None)
            genuine(folder, below, mode)

    patch.setattr(durable, "make_folders", make)


def certificate_leaves_before_it_is_on_disk(patch: pytest.MonkeyPatch) -> None:
    """A coordinator that was killed then waits for ever for silos that have answered."""
    genuine = StateDir.write

    def write(self: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        if not relative.endswith("/unmasking"):
            genuine(self, relative, content, private=private)

    patch.setattr(StateDir, "write", write)


def round_given_up_without_a_note(patch: pytest.MonkeyPatch) -> None:
    genuine = StateDir.write

    def write(self: StateDir, relative: str, content: bytes, *, private: bool = False) -> None:
        if not relative.endswith("/given-up"):
            genuine(self, relative, content, private=private)

    patch.setattr(StateDir, "write", write)


def names_of_another_process_taken_for_safe(patch: pytest.MonkeyPatch) -> None:
    """A silo goes on from a file whose name a process that was killed had not synced; a loss of power takes it back."""
    patch.setattr(StateDir, "sync_names", lambda state, folder: None)


def roster_changed_by_one_approval(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RosterHistory, "quorum", property(lambda self: 1))


MUTANTS = (
    Mutant(no_certificate_check, "C4", isolate_one),
    Mutant(threshold_too_small_by_one, "C4", a_second_sum_with_those_not_asked),
    Mutant(signs_two_survivor_sets, "C4", two_survivor_sets),
    Mutant(both_kinds_of_share, "C4", dropped_then_late),
    Mutant(survivor_set_of_any_size, "C1", isolate_one),
    Mutant(secrets_used_in_two_attempts, "C3", the_same_attempt_again),
    Mutant(old_attempt_entered_again, "C3", the_same_attempt_again),
    Mutant(restarted_with_new_secrets, "C3", the_same_attempt_again),
    Mutant(journal_forgets_the_statement, "C4", two_survivor_sets),
    Mutant(released_update_sent_again, "C3", a_second_sum_with_those_not_asked),
    Mutant(trained_again_for_a_retry, "C9", honest),
    Mutant(charge_after_send, "C9", honest),
    Mutant(charge_not_synced, "C9", honest),
    Mutant(last_charge_cut_off_on_opening, "C11", honest, within=120),
    Mutant(files_overwritten_in_place, "C17", honest, within=400),
    Mutant(duplicate_counted_twice, "C2", honest),
    Mutant(survivor_left_out_of_the_sum, "C2", honest),
    Mutant(journal_in_the_clear, "C15", honest),
    Mutant(advertisements_not_verified, "C16", substituted_keys),
    Mutant(masks_not_bound_to_what_silos_were_told, "C5", different_lists),
    Mutant(thresholds_over_the_cohort_only, "C4", two_small_cohorts),
    Mutant(release_not_noted, "C3", a_second_sum_with_those_not_asked),
    Mutant(names_not_synced, "C17", honest, within=400),
    Mutant(folders_not_synced, "C17", honest, within=400),
    Mutant(
        failed_look_is_absence,
        "C3",
        the_same_attempt_again,
        within=600,
        faults=Faults(disk_blindness=0.05),
    ),
    Mutant(
        names_of_another_process_taken_for_safe,
        "C3",
        the_same_attempt_again,
        within=600,
        faults=Faults(disk_death=0.02),
    ),
    Mutant(certificate_leaves_before_it_is_on_disk, "C2", honest, within=400),
    Mutant(round_given_up_without_a_note, "C2", honest, within=400),
    Mutant(roster_changed_by_one_approval, "C16", coming_and_going),
    Mutant(a_release_without_record_does_not_count, "C9", a_second_release, mechanism=STATISTICS),
    Mutant(a_release_is_not_noted, "C9", a_second_release, mechanism=STATISTICS),
    Mutant(a_record_does_not_end_releases, "C9", a_second_release, mechanism=STATISTICS),
    Mutant(a_second_grid_is_answered, "C9", a_second_release, mechanism=GRID),
    Mutant(trained_again_for_a_retry, "C9", honest, mechanism=STATISTICS),
    Mutant(trained_again_for_a_retry, "C9", honest, mechanism=DISTRIBUTED),
    Mutant(segments_left_unmasked, "C1", honest, faults=Faults(), within=1, mechanism=STATISTICS),
    Mutant(segments_under_masks_of_the_update, "C1", honest, faults=Faults(), within=1, mechanism=STATISTICS),
    Mutant(
        a_segment_keeps_masks_towards_dropped_silos,
        "C2",
        honest,
        within=200,
        faults=Faults(lost=0.04),
        mechanism=STATISTICS,
    ),
)
