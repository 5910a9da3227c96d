"""Attacks on secure sums that have been published or tried, and where each is shown to fail closed.

The rows are those of the design study (attacks on cross-silo secure aggregation). What has a test elsewhere is
named; the rest is here. What is not protected names its limit instead.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from cachefl_secure.federation import letters
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import Digest, SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import sign_manifest
from cachefl_secure.protocol.messages import Manifest, roster_digest
from cachefl_secure.transport.in_process import InProcessNetwork
from cachefl_secure.transport.local_federation import run_local_rounds
from tests.small_federation import SmallFederation, found

TESTS = Path(__file__).resolve().parents[1]

TABLE = {
    "different models to different silos (Pasquini et al. 2022)": (
        "threat/test_attack_table.py::test_a_silo_refuses_a_manifest_that_was_made_for_somebody_else",
        "protocol/test_round.py::test_masks_of_silos_with_different_manifests_do_not_cancel",
    ),
    "asks for both secrets of one silo; shows different survivor sets": (
        "threat/test_malicious_coordinator.py::test_however_it_splits_the_silos_at_most_one_survivor_set_is_answered",
        "protocol/test_silo_rules.py::test_one_session_never_reveals_both_kinds_of_share_of_a_silo",
        "simulation/test_simulation.py::test_no_invariant_breaks_in_ten_thousand_schedules",
    ),
    "shows different key lists or share sets": (
        "threat/test_malicious_coordinator.py::test_silos_that_saw_different_share_sets_sign_nothing_about_each_other",
        "protocol/test_views.py::test_a_silo_refuses_what_the_coordinator_signed_for_one_that_had_received_something_else",
    ),
    "substitutes keys": (
        "protocol/test_silo_rules.py::test_a_silo_refuses_keys_that_another_silo_did_not_sign",
        "threat/test_enrolment_authority.py::test_two_silos_that_were_given_different_rosters_never_hold_all_countersignatures",
    ),
    "Sybils; a cohort of the victim and its own": (
        "threat/test_attack_table.py::test_a_silo_counts_its_cohort_itself",
        "threat/test_enrolment_authority.py::test_no_silo_trains_before_every_silo_has_countersigned_the_roster",
    ),
    "changes the roster: without a quorum, two ways at once, back to an old one, with keys that were removed": (
        "threat/test_roster_change.py::test_a_change_without_a_quorum_is_followed_by_nobody",
        "threat/test_roster_change.py::test_of_two_competing_changes_at_most_one_passes_even_with_f_silos_for_both",
        "threat/test_roster_change.py::test_a_silo_never_goes_back_to_an_older_epoch",
        "threat/test_roster_change.py::test_a_removed_silo_is_no_member_for_anybody_and_its_key_and_name_never_return",
        "federation/test_new_key.py::test_the_old_key_is_refused_for_ever",
    ),
    "grinds the graph of neighbours": (
        "protocol/test_graph.py::test_the_order_of_the_ring_depends_on_the_manifest_and_on_every_name",
        "protocol/test_graph.py::test_no_choice_of_dropouts_cuts_a_ring_whose_windows_hold_one_honest_survivor_each",
    ),
    "replays masks, attempts, state": (
        "protocol/test_round.py::test_the_next_attempt_has_other_masks_even_with_the_same_update_and_the_same_secrets",
        "protocol/test_silo_rules.py::test_messages_of_another_silo_phase_attempt_or_federation_are_refused",
        "federation/test_rounds.py::test_a_silo_restored_from_an_older_copy_of_its_directory_notices_at_the_next_record",
    ),
    "retries after a partial reveal": (
        "federation/test_rounds.py::test_an_update_that_was_opened_once_never_enters_another_sum",
        "protocol/test_parameters.py::test_two_opened_sums_of_one_update_would_need_an_honest_silo_twice",
        "threat/test_one_sum_a_round.py::test_however_many_are_asked_first_at_most_one_sum_opens_over_a_rounds_updates",
        "federation/test_failing_looks.py::test_one_failing_look_at_the_note_of_a_release_does_not_let_that_update_into_another_sum",
        "federation/test_crash_points.py::test_killed_at_any_write_or_reply_the_round_ends_in_the_exact_sum_and_one_charge",
    ),
    "compares sums of cohorts that differ by one silo": ("limit N7", "limit N13"),
    "membership in the sum itself": ("limit N13",),
    "overflow of the modulus": (
        "protocol/test_parameters.py::test_the_bits_hold_every_sum_and_one_bit_fewer_would_not",
        "protocol/test_segments.py::test_parameters_whose_sums_could_wrap_or_be_confused_cannot_be_made",
    ),
    "masks that are no uniform ring elements": (
        "threat/test_curious_coordinator.py::test_masked_zeros_look_uniform_and_so_does_the_difference_of_two_silos",
        "protocol/test_round.py::test_every_mask_of_a_round_is_another_keystream",
    ),
    "a sum of one or two": (
        "protocol/test_round.py::test_two_silos_are_never_enough_for_a_sum",
        "threat/test_attack_table.py::test_a_silo_counts_its_cohort_itself",
    ),
    "coordinates that only one silo changes": (
        "threat/test_attack_table.py::test_what_a_silo_sends_is_as_long_whatever_it_has",
    ),
    "a silo that sends wrong shares or a wrong sum": (
        "protocol/test_recovering.py::test_a_round_comes_through_although_some_silos_reveal_wrong_shares",
        "protocol/test_recovering.py::test_a_silo_that_committed_to_another_seed_is_named",
        "threat/test_hostile_silo.py::test_a_sum_beyond_what_the_cohort_can_have_sent_ends_the_round_and_changes_nobodys_cache",
        "limit N1",
    ),
    "counts and losses beside the sum": (
        "threat/test_attack_table.py::test_what_a_silo_sends_is_as_long_whatever_it_has",
        "protocol/test_segments.py::test_an_update_a_count_a_gram_matrix_and_right_answers_are_summed_exactly_in_one_round",
    ),
    "publishes another result than the record names; than it opened": (
        "federation/test_records.py::test_a_sum_other_than_the_one_named_is_refused",
        "federation/test_records.py::test_a_record_with_a_lie_in_it_is_refused_at_its_step",
        "threat/test_published_sum.py::test_a_sum_that_nobody_sent_is_adopted_by_everybody_and_holds_in_every_audit",
        "limit N19",
    ),
    "accuses a silo of a rolled-back ledger": (
        "threat/test_false_witness.py::test_a_greeting_accuses_nobody_unless_it_holds_the_silos_own_signature",
        "limit N20",
    ),
    "seizes the disk": (
        "federation/test_isolation.py::test_no_feature_update_or_key_of_a_silo_is_in_what_it_sends_or_in_an_unsealed_file",
        "limit N2",
    ),
    "measures time and power": ("limit N6",),
    "records now, opens with a quantum computer later": ("limit N8",),
}


def test_every_row_names_tests_and_limits_that_exist() -> None:
    functions: dict[str, set[str]] = defaultdict(set)
    for entry in {entry.split("::")[0] for row in TABLE.values() for entry in row if "::" in entry}:
        tree = ast.parse((TESTS / entry).read_text("utf-8"))
        functions[entry] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    limits = (TESTS.parent / "threat_model" / "limits.md").read_text("utf-8")
    for row, entries in TABLE.items():
        assert entries, row
        for entry in entries:
            if entry.startswith("limit "):
                assert f"**{entry.removeprefix('limit ')} " in limits, (row, entry)
            else:
                file, name = entry.split("::")
                assert name in functions[file], (row, entry)


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    """One round done, so that rosters are countersigned and there is a position to lie about."""
    federation = found(tmp_path, records=(12, 90, 9, 15, 31))
    run(federation)
    return federation


def run(federation: SmallFederation) -> None:
    run_local_rounds(
        federation.coordinator,
        list(federation.silos.values()),
        1,
        deadline_seconds=60.0,
        progress=silent,
        tell=lambda text: None,
    )


def answers(federation: SmallFederation, changes: Mapping[str, object]) -> list[str | None]:
    """What one silo says to a manifest with these changes, signed by the true coordinator."""
    files = CoordinatorFiles.open(federation.coordinator)
    chain = files.chain()
    honest = Manifest(
        plan_digest=plan_digest(files.plan),
        roster_digest=roster_digest(chain.roster),
        round=2,
        attempt=1,
        cohort=tuple(sorted(federation.silos)),
        cache_digest=chain.position.cache_digest,
        previous_record=chain.position.record_digest,
    )
    said: list[str | None] = []
    silo = SiloFiles.open(federation.silos[SiloId("silo-1")])
    with silo.ledger() as ledger:
        service = SiloService(silo, ledger)
        for manifest in (msgspec.structs.replace(honest, **changes), honest):
            raw = service.handle(letters.MANIFEST, sign_manifest(manifest, files.state.signing_key()))
            said.append(wire.decode(raw, letters.Reply, limit_bytes=1 << 16, peer="silo-1").declined)
    return said


@pytest.mark.claim("C5")
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cache_digest": Digest("9" * 64)}, "cache-differs"),
        ({"previous_record": Digest("9" * 64)}, "stale-round"),
        ({"plan_digest": Digest("9" * 64)}, "plan-differs"),
        ({"roster_digest": Digest("9" * 64)}, "roster-differs"),
        ({"round": 1}, "stale-round"),
    ],
)
def test_a_silo_refuses_a_manifest_that_was_made_for_somebody_else(
    federation: SmallFederation, changes: dict[str, object], why: str
) -> None:
    assert answers(federation, changes) == [why, None]


@pytest.mark.claim("C16")
def test_a_silo_counts_its_cohort_itself(federation: SmallFederation) -> None:
    """Five silos, one colluder: more than half of five and one, so four; and nobody from outside."""
    names = sorted(federation.silos)
    for cohort in (names[:1], names[:2], names[:3], [*names[:4], SiloId("silo-9")], names[1:]):
        assert answers(federation, {"cohort": tuple(cohort)}) == ["cohort-refused", None], cohort


@pytest.mark.claim("C1")
def test_what_a_silo_sends_is_as_long_whatever_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silos of 9 to 90 records: every letter and every message has the same length for all."""
    sizes: dict[str, dict[SiloId, int]] = defaultdict(dict)
    genuine = InProcessNetwork.exchange

    def exchange(
        self: InProcessNetwork, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        replies = genuine(self, phase, requests, deadline_seconds)
        sizes[f"{len(sizes):02d} {phase}"] = {silo: len(raw) for silo, raw in replies.items()}
        return replies

    monkeypatch.setattr(InProcessNetwork, "exchange", exchange)
    federation = found(tmp_path, records=(12, 90, 9, 15, 31))
    run(federation)
    assert len(sizes) >= 9
    for phase, each in sizes.items():
        assert len(each) == 5
        assert len(set(each.values())) == 1, phase
