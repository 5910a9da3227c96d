"""The in-process transport: the port's contract, with silos that are slow, die or are not there."""

from __future__ import annotations

import threading

from cachefl_secure.names import SiloId
from cachefl_secure.transport.in_process import InProcessNetwork, reasons

A, B = SiloId("a"), SiloId("b")


def echo(phase: str, content: bytes) -> bytes:
    return phase.encode() + b":" + content


def test_each_silo_gets_its_own_request_and_answers_it() -> None:
    with InProcessNetwork({A: echo, B: echo}) as network:
        assert network.exchange("share", {A: b"1", B: b"2"}, 10.0) == {A: b"share:1", B: b"share:2"}


def test_a_silo_that_raises_gives_no_answer_and_lives_on() -> None:
    def fragile(phase: str, content: bytes) -> bytes:
        if content == b"bad":
            raise RuntimeError("contents of a private record")
        return content

    with InProcessNetwork({A: fragile, B: echo}) as network:
        assert set(network.exchange("share", {A: b"bad", B: b""}, 10.0)) == {B}
        assert reasons(network.failures) == {A: "RuntimeError"}
        assert network.failures == {}
        assert network.exchange("share", {A: b"good"}, 10.0) == {A: b"good"}


def test_a_silo_that_does_not_run_here_does_not_answer() -> None:
    with InProcessNetwork({A: echo}) as network:
        assert set(network.exchange("share", {A: b"", B: b""}, 10.0)) == {A}


def test_a_late_answer_is_not_taken_for_one_of_the_next_phase_and_leaving_waits_for_it() -> None:
    go_on = threading.Event()
    finished: list[bytes] = []

    def slow(phase: str, content: bytes) -> bytes:
        if phase == "first":
            go_on.wait(timeout=30.0)
        finished.append(content)
        return content

    with InProcessNetwork({A: slow}) as network:
        assert network.exchange("first", {A: b"late"}, 0.05) == {}
        go_on.set()
        assert network.exchange("second", {A: b"next"}, 30.0) == {A: b"next"}
        assert finished == [b"late", b"next"]
        go_on.clear()
        assert network.exchange("first", {A: b"last"}, 0.05) == {}
        threading.Timer(0.2, go_on.set).start()
    assert finished[-1] == b"last"
