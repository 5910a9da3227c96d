"""What the coordinator last heard of each silo: notes for people who read `status`, by which nothing is decided.

    last-heard.json    silo -> when it was asked and when it answered, why it takes no part, which change it was shown

Nobody signs them. A disk that does not take them stops no round, and a damaged file counts as none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping

import msgspec

from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.state_dir import StateDir, utc_now
from cachefl_secure.federation.synchronising import Attendance
from cachefl_secure.names import SiloId

LAST_HEARD_FILE = "last-heard.json"
_NO_ANSWER, _EXHAUSTED = "no answer", "budget-exhausted"


class Heard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one silo."""

    asked: str
    """When it was asked last. Times are for people."""
    answered: str = ""
    """When it answered last; empty: never."""
    why_not: str = ""
    """Why it took no part when it was asked last; empty: it did, or would have."""
    shown: str = ""
    """Digest of the roster that it was last asked to approve; empty: none."""

    def in_words(self) -> str:
        answered = f"last heard {self.answered}" if self.answered else "never heard"
        match self.why_not:
            case "":
                return answered
            case "no answer":
                return f"no answer when it was asked {self.asked}; {answered}"
            case "paused":
                return f"paused, it said {self.answered}"
            case "left":
                return f"has left, it said {self.answered}; `admit --remove` takes it out of the roster"
            case "budget-exhausted":
                return f"its caps allow it no further round, it said {self.answered}"
            case why_not:
                return f"took no part: {why_not}; {answered}"


def note_attendance(state: StateDir, silos: Iterable[SiloId], attendance: Attendance) -> None:
    """Takes down who of these silos answered just now, and what."""
    now, kept = utc_now(), dict(last_heard(state))
    for silo in silos:
        before = kept.get(silo, Heard(now))
        kept[silo] = Heard(
            asked=now,
            answered=now if silo in attendance.heard else before.answered,
            why_not=_why_not(silo, attendance),
            shown=attendance.shown.get(silo, before.shown),
        )
    with contextlib.suppress(ConfigError):
        state.write(LAST_HEARD_FILE, msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")


def _why_not(silo: SiloId, attendance: Attendance) -> str:
    if (why := attendance.rejected.get(silo) or attendance.declined.get(silo)) is not None:
        return why
    if silo in attendance.absent:
        return _NO_ANSWER
    return _EXHAUSTED if silo in attendance.exhausted else ""


def last_heard(state: StateDir) -> Mapping[SiloId, Heard]:
    """Of every silo that was ever asked."""
    if not state.has(LAST_HEARD_FILE):
        return {}
    try:
        return msgspec.json.decode(state.read(LAST_HEARD_FILE), type=dict[SiloId, Heard])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ConfigError):
        return {}
