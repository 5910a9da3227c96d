"""Help fits a terminal of 80 columns: every command has an example that can be typed as it is shown."""

from __future__ import annotations

import inspect
import itertools
import shlex
from collections.abc import Iterator

import pytest
import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner

from cachefl_secure_cli.help_texts import help_of
from cachefl_secure_cli.main import app

_ROOT = typer.main.get_command(app)


def names(group: object = _ROOT, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from names(command, (*before, name))
        else:
            yield (*before, name)


def shown(*words: str) -> list[str]:
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*words, "--help"])
    assert result.exit_code == 0, result.output
    return [line.strip() for line in result.output.splitlines()]


def examples(lines: list[str]) -> list[list[str]]:
    """What a shell would take of what stands below `Example:`, word by word."""
    found = []
    for at, line in enumerate(lines):
        if line == "Example:":
            typed = lines[at + 2]
            for following in lines[at + 3 :]:
                if not typed.endswith("\\"):
                    break
                typed = typed.removesuffix("\\") + following
            found.append(shlex.split(typed))
    return found


@pytest.mark.parametrize("words", [*names()], ids=" ".join)
def test_every_command_has_an_example_that_can_be_typed_as_it_is_shown(words: tuple[str, ...]) -> None:
    command = _ROOT
    for name in words:
        assert isinstance(command, TyperGroup)
        command = command.commands[name]
    source = inspect.cleandoc(command.callback.__doc__ or "").split("Example: ")[1:]
    found = examples(shown(*words))
    assert found == [shlex.split(text.partition("\n\n")[0]) for text in source]
    assert len(found) == 1
    program, *typed = found[0]
    assert (program, tuple(typed[: len(words)])) == ("cachefl-secure", words)
    with command.make_context(words[-1], typed[len(words) :]) as parsed:  # refuses options that there are not
        assert parsed.params


@pytest.mark.parametrize("words", [(), *names()], ids=" ".join)
def test_help_is_within_80_columns_and_its_paragraphs_flow(words: tuple[str, ...]) -> None:
    lines = shown(*words)
    assert max(map(len, lines)) <= 80
    prose = lines[: next(at for at, line in enumerate(lines) if line.startswith("╭"))]
    for line, following in itertools.pairwise(prose):
        first, *_ = [*following.split(), ""]
        if line and first and not line.endswith("\\"):
            assert len(line) + 1 + len(first) > 74, f"broken too early: {line!r}"


def test_a_long_example_is_continued_between_words_and_not_within_quotes() -> None:
    def command() -> None: ...

    command.__doc__ = f"""Do it,
    and at once.

    Example: cachefl-secure do {"a" * 30} --expect "1f2e {"3" * 40} dd" --last
    """
    assert help_of(command).splitlines() == [
        "Do it, and at once.",
        "",
        "Example:",
        "",
        f"  cachefl-secure do {'a' * 30} --expect \\",
        f'      "1f2e {"3" * 40} dd" --last',
    ]


@pytest.mark.parametrize(
    ("command", "panels"),
    [
        (
            "init",
            [
                *("Options", "Classes and encoder", "Pictures", "Cache model", "Privacy", "Training"),
                *("Secure sum", "Messages"),
            ],
        ),
        ("join", ["Options", "Records", "Privacy", "Messages"]),
    ],
)
def test_long_help_is_grouped_and_no_group_is_long(command: str, panels: list[str]) -> None:
    lines = shown(command)
    heads = [at for at, line in enumerate(lines) if line.startswith("╭")]
    assert [lines[at].strip("╭─╮ ") for at in heads] == ["Arguments", *panels]
    for at, end in itertools.pairwise([*heads, len(lines)]):
        assert sum(line.startswith("│ --") for line in lines[at:end]) <= 11


def test_an_option_reads_alike_in_every_command() -> None:
    """Of those that several commands take with the same meaning."""
    found: dict[str, set[str]] = {}
    for words in names():
        command = _ROOT
        for name in words:
            assert isinstance(command, TyperGroup)
            command = command.commands[name]
        for parameter in command.params:
            for option in {"--offline", "--json", "--device"} & set(parameter.opts):
                found.setdefault(option, set()).add(str(getattr(parameter, "help", "")))
    assert {option: len(texts) for option, texts in found.items()} == {
        "--offline": 1,
        "--json": 1,
        "--device": 1,
    }
