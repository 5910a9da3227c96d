"""Docstrings as `--help` shows them: paragraphs flow with the terminal, an example stands as it is typed."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable

EXAMPLE = "Example:"
_COLUMNS = 74
"""Of an example's lines, so that none is cut at 80 columns: typer and rich take some for margins."""


def help_of(command: Callable[..., None]) -> str:
    """The command's docstring. A long example is continued with backslashes, as a shell takes it."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(_as_shown(" ".join(paragraph.split("\n"))) for paragraph in paragraphs)


def _as_shown(paragraph: str) -> str:
    if not paragraph.startswith(f"{EXAMPLE} "):
        return paragraph
    lines = [" "]
    for word in shlex.split(paragraph.removeprefix(EXAMPLE), posix=False):  # quotes stay where they are
        if len(f"{lines[-1]} {word} \\") > _COLUMNS:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {word}"
    return "\n\n".join([EXAMPLE, "\n".join(lines)])
