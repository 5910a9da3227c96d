"""Error to exit code, one line and a hint. The only place where errors get words for the operator.

Style: standard error, prefix ``cachefl-secure:``, lower case, no full stop, the hint on a line of its own.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import typer

from cachefl_secure import errors

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ends for one class of error."""

    exit_code: int
    hint: str = ""


# The most specific class first: the first match decides.
_ENDINGS: tuple[tuple[type[BaseException], Ending], ...] = (
    (errors.ConfigError, Ending(7)),
    (errors.LocalProtocolError, Ending(70, "this is a bug; please report it with the command you ran")),
    (errors.PeerError, Ending(3, "nothing was applied; ask that party what it runs, then try again")),
    (
        errors.RoundAborted,
        Ending(
            4,
            "nothing was revealed; see above who was missing, and run `cachefl-secure round` again when they are back",
        ),
    ),
    (
        errors.CohortExhausted,
        Ending(
            5,
            "admit another silo, found a new federation, or let the silos that decline raise their caps: "
            "epsilon_cap_local and epsilon_cap_aggregate in the silo.toml of their own directory, and with a shared "
            "ledger in that of the directory which the ledger was made in; each silo says which",
        ),
    ),
    (errors.BudgetExhausted, Ending(5, "this silo takes no further part; see `cachefl-secure budget`")),
    (errors.UnaccountedMechanism, Ending(5, "update cachefl-secure, or ask for another plan")),
    (
        errors.LedgerError,
        Ending(
            6, "restore the ledger from your latest copy; this silo takes part in nothing until it verifies"
        ),
    ),
    (
        errors.RecordRejected,
        Ending(6, "this round proves nothing as it is; keep a copy and compare it with another party's"),
    ),
    (
        errors.PlaceUnusable,
        Ending(
            8,
            "nothing was made yet: mount the folder or make the bucket, give its keys as fsspec takes them (such as "
            "FSSPEC_S3_KEY and FSSPEC_S3_SECRET), then run the command again",
        ),
    ),
    (
        errors.WrongPlace,
        Ending(
            8,
            "mount it, or give this machine's own path to it by `join --engine`; if it was emptied on purpose, the "
            "coordinator removes its file engine/place and runs `round`",
        ),
    ),
    (errors.TransportError, Ending(8, "see that this machine reaches it, then run the command again")),
    (errors.MissingExtra, Ending(2)),
    (errors.CacheflError, Ending(1)),
    (PermissionError, Ending(7, "check who owns the directory")),
    (OSError, Ending(7)),
)


def report(error: BaseException, hint: str | None = None) -> int:
    """Prints the error's line and hint on standard error and returns the exit code.

    ``hint`` stands in place of the usual one, where a command knows more.
    """
    for kind, ending in _ENDINGS:
        if isinstance(error, kind):
            say(_sentence(error))
            if advice := ending.hint if hint is None else hint:
                say(f"hint: {advice}")
            return ending.exit_code
    raise error


def say(text: str) -> None:
    """One line to the operator, on standard error. What others wrote may be quoted in it: it moves no cursor."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    print(f"cachefl-secure: {shown}", file=sys.stderr)


def explained(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose expected errors end in a sentence and an exit code, never in a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            say("interrupted; nothing is lost, run the command again (`round` with --until)")
            raise typer.Exit(130) from None
        except (errors.CacheflError, OSError) as error:
            raise typer.Exit(report(error)) from None

    return run


def option_of(choice: str) -> str:
    """The option that a choice is given by: ``images_per_class`` by ``--images-per-class``."""
    return f"--{choice.replace('_', '-')}"


def _sentence(error: BaseException) -> str:
    if isinstance(error, errors.ConfigError) and error.file == errors.OPTIONS:
        return f"{option_of(error.field)}: {error.reason}"
    if isinstance(error, errors.MissingExtra):
        return f"{error}; pip install 'cachefl-secure[{error.extra}]'"
    if isinstance(error, errors.RoundAborted):
        return f"round aborted: {error}"
    if isinstance(error, errors.RecordRejected):
        return f"record rejected at {error}"
    if isinstance(error, errors.LedgerError):
        return f"ledger: {error}"
    if isinstance(error, errors.BudgetExhausted):
        return f"budget exhausted: {error}"
    if isinstance(error, OSError):
        return f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
    return str(error)
