"""How long it takes to verify a ledger, every epsilon recomputed by two accountants in both views.

    python tests/bench/ledger.py            1,000 rounds of each of four plans; about a minute

Elapsed and CPU seconds of one process, started anew, so that nothing is cached. A round has three entries: spend,
sent, receipt. Writing is what a silo does over all its rounds, each entry signed and synced.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.names import Digest, FederationId, SiloId
from cachefl_secure.privacy.accounting import Cost, noise_multiplier_for
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.privacy.mechanism import DistributedMechanism, LocalMechanism, StepMechanism
from cachefl_secure.privacy.terms import Terms

DELTA = 1e-5
TARGET_SECONDS = 10.0
_KEY = SigningKey(bytes(32))
_DIGEST = Digest("d" * 64)
_PUBLIC = {
    "clip_norm": 0.1,
    "expected_records": 1000,
    "learning_rate": 0.5,
    "feature_bits": 9,
    "gradient_bits": 8,
    "dimension": 819_200,
}
VERIFY = """
import sys, time
from pathlib import Path
from dp_accounting import pld, rdp  # what every command pays for importing is not counted
from cachefl_secure.privacy.ledger import verify_ledger
wall, cpu = time.perf_counter(), time.process_time()
report = verify_ledger(Path(sys.argv[1]), sys.argv[2])
print(len(report.spends), time.perf_counter() - wall, time.process_time() - cpu, report.spent.local, report.spent.aggregate)
"""


def plans(rounds: int) -> dict[str, list[StepMechanism]]:
    """Mechanisms of the rounds, for an aggregate epsilon of 2 at the end (h = 4), or a local one of 8."""
    full, tenth = (
        _distributed(rate, noise_multiplier_for(2.0, DELTA, rate, rounds) / 2) for rate in (1.0, 0.1)
    )
    noise = noise_multiplier_for(8.0, DELTA, 0.25, rounds)
    alone = LocalMechanism(**_PUBLIC, steps=1, sampling_rate=0.25, noise_multiplier=noise)  # type: ignore[arg-type]
    return {
        "distributed, full batch": [full] * rounds,
        "distributed, sampling rate 0.1": [tenth] * rounds,
        "local, sampling rate 0.25": [alone] * rounds,
        "the first two in turn, Renyi filter": [full, tenth] * (rounds // 2),
    }


def _distributed(rate: float, noise: float) -> DistributedMechanism:
    return DistributedMechanism(**_PUBLIC, honest_survivors=4, sampling_rate=rate, noise_multiplier=noise)  # type: ignore[arg-type]


def write(path: Path, mechanisms: list[StepMechanism]) -> float:
    """Seconds for all rounds."""
    start = time.perf_counter()
    with Ledger.create(path, _KEY, silo=SiloId("bench"), federation=FederationId("0" * 32)) as ledger:
        for number, mechanism in enumerate(mechanisms, 1):
            terms = Terms(
                plan_digest=_DIGEST,
                mechanism=mechanism,
                delta=DELTA,
                survivors=5,
                colluders=1,
                rdp_order=10,
                caps=Cost(1e6, 1e6),
            )
            ledger.reserve(terms, round=number, attempt=1, cache_digest=_DIGEST, data_commitment=_DIGEST)
            ledger.note_sent(_DIGEST, number, 1, _DIGEST, _DIGEST)
            ledger.note_receipt(_DIGEST, number, _DIGEST)
    return time.perf_counter() - start


def verify(path: Path) -> tuple[float, float, float, float]:
    """Elapsed and CPU seconds, and both epsilons."""
    command = [sys.executable, "-c", VERIFY, str(path), _KEY.public_key]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    _, wall, cpu, alone, together = map(float, done.stdout.split())
    return wall, cpu, alone, together


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    failed = False
    for name, mechanisms in plans(rounds).items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.jsonl"
            written = write(path, mechanisms)
            wall, cpu, alone, together = verify(path)
        failed |= cpu > TARGET_SECONDS
        print(
            f"{name:38} {rounds} rounds, epsilon {together:.2f} together and {alone:.2f} alone: "
            f"verified in {wall:.1f} s ({cpu:.1f} s CPU; goal {TARGET_SECONDS:g}), written in {written:.1f} s"
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
