"""Real silo services, asked by hand: a coordinator with its own key that says what it likes, when it likes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np

from cachefl_secure.federation import letters
from cachefl_secure.federation.coordinator_files import CoordinatorFiles
from cachefl_secure.federation.coordinator_round import RoundOutcome
from cachefl_secure.federation.ports import silent
from cachefl_secure.federation.silo_attempt import Trainer
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.protocol.attempt import sign_manifest
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.messages import Manifest, roster_digest
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.transport.local_federation import run_local_rounds
from cachefl_secure.updates import PrivateUpdate
from tests.small_federation import SmallFederation

NOISE_ONLY = Trainer(lambda *_: None, lambda *_: PrivateUpdate(np.random.default_rng().normal(size=128)))
"""Trains nothing, at once; another update each time."""


def run(federation: SmallFederation, number: int = 1, said: list[str] | None = None) -> list[RoundOutcome]:
    """Honest rounds."""
    return run_local_rounds(
        federation.coordinator,
        list(federation.silos.values()),
        number,
        deadline_seconds=60.0,
        progress=silent,
        tell=(said if said is not None else []).append,
    )


class Driven:
    """One service for every silo of a federation that has had its first round."""

    def __init__(self, federation: SmallFederation) -> None:
        self.federation = federation
        self.files = CoordinatorFiles.open(federation.coordinator)
        self.key = self.files.state.signing_key()
        self.services: dict[SiloId, SiloService] = {}
        self._ledgers: dict[SiloId, Ledger] = {}
        for silo in self.silos:
            self.start(silo)

    @property
    def silos(self) -> list[SiloId]:
        return sorted(self.federation.silos)

    def start(self, silo: SiloId) -> None:
        files = SiloFiles.open(self.federation.silos[silo])
        self._ledgers[silo] = files.ledger()
        self.services[silo] = SiloService(files, self._ledgers[silo], NOISE_ONLY)

    def restart(self, silo: SiloId) -> None:
        self._ledgers[silo].close()
        self.start(silo)

    def ledger(self, silo: SiloId) -> Ledger:
        return self._ledgers[silo]

    def close(self) -> None:
        for ledger in self._ledgers.values():
            ledger.close()

    def ask(self, silo: SiloId, phase: str, content: bytes) -> bytes | str:
        """The answer, or why there is none."""
        reply = msgspec.msgpack.decode(self.services[silo].handle(phase, content), type=letters.Reply)
        return reply.declined or reply.answer

    def exchange(self, phase: str, requests: Mapping[SiloId, bytes]) -> dict[SiloId, bytes]:
        """As ``ask``, where every silo must answer."""
        answers: dict[SiloId, bytes] = {}
        for silo, content in requests.items():
            answer = self.ask(silo, phase, content)
            assert isinstance(answer, bytes), (silo, phase, answer)
            answers[silo] = answer
        return answers

    def manifest(self, number: int, attempt: int, cohort: Iterable[SiloId], **changes: Any) -> Manifest:
        """An honest one, but for the changes."""
        chain = self.files.chain()
        honest = Manifest(
            plan_digest=plan_digest(chain.plan),
            roster_digest=roster_digest(chain.roster),
            round=number,
            attempt=attempt,
            cohort=tuple(sorted(cohort)),
            cache_digest=chain.position.cache_digest,
            previous_record=chain.position.record_digest,
        )
        return msgspec.structs.replace(honest, **changes)

    def session(self, manifest: Manifest) -> CoordinatorSession:
        chain = self.files.chain()
        parameters = RoundParameters.derive(chain.plan, len(manifest.cohort), len(chain.roster.members))
        return CoordinatorSession(manifest, self.key, chain.roster, parameters)

    def propose(self, manifest: Manifest) -> str | bytes:
        """What the last silo of the cohort says to the manifest."""
        raw = sign_manifest(manifest, self.key)
        return self.ask(SiloId(manifest.cohort[-1]), letters.MANIFEST, raw)

    def certify(self, manifest: Manifest) -> tuple[CoordinatorSession, Mapping[SiloId, bytes]]:
        """An attempt up to the certificates, which nobody has been sent yet."""
        session = self.session(manifest)
        opening = dict.fromkeys(map(SiloId, manifest.cohort), session.manifest_message())
        key_lists = session.on_advertisements(self.exchange(letters.MANIFEST, opening))
        deliveries = session.on_sealed_shares(self.exchange(letters.SHARE, key_lists))
        survivor_sets = session.on_masked_inputs(self.exchange(letters.MASKED_INPUT, deliveries))
        return session, session.on_statements(self.exchange(letters.CERTIFICATE, survivor_sets))


@contextmanager
def driven(federation: SmallFederation) -> Iterator[Driven]:
    """After one honest round, so that the roster is countersigned."""
    run(federation)
    services = Driven(federation)
    try:
        yield services
    finally:
        services.close()
