"""A silo's noised update between training and the record: one per round, sealed on disk.

Sealed, so that every attempt of the round sends the same update: training again for the same charge
would be a second release. The rounding seed of an update that is not made of integers is sealed with it,
so that it has one encoding as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.crypto.seal import open_at_rest, seal_at_rest
from cachefl_secure.errors import ConfigError
from cachefl_secure.federation.state_dir import StateDir, round_file, round_numbers
from cachefl_secure.names import Digest, digest_of
from cachefl_secure.protocol.encoding import Encoding, IntegerEncoding, RoundingSeed, sums_encoding
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import Unmasked
from cachefl_secure.updates import IntegerUpdate, NoisedSums, NoisedUpdate, PrivateUpdate, ScaledUpdate

_PURPOSE = "cachefl-secure/sealed-update/1"
_DIGEST_LABEL = "cachefl-secure/update-digest/1"
_NAME = "update.sealed"
_LAYOUTS = {
    b"float64\0": "<f8",
    b"int32\0\0\0": "<i4",
    b"sums64\0\0": "<i8",
    b"scaled32": "<i4",
    b"scaled64": "<i8",
}
_FLOATS, _INTEGERS, _SUMS, _SCALED, _SCALED_LONG = _LAYOUTS
_STEP_BYTES = 8  # float64, before the integers of a ScaledUpdate


@dataclass(frozen=True, slots=True, eq=False)
class SealedUpdate:
    """What a silo may send in a round, in the clear; it lives in memory only while it is masked."""

    update: NoisedUpdate
    rounding: RoundingSeed
    digest: Digest
    """Binds the ledger's charge to this update. The rounding seed, which is secret, serves as salt."""

    def encoding(self, parameters: RoundParameters) -> Unmasked:
        """The update as a silo masks it in any attempt.

        Raises:
            LocalProtocolError: another dimension.
        """
        match self.update:
            case IntegerUpdate():
                return IntegerEncoding(self.update, parameters)
            case NoisedSums():
                return sums_encoding(self.update, parameters)
            case PrivateUpdate() | ScaledUpdate():
                return Encoding(self.update, parameters, self.rounding)


def has_update(state: StateDir, round_number: int) -> bool:
    return state.has(round_file(round_number, _NAME))


def seal_update(state: StateDir, round_number: int, update: NoisedUpdate, plan: Digest) -> None:
    """Durable when this returns.

    Raises:
        ConfigError: not written.
    """
    kind, values = _layout(update)
    step = np.array([update.step], "<f8").tobytes() if isinstance(update, ScaledUpdate) else b""
    content = RoundingSeed.generate().reveal() + kind + step + values.astype(_LAYOUTS[kind]).tobytes()
    sealed = seal_at_rest(state.storage_key(), _purpose(plan, round_number), content)
    state.write(round_file(round_number, _NAME), sealed, private=True)


def open_update(state: StateDir, round_number: int, plan: Digest) -> SealedUpdate:
    """
    Raises:
        ConfigError: absent, damaged, or of another round or plan.
    """
    name = round_file(round_number, _NAME)
    try:
        content = open_at_rest(state.storage_key(), _purpose(plan, round_number), state.read(name))
    except ValueError as error:
        raise ConfigError(str(state.path(name)), "", str(error)) from None
    at, end = RoundingSeed.length_bytes, RoundingSeed.length_bytes + len(_FLOATS)
    seed, kind = RoundingSeed(content[:at]), content[at:end]
    return SealedUpdate(_update(kind, content, end), seed, digest_of(_DIGEST_LABEL, content))


def _update(kind: bytes, content: bytes, start: int) -> NoisedUpdate:
    if kind in (_SCALED, _SCALED_LONG):
        (step,) = np.frombuffer(content, "<f8", count=1, offset=start)
        return ScaledUpdate(np.frombuffer(content, _LAYOUTS[kind], offset=start + _STEP_BYTES), float(step))
    makers: dict[bytes, type[PrivateUpdate | IntegerUpdate | NoisedSums]] = {
        _FLOATS: PrivateUpdate,
        _INTEGERS: IntegerUpdate,
        _SUMS: NoisedSums,
    }
    return makers[kind](np.frombuffer(content, _LAYOUTS[kind], offset=start))


def _layout(update: NoisedUpdate) -> tuple[bytes, NDArray[Any]]:
    match update:
        case PrivateUpdate():
            return _FLOATS, update.values
        case ScaledUpdate():
            return _SCALED if update.integers.dtype == np.int32 else _SCALED_LONG, update.integers
        case IntegerUpdate():
            return _INTEGERS, update.integers
        case NoisedSums():
            return _SUMS, update.integers


def discard_updates(state: StateDir, until_round: int) -> None:
    """Those of rounds that happened or were given up: they have served, or never will."""
    for number in round_numbers(state):
        if number <= until_round:
            state.remove(round_file(number, _NAME))


def _purpose(plan: Digest, round_number: int) -> str:
    # One round's file does not open as another's.
    return f"{_PURPOSE}/{plan}/{round_number}"
