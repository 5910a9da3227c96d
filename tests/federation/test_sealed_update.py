"""What a silo keeps of its update between training and the record, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.sealed_update import open_update, seal_update
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import digest_of
from cachefl_secure.updates import IntegerUpdate, NoisedSums, NoisedUpdate, PrivateUpdate, ScaledUpdate

PLAN = digest_of("test/plan")
UPDATES: dict[str, NoisedUpdate] = {
    "float64": PrivateUpdate(np.array([0.5, -1.25, 3e-7])),
    "scaled32": ScaledUpdate(np.array([1, -2, 2**31 - 1], np.int32), -0.125),
    "scaled64": ScaledUpdate(np.array([1, -2, 2**40], np.int64), 1 / 3),
    "int32": IntegerUpdate(np.array([1, -2, 2**31 - 1], np.int32)),
    "sums64": NoisedSums(np.array([1, -2, 2**40], np.int64)),
}


@pytest.mark.parametrize("kind", UPDATES)
def test_an_update_comes_back_as_it_was_sealed(kind: str, tmp_path: Path) -> None:
    state, update = StateDir.create(tmp_path / "silo"), UPDATES[kind]
    seal_update(state, 3, update, PLAN)
    sealed = open_update(state, 3, PLAN)
    again = sealed.update
    assert type(again) is type(update)
    if isinstance(update, PrivateUpdate):
        assert isinstance(again, PrivateUpdate)
        assert np.array_equal(again.values, update.values)
    else:
        assert not isinstance(again, PrivateUpdate)
        assert again.integers.dtype == update.integers.dtype
        assert np.array_equal(again.integers, update.integers)
    if isinstance(update, ScaledUpdate):
        assert isinstance(again, ScaledUpdate)
        assert again.step == update.step
    assert open_update(state, 3, PLAN).digest == sealed.digest


def test_the_digest_names_numbers_length_and_seed(tmp_path: Path) -> None:
    state, digests = StateDir.create(tmp_path / "silo"), set()
    one = np.array([1, 2], np.int32)
    for number, update in enumerate([ScaledUpdate(one, 1.0), ScaledUpdate(one, 2.0), ScaledUpdate(one, 1.0)]):
        seal_update(state, number, update, PLAN)
        digests.add(open_update(state, number, PLAN).digest)
    assert len(digests) == 3


def test_the_file_of_another_round_does_not_open(tmp_path: Path) -> None:
    state = StateDir.create(tmp_path / "silo")
    seal_update(state, 3, UPDATES["scaled32"], PLAN)
    state.path("rounds/0004").mkdir(parents=True)
    state.path("rounds/0004/update.sealed").write_bytes(state.path("rounds/0003/update.sealed").read_bytes())
    with pytest.raises(ConfigError):
        open_update(state, 4, PLAN)
