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
from cachefl_secure.transport.serving import Watch
from tests.small_federation import found


@pytest.mark.claim("C8")
def test_a_silo_that_declined_does_not_say_that_it_has_trained(tmp_path: Path) -> None:
    files, said = SiloFiles.open(found(tmp_path).silos[SiloId("silo-1")]), list[str]()
    with files.ledger() as ledger:
        watch = Watch(SiloService(files, ledger), files, ledger, said.append)
        reply = watch.handle(letters.MASKED_INPUT, b"of a round that this silo is not in")
    assert msgspec.msgpack.decode(reply, type=Reply).declined == "stale-round"
    assert said == []
