"""What a silo that serves says to its operator: only what has happened."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cachefl_secure.federation import letters
from cachefl_secure.federation.letters import Reply
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.names import SiloId
from cachefl_secure.plan import plan_digest
from cachefl_secure.protocol import wire
from cachefl_secure.transport.serving import Watch
from tests.driven import run
from tests.small_federation import found


@pytest.mark.claim("C8")
def test_a_silo_that_declined_does_not_say_that_it_has_trained(tmp_path: Path) -> None:
    files, said = SiloFiles.open(found(tmp_path).silos[SiloId("silo-1")]), list[str]()
    with files.ledger() as ledger:
        watch = Watch(SiloService(files, ledger), files, ledger, said.append)
        reply = watch.handle(letters.MASKED_INPUT, b"of a round that this silo is not in")
    assert msgspec.msgpack.decode(reply, type=Reply).declined == "stale-round"
    assert said == []


@pytest.mark.claim("C11")
def test_a_silo_whose_caps_are_reached_says_so_once_and_whose_caps_they_are(tmp_path: Path) -> None:
    federation, silo = found(tmp_path), SiloId("silo-1")
    run(federation, 4)  # all that the plan's caps allow
    files, said = SiloFiles.open(federation.silos[silo]), list[str]()
    hello = wire.encode(letters.Hello(plan_digest=plan_digest(federation.plan), receipt=None))
    with files.ledger() as ledger:
        watch = Watch(SiloService(files, ledger), files, ledger, said.append)
        assert said == []
        for _ in range(3):
            watch.handle(letters.HELLO, hello)
        spent = ledger.spent.local
    (sentence,) = said
    assert sentence.startswith(f"a further round is declined: budget: has spent {spent:.4g} of ")
    assert sentence.endswith(f"; the cap is epsilon_cap_local in {files.state.path('silo.toml')}")
    assert "another round would make" in sentence
