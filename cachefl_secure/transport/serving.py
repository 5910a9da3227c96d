"""A silo that serves says to its operator what it does, and nothing that is private."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import msgspec

from cachefl_secure.errors import BudgetExhausted, CacheflError
from cachefl_secure.federation import letters
from cachefl_secure.federation.letters import Reply
from cachefl_secure.federation.silo_files import SiloFiles
from cachefl_secure.federation.silo_round import SiloService
from cachefl_secure.federation.standing_aside import standing_aside
from cachefl_secure.federation.state_dir import ROSTER_FILE, StateDir, round_file, round_numbers
from cachefl_secure.privacy.ledger import Ledger
from cachefl_secure.privacy.statements import rounded_up


def recorded_round(state: StateDir) -> int:
    """The last round whose record this party holds; 0 before the first."""
    done = (number for number in round_numbers(state) if state.has(round_file(number, "record.json")))
    return max(done, default=0)


class Watch:
    """A service's handler, watched: one sentence when this silo is admitted, has sent, has a record, or declines."""

    def __init__(
        self,
        service: SiloService,
        files: SiloFiles,
        ledger: Ledger,
        tell: Callable[[str], None],
        stop_after_round: Event | None = None,
    ) -> None:
        self._service, self._files, self._ledger, self._tell = service, files, ledger, tell
        self._stop, self._said = stop_after_round, ""
        self._enrolled, self._round = files.state.has(ROSTER_FILE), recorded_round(files.state)
        if (trouble := service.take_trouble()) is not None:
            self._say_trouble(trouble)

    def handle(self, phase: str, content: bytes) -> bytes:
        """As ``SiloService.handle``."""
        charged = len(self._ledger.spends)
        reply = self._service.handle(phase, content)
        trouble = self._service.take_trouble()
        if phase == letters.SYNC:
            self._after_sync()
        if trouble is not None:
            self._say_trouble(trouble)
        if phase == letters.HELLO and (aside := standing_aside(self._files.state)) is not None:
            self._say_once(
                f"the coordinator asks who takes part; this silo has {'left' if aside == 'left' else 'paused'}"
            )
        if phase == letters.MASKED_INPUT and msgspec.msgpack.decode(reply, type=Reply).declined is None:
            self._say_spent(is_charged=len(self._ledger.spends) > charged)
        return reply

    def _say_spent(self, *, is_charged: bool) -> None:
        if self._files.plan.privacy.mechanism == "none":
            self._tell("trained and masked without noise: NOT PRIVATE; the update is on its way")
            return
        spent, caps = self._ledger.spent, self._files.caps
        made = "trained, noised and masked" if is_charged else "masked again, at no cost"
        self._tell(
            f"{made}; the update is on its way. Spent so far: local epsilon {rounded_up(spent.local)} of "
            f"{caps.local:g}, aggregate {rounded_up(spent.aggregate)} of {caps.aggregate:g}"
        )

    def _after_sync(self) -> None:
        if not self._enrolled and self._files.state.has(ROSTER_FILE):
            self._enrolled = True
            self._tell(
                "admitted; compare the roster's fingerprint in `cachefl-secure status` with the other silos"
            )
        before, self._round = self._round, recorded_round(self._files.state)
        if self._round > before:
            self._tell(f"round {self._round} of {self._files.plan.privacy.rounds} is recorded and verified")
            if self._stop is not None:
                self._stop.set()

    def _say_trouble(self, trouble: Exception) -> None:
        if isinstance(trouble, BudgetExhausted):
            self._say_once(f"a further round is declined: budget: {trouble}")
            return
        # Anything but ours might quote data.
        self._say_once(str(trouble) if isinstance(trouble, CacheflError) else type(trouble).__name__)

    def _say_once(self, sentence: str) -> None:
        if sentence != self._said:
            self._tell(sentence)
        self._said = sentence
