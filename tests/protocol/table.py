"""A round played step by step by hand, so that a test can put its own message in the place of any."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from cachefl_secure.crypto.sign import SigningKey
from cachefl_secure.names import COORDINATOR, Digest, SiloId
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.attempt import Attempt, body_digest
from cachefl_secure.protocol.certificate import statement_digest
from cachefl_secure.protocol.messages import Body, Header, Signed, Statement, SurvivorSet
from cachefl_secure.protocol.silo import SiloSession
from cachefl_secure.protocol.vectors import EncodedUpdate
from tests.protocol.rounds import LEDGER_HEAD, federation, parameters_for, random_updates

B = TypeVar("B", bound=Body)


class Table:
    """A round of n silos, one colluder tolerated, played step by step; ``me`` is the silo under test."""

    def __init__(self, n: int = 5) -> None:
        self.fed = federation(parameters_for(n, dimension=17, colluders=1))
        self.me, self.others = self.fed.silos[1], [s for s in self.fed.silos if s != self.fed.silos[1]]
        self.updates = random_updates(self.fed)
        self.coordinator = self.fed.coordinator()
        self.sessions = {silo: self.fed.silo(silo) for silo in self.fed.silos}
        self.attempt = Attempt.begin(
            self.fed.manifest, self.fed.roster, self.fed.coordinator_key, self.fed.parameters
        )

    @property
    def session(self) -> SiloSession:
        return self.sessions[self.me]

    @property
    def update(self) -> EncodedUpdate:
        return self.updates[self.me]

    def to_key_list(self) -> bytes:
        lists = self.coordinator.on_advertisements({s: x.advertise() for s, x in self.sessions.items()})
        self.lists = lists
        return lists[self.me]

    def to_delivery(self) -> bytes:
        self.to_key_list()
        shares = {silo: x.on_key_list(self.lists[silo]) for silo, x in self.sessions.items()}
        self.deliveries = self.coordinator.on_sealed_shares(shares)
        return self.deliveries[self.me]

    def to_survivor_set(self) -> bytes:
        self.to_delivery()
        inputs = {
            silo: x.on_share_delivery(self.deliveries[silo], self.updates[silo], LEDGER_HEAD)
            for silo, x in self.sessions.items()
        }
        self.inputs = inputs
        self.sets = self.coordinator.on_masked_inputs(inputs)
        return self.sets[self.me]

    def to_certificate(self) -> bytes:
        self.to_survivor_set()
        self.statements = {silo: x.on_survivor_set(self.sets[silo]) for silo, x in self.sessions.items()}
        self.certificates = self.coordinator.on_statements(self.statements)
        return self.certificates[self.me]

    def proposal(self, survivors: Iterable[SiloId]) -> bytes:
        """A survivor set with the true headers; a silo that sent nothing gets an empty one."""
        headers = []
        for silo in survivors:
            if silo in self.inputs:
                sent = signed(self.inputs[silo])
                headers.append(Header(silo, body_digest(sent.body), sent.signature))
            else:
                headers.append(Header(silo, Digest("00" * 32), bytes(64)))
        return self.say(SurvivorSet(tuple(headers)))

    def say(
        self,
        body: Body,
        sender: str = COORDINATOR,
        identity: SigningKey | None = None,
        to: SiloId | None = None,
    ) -> bytes:
        """Signed under the view of the silo that it is for, the one under test unless told, or of the silo that says it."""
        seen = self.sessions.get(SiloId(sender), self.sessions[to or self.me])._state.view
        if isinstance(body, Statement):
            seen = statement_digest(body)
        return wire.encode(self.attempt.sign(body, sender, identity or self.fed.identities[sender], seen))


def signed(data: bytes) -> Signed:
    return wire.decode(data, Signed, limit_bytes=1 << 30, peer="test")


def body_of(data: bytes, kind: type[B]) -> B:
    return wire.decode(signed(data).body, kind, limit_bytes=1 << 30, peer="test")
