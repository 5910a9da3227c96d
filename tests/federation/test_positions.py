"""Where a silo stands: an update, an attempt and a round belong to one place in the chain of records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from cachefl_secure.cache.model import cache_digest
from cachefl_secure.errors import PeerError
from cachefl_secure.federation import letters
from cachefl_secure.federation.coordinator_round import CoordinatorService
from cachefl_secure.federation.letters import Sync, SyncedRound
from cachefl_secure.federation.state_dir import round_file
from cachefl_secure.names import SiloId
from cachefl_secure.protocol import silo as silo_module
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.coordinator import CoordinatorSession
from cachefl_secure.protocol.messages import Manifest
from cachefl_secure.protocol.parameters import RoundParameters
from tests.driven import Driven, driven
from tests.small_federation import found


class Nobody:
    """A channel with nobody at its other end."""

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        return {}


def held_back(services: Driven) -> tuple[Manifest, CoordinatorSession, bytes, bytes]:
    """Round 2, its record and its sum, which nobody has been sent."""
    manifest = services.manifest(2, 1, services.silos)
    session, certificates = services.certify(manifest)
    total = session.on_unmask_shares(services.exchange(letters.UNMASK, certificates))
    chain = services.files.chain()
    parameters = RoundParameters.derive(chain.plan, 5, 5)
    service = CoordinatorService(services.files.state, chain, Nobody())
    _, raw, content = service._publish(session, manifest, total, parameters)
    return manifest, session, raw, content


def publish(services: Driven, raw: bytes, content: bytes) -> None:
    services.files.chain().extend(raw, content, None)
    sync = wire.encode(Sync(b"", b"", (SyncedRound(raw, content),)))
    services.exchange(letters.SYNC, dict.fromkeys(services.silos, sync))


@pytest.mark.claim("C5", "C7")
def test_an_update_that_was_trained_on_one_cache_is_not_sent_as_one_of_another(tmp_path: Path) -> None:
    with driven(found(tmp_path)) as services:
        *_, raw, content = held_back(services)
        services.certify(services.manifest(3, 1, services.silos))  # on the old cache
        publish(services, raw, content)
        manifest = services.manifest(3, 2, services.silos)
        session = services.session(manifest)
        opening = dict.fromkeys(services.silos, session.manifest_message())
        key_lists = session.on_advertisements(services.exchange(letters.MANIFEST, opening))
        deliveries = session.on_sealed_shares(services.exchange(letters.SHARE, key_lists))
        for silo, delivery in deliveries.items():
            assert services.ask(silo, letters.MASKED_INPUT, delivery) == "protocol-error"
            trouble = services.services[silo].take_trouble()
            assert "charged for something else" in str(trouble)
            spend = services.ledger(silo).spend_of(manifest.plan_digest, 3)
            assert spend is not None
            assert spend.cache_digest != manifest.cache_digest == cache_digest(services.files.chain().model())


@pytest.mark.claim("C3")
@pytest.mark.parametrize("restarted", [False, True])
def test_an_attempt_that_a_record_has_overtaken_is_not_taken_up_again(
    tmp_path: Path, restarted: bool
) -> None:
    with driven(found(tmp_path)) as services:
        *_, raw, content = held_back(services)
        _, certificates = services.certify(services.manifest(3, 1, services.silos))
        publish(services, raw, content)
        silo = services.silos[0]
        if restarted:
            services.restart(silo)
            assert services.services[silo].take_trouble() is None
            assert not (services.federation.silos[silo] / round_file(3, "session")).exists()
        assert services.ask(silo, letters.UNMASK, certificates[silo]) == "stale-round"


@pytest.mark.claim("C3")
def test_no_manifest_names_a_round_that_a_record_or_a_folder_could_not(tmp_path: Path) -> None:
    with driven(found(tmp_path)) as services:
        for number, attempt in ((1_000_001, 1), (10_000_000, 1), (2, 1_000_001)):
            assert services.propose(services.manifest(number, attempt, services.silos)) == "protocol-error"
        last = services.silos[-1]
        assert not (services.federation.silos[last] / "rounds/10000000").exists()
        assert isinstance(services.propose(services.manifest(1_000_000, 1, services.silos)), bytes)
        assert services.propose(services.manifest(2, 1, services.silos)) == "stale-round"


def test_a_silo_starts_although_its_journal_is_of_an_attempt_that_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the session's constructor refuses is told to the operator, and the silo drops out of the attempt."""
    with driven(found(tmp_path)) as services:
        _, certificates = services.certify(services.manifest(2, 1, services.silos))
        silo = services.silos[0]

        def refuse(*_: object) -> None:
            raise PeerError("coordinator", "manifest of another plan or roster")

        with monkeypatch.context() as patch:
            patch.setattr(silo_module, "Attempt", SimpleNamespace(begin=refuse))
            services.restart(silo)
        assert isinstance(services.services[silo].take_trouble(), PeerError)
        assert services.ask(silo, letters.UNMASK, certificates[silo]) == "stale-round"
