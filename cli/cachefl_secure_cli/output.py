"""How results are printed: tables for people, one JSON envelope for programs, bars for the patient."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.table import Table

from cachefl_secure.federation.ports import Progress

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]

_ENVELOPE_VERSION = 1


def console() -> Console:
    """Standard output, found anew each time so that a captured stream is honoured."""
    return Console(soft_wrap=True, highlight=False)


def print_json(command: str, result: Any) -> None:
    """``{"version": 1, "command": ..., "result": ...}`` on standard output; infinity is the string "inf"."""
    envelope = {"version": _ENVELOPE_VERSION, "command": command, "result": _plain(result)}
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(envelope), indent=2).decode() + "\n")


def write_report(path: Path, result: Any) -> None:
    """The result as JSON in a file, infinity as the string "inf"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(_plain(result)), indent=2) + b"\n")


def read_report(path: Path) -> Any:
    """What ``write_report`` wrote."""
    return msgspec.json.decode(path.read_bytes())


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB elsewhere


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> Table:
    """A table; columns under a heading are right-aligned where every cell begins with a digit or a sign."""
    made = Table(
        title=title,
        title_justify="left",
        caption=caption or None,
        caption_justify="left",
        show_header=any(columns),
        box=box.ROUNDED if any(columns) else box.SIMPLE,
    )
    for index, column in enumerate(columns):
        # On a narrow terminal every column gives way by wrapping, and none is cut: a name must stay readable.
        longest = max((len(row[index]) for row in rows), default=1)
        made.add_column(
            column,
            justify="right" if index and any(columns) and _is_numeric(rows, index) else "left",
            overflow="fold",
            min_width=min(longest, 14 if index == 0 else 6),
        )
    for row in rows:
        made.add_row(*row)
    return made


def _is_numeric(rows: Sequence[Sequence[str]], index: int) -> bool:
    # Fingerprints begin with a digit now and then.
    return all(re.fullmatch(r"[-+]?\d[\d.,]*( .{0,24})?|-", row[index]) for row in rows)


def percent(fraction: float) -> str:
    return "-" if fraction != fraction else f"{100 * fraction:.1f} %"


def epsilon_text(epsilon: float) -> str:
    """Rounded up: a printed epsilon is never smaller than the real one."""
    from cachefl_secure.privacy.statements import rounded_up

    return "not private" if epsilon == float("inf") else rounded_up(epsilon)


@contextlib.contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Progress]:
    """A bar on standard error for each kind of work that reports to it; nothing when ``quiet``."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    bars = RichProgress(*columns, console=Console(stderr=True), disable=quiet)
    tasks: dict[str, Any] = {}

    def show(done: int, total: int, what: str) -> None:
        if not tasks:
            bars.start()  # not before there is something to show
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()
