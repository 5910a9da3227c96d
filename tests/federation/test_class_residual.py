"""Whole rounds in which silos send one row a class instead of one a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cachefl_secure.errors import PeerError
from cachefl_secure.federation.calibration import PrivacyChoices
from cachefl_secure.federation.chain import install_initial_cache
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.inspection import open_chain
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.privacy.mechanism import DistributedMechanism, mechanism_of
from cachefl_secure.protocol.parameters import RoundParameters
from tests.driven import run
from tests.small_federation import (
    CLASSES,
    FEATURE_DIM,
    KEYS_A_CLASS,
    SmallFederation,
    found,
    found_coordinator,
    small_privacy,
)


def played(root: Path, choices: PrivacyChoices, rounds: int) -> SmallFederation:
    privacy = small_privacy(choices, "class_residual")
    federation = found(root, privacy=privacy, trained="class_residual")
    run(federation, rounds)
    return federation


@pytest.mark.parametrize(
    "choices",
    [
        PrivacyChoices(rounds=4, expected_records=15),
        PrivacyChoices(mechanism="local", rounds=4, expected_records=15, steps_per_round=3),
    ],
    ids=lambda choices: choices.mechanism,
)
def test_all_parties_end_with_one_cache_whose_keys_moved_with_their_class(
    tmp_path: Path, choices: PrivacyChoices
) -> None:
    federation = played(tmp_path, choices, 2)
    chain = CoordinatorFiles.open(federation.coordinator).chain()
    ends = {chain.position.cache_digest}
    ends |= {open_chain(path).position.cache_digest for path in federation.silos.values()}
    assert len(ends) == 1
    change = chain.model().cache_keys.double() - chain.initial_model().cache_keys.double()
    by_class = change.view(CLASSES, KEYS_A_CLASS, FEATURE_DIM)
    assert float((by_class[:, 0] - by_class[:, 1]).abs().max()) < 2e-6  # rounded to float32 twice
    assert float(by_class[:, 0].abs().max()) > 1e-2
    assert [number for number, _ in chain.models()] == [0, 1, 2]  # recomputed from the sums


def test_plan_mechanism_and_encoding_are_of_one_size(tmp_path: Path) -> None:
    privacy = small_privacy(PrivacyChoices(rounds=4, expected_records=15), "class_residual")
    plan = found(tmp_path, records=(9, 9, 9, 9, 9), privacy=privacy, trained="class_residual").plan
    mechanism, parameters = mechanism_of(plan), RoundParameters.derive(plan, 5, 5)
    assert isinstance(mechanism, DistributedMechanism)
    assert plan.trained_rows == CLASSES
    assert plan.number_of_parameters == mechanism.dimension == parameters.dimension == CLASSES * FEATURE_DIM
    assert mechanism.lattice == plan.lattice


@pytest.mark.parametrize(
    ("lie", "what"),
    [
        ({"images_per_class": KEYS_A_CLASS + 1}, "other sizes"),
        ({"alpha": 11.0}, "another alpha"),
        ({"alpha_norm": "mean"}, "another alpha"),
        ({"beta": 4.0}, "another alpha"),
    ],
)
def test_a_cache_other_than_the_plan_describes_is_refused_before_anything_is_charged(
    tmp_path: Path, lie: dict[str, Any], what: str
) -> None:
    """The digest fits, because a coordinator chooses both."""
    coordinator = found_coordinator(tmp_path / "coordinator")
    content = (coordinator / "models/0000.safetensors").read_bytes()
    plan = CoordinatorFiles.open(coordinator).plan
    install_initial_cache(StateDir.create(tmp_path / "honest"), plan, content)
    told = msgspec.structs.replace(plan, cache=msgspec.structs.replace(plan.cache, **lie))
    with pytest.raises(PeerError, match=what):
        install_initial_cache(StateDir.create(tmp_path / "silo"), told, content)
    assert not (tmp_path / "silo/models/0000.safetensors").exists()
