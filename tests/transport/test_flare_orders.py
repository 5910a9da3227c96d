"""What an order does and says, over a channel without FLARE."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from cachefl_secure.errors import ConfigError, RoundAborted
from cachefl_secure.federation.ports import CoordinatorChannel
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.state_dir import StateDir
from cachefl_secure.names import SiloId
from cachefl_secure.transport.flare import kits, reports
from cachefl_secure.transport.flare.ordered import CRASH_FILE, carry_out
from cachefl_secure.transport.flare.reports import Line, Order, Tail
from cachefl_secure.transport.in_process import InProcessNetwork
from tests.driven import NOISE_ONLY
from tests.small_federation import SmallFederation, found

LAST = SiloId("silo-4")


@pytest.fixture
def federation(tmp_path: Path) -> SmallFederation:
    return found(tmp_path, records=(12, 20, 9, 15))


@contextlib.contextmanager
def network(federation: SmallFederation) -> Iterator[InProcessNetwork]:
    with contextlib.ExitStack() as held:
        services = {}
        for silo, root in federation.silos.items():
            files = SiloFiles.open(root)
            services[silo] = SiloService(files, held.enter_context(files.ledger()), NOISE_ONLY)
        yield held.enter_context(InProcessNetwork({silo: each.handle for silo, each in services.items()}))


class Without:
    """A channel that does not reach one silo."""

    def __init__(self, channel: CoordinatorChannel, silo: SiloId) -> None:
        self._channel, self._silo = channel, silo

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        reached = {silo: content for silo, content in requests.items() if silo != self._silo}
        return self._channel.exchange(phase, reached, deadline_seconds)


class Broken:
    """A channel with a mistake in it."""

    def exchange(
        self, phase: str, requests: Mapping[SiloId, bytes], deadline_seconds: float
    ) -> dict[SiloId, bytes]:
        raise KeyError("a private record")


def place(federation: SmallFederation, number: int) -> str:
    name = secrets.token_hex(16)
    order = Order(number=number, deadline_seconds=60.0, give_up=False, needed=3, connect_seconds=1.0)
    state = StateDir(federation.coordinator)
    state.write(f"{kits.ORDERS}/{name}/{reports.ORDER_FILE}", msgspec.json.encode(order))
    return name


def said(federation: SmallFederation, name: str) -> list[Line]:
    return list(Tail(federation.coordinator / kits.ORDERS / name / reports.JOB_FILE).lines())


def test_an_order_is_carried_out_and_every_event_said(federation: SmallFederation) -> None:
    name = place(federation, 2)
    with network(federation) as channel:
        carry_out(federation.coordinator, name, channel)
    lines = said(federation, name)
    assert [line.round for line in lines if isinstance(line, reports.Committed)] == [1, 2]
    assert isinstance(lines[-1], reports.Ended)
    assert not any(isinstance(line, reports.Failed | reports.Crashed) for line in lines)
    steps = [(line.done, line.total) for line in lines if isinstance(line, reports.Progressed)]
    assert steps[-1] == (12, 12)
    assert steps == sorted(steps)


def test_a_round_that_fails_is_said_with_its_fields(federation: SmallFederation) -> None:
    name = place(federation, 1)
    with InProcessNetwork({}) as nobody:
        carry_out(federation.coordinator, name, nobody)
    (failure,) = (line for line in said(federation, name) if isinstance(line, reports.Failed))
    error = reports.error_of(failure)
    assert isinstance(error, RoundAborted)
    assert error.present == 0


def test_a_mistake_is_said_by_its_type_and_its_place_is_kept(federation: SmallFederation) -> None:
    name = place(federation, 1)
    carry_out(federation.coordinator, name, Broken())
    assert reports.Crashed(error="KeyError") in said(federation, name)
    folder = federation.coordinator / kits.ORDERS / name
    trace = (folder / CRASH_FILE).read_text()
    assert "in exchange" in trace
    assert "KeyError" in trace


def test_an_order_that_was_withdrawn_is_not_carried_out(federation: SmallFederation) -> None:
    name = place(federation, 1)
    (federation.coordinator / kits.ORDERS / name / reports.ORDER_FILE).unlink()
    with network(federation) as channel:
        carry_out(federation.coordinator, name, channel)
    failure, ended = said(federation, name)
    assert isinstance(failure, reports.Failed)
    assert isinstance(reports.error_of(failure), ConfigError)
    assert isinstance(ended, reports.Ended)
    assert not (federation.coordinator / "rounds").exists()


@pytest.mark.parametrize("is_back", [True, False], ids=["back", "away"])
def test_a_silo_that_came_back_is_taken_into_the_next_job(federation: SmallFederation, is_back: bool) -> None:
    first = place(federation, 1)
    with network(federation) as channel:
        carry_out(federation.coordinator, first, channel)
        name = place(federation, 2)
        silos = ("silo-1", "silo-2", "silo-3", *((LAST,) if is_back else ()))
        submitter = federation.coordinator / kits.ORDERS / name / reports.SUBMIT_FILE
        reports.write_line(submitter, reports.Connected(silos=silos))
        carry_out(federation.coordinator, name, Without(channel, LAST))
    lines = said(federation, name)
    regrouped = [line for line in lines if isinstance(line, reports.Regrouped)]
    assert regrouped == ([reports.Regrouped(left=1)] if is_back else [])
    assert sum(isinstance(line, reports.Committed) for line in lines) == (1 if is_back else 2)
