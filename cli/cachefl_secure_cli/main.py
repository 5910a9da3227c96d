"""The command table."""

from __future__ import annotations

import importlib

import typer

from cachefl_secure_cli.help_texts import help_of

_COMMANDS = (
    "plan",
    "init",
    "join",
    "admit",
    "confirm",
    "rotate",
    "pause",
    "resume",
    "leave",
    "round",
    "status",
    "budget",
    "audit",
    "evaluate",
    "predict",
    "compare",
    "partition",
    "demo",
)

_GROUPS = ("ledger",)

# Local variables must never reach a terminal: one of them may be a seed.
app = typer.Typer(
    name="cachefl-secure",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Train one image classifier across institutions that may not share images.\n\n"
        "The coordinator runs init, admit and round; every institution (a silo) runs join, and confirm or rotate "
        "when the roster changes. "
        "A silo's images and features never leave it; what leaves is a noised update under masks. "
        "Begin with: cachefl-secure demo"
    ),
)

for _name in _COMMANDS:
    _module = importlib.import_module(f"cachefl_secure_cli.commands.{_name}")
    app.command(_name, help=help_of(_module.command))(_module.command)
for _name in _GROUPS:
    app.add_typer(importlib.import_module(f"cachefl_secure_cli.commands.{_name}").group, name=_name)


def _version(show: bool) -> None:
    if show:
        from cachefl_secure import __version__

        print(f"cachefl-secure {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None: ...
