"""README and program say the same: every command it shows exists with every option it uses."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from cachefl_secure_cli.main import app
from tests.claims import REPOSITORY

_ROOT = typer.main.get_command(app)


def shown(file: Path) -> list[list[str]]:
    """The ``cachefl-secure`` lines of the file's code blocks, continuation lines joined."""
    blocks = re.findall(r"```[a-z]*\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("cachefl-secure ")]


@pytest.mark.parametrize("words", shown(REPOSITORY / "README.md"), ids=lambda words: words[0])
def test_a_command_of_the_readme_exists_with_its_options(words: list[str]) -> None:
    assert isinstance(_ROOT, TyperGroup)
    command = _ROOT.commands[words[0]]
    if isinstance(command, TyperGroup):
        command = command.commands[words[1]]
    known = {option for parameter in command.params for option in parameter.opts}
    used = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
    assert used <= known


def test_the_readme_shows_every_command() -> None:
    assert isinstance(_ROOT, TyperGroup)
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert all(re.search(rf"\b{name}\b", text) for name in _ROOT.commands)
