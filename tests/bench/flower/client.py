"""One client of Flower's SecAgg+, for ``secure_sum.py``. Runs in an environment that has ``flwr``, not this package.

    client.py DIMENSION NEIGHBOURS

Sets up NEIGHBOURS + 1 clients, every one a neighbour of every other, through Flower's own client functions.
For each line on standard input, the first client quantises, masks and serialises DIMENSION float32 values;
its CPU seconds are printed, less those of the same call with one value: opening shares and agreeing on keys.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
from typing import Any

import numpy as np

logging.disable(logging.CRITICAL)
mod: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
common: Any = importlib.import_module("flwr.common")
Key: Any = mod.Key


def set_up(clients: int) -> tuple[Any, dict[str, Any]]:
    """The first client's state after sharing, and the shares that the others sent it."""
    configuration = {
        Key.SAMPLE_NUMBER: clients,
        Key.SHARE_NUMBER: clients,
        Key.THRESHOLD: 2 * clients // 3 + 1,
        Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: 1 << 22,
        Key.MOD_RANGE: 1 << 32,
        Key.MAX_WEIGHT: 1000.0,
    }
    states = []
    for index in range(clients):
        state = mod.SecAggPlusState()
        state.nid, state.rd_seed_share_dict = index, {}
        mod._setup(state, dict(configuration))
        states.append(state)
    public_keys = {str(state.nid): (state.pk1, state.pk2) for state in states}
    ciphertexts, sources = [], []
    for state in states:
        shared = mod._share_keys(state, dict(public_keys))
        if state.nid != 0:
            place = shared[Key.DESTINATION_LIST].index(0)
            ciphertexts.append(shared[Key.CIPHERTEXT_LIST][place])
            sources.append(state.nid)
    return states[0], {Key.CIPHERTEXT_LIST: ciphertexts, Key.SOURCE_LIST: sources}


def mask(state: Any, inbox: dict[str, Any], values: Any) -> float:
    """CPU seconds."""
    parameters = common.ndarrays_to_parameters([values])
    started = time.process_time()
    mod._collect_masked_vectors(state, inbox, 100, parameters)
    return time.process_time() - started


def main() -> None:
    dimension, neighbours = int(sys.argv[1]), int(sys.argv[2])
    state, inbox = set_up(neighbours + 1)
    values = np.random.default_rng(0).normal(0, 0.01, dimension).astype(np.float32)
    without_values = min(mask(state, inbox, values[:1]) for _ in range(5))
    for _ in sys.stdin:
        print(mask(state, inbox, values) - without_values, flush=True)


if __name__ == "__main__":
    main()
