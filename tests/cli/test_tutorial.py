"""The tutorial of the README, typed as it stands: a process for every terminal, from nothing to a private model."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.claims import REPOSITORY
from tests.ports import free_port

pytestmark = pytest.mark.slow

MAILBOX, FLARE = "## Across sites, in four terminals", "### The same over NVIDIA FLARE"
PATIENCE_SECONDS = 240.0


def typed(heading: str) -> list[list[str]]:
    """The commands of the tutorial under this heading, in order."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = text[text.index(heading) :].split("```")[1]
    lines = (shlex.split(line, comments=True) for line in block.splitlines())
    return [words for words in lines if words]


def our_commands(heading: str) -> list[list[str]]:
    """Those of this program, without its name."""
    return [words[1:] for words in typed(heading) if words[0] == "cachefl-secure"]


class Terminals:
    """Runs commands in one folder, as several people would."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        paths = (REPOSITORY, REPOSITORY / "cli")
        self._environment = {
            **os.environ,
            "PWD": str(folder),
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "COLUMNS": "120",
        }
        self.serving: dict[str, subprocess.Popen[bytes]] = {}

    def _words(self, words: list[str]) -> list[str]:
        return [
            sys.executable,
            "-m",
            "cachefl_secure_cli",
            *(w.replace("$PWD", str(self._folder)) for w in words),
        ]

    def run(self, words: list[str], *, say: str = "") -> str:
        ran = subprocess.run(
            self._words(words),
            cwd=self._folder,
            env=self._environment,
            input=say,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert ran.returncode == 0, (words, ran.stdout, ran.stderr)
        return ran.stdout

    def copy(self, source: str, target: str) -> None:
        shutil.copyfile(self._folder / source, self._folder / target)

    def start(self, name: str, words: list[str]) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self.serving[name] = subprocess.Popen(
                self._words(words), cwd=self._folder, env=self._environment, stdout=log, stderr=log
            )

    def said(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(encoding="utf-8")

    def all_say(self, what: str) -> bool:
        return all(what in self.said(name) for name in self.serving)

    def wait_for(self, what: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        while not what():
            dead = [name for name, process in self.serving.items() if process.poll() is not None]
            assert not dead, {name: self.said(name) for name in dead}
            assert time.monotonic() < until, {name: self.said(name) for name in self.serving}
            time.sleep(0.1)

    def end(self) -> dict[str, int]:
        for process in self.serving.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(PATIENCE_SECONDS) for name, process in self.serving.items()}


def follow(terminals: Terminals, commands: list[list[str]], until: str) -> dict[str, str]:
    """Types the commands; the coordinator's first after the silos' waits until all have said ``until``."""
    outputs: dict[str, str] = {}
    for program, *words in commands:
        if program == "cp":
            terminals.copy(*words)
        elif words[0] == "join":
            terminals.start(words[words.index("--name") + 1], words)
        else:
            if words[0] == "admit":
                terminals.wait_for(lambda: terminals.all_say(until))
            outputs[" ".join(words[:2])] = terminals.run(words, say="y\n" if words[0] == "admit" else "")
    return outputs


@pytest.mark.parametrize("heading", [MAILBOX, FLARE])
def test_six_commands_and_no_edited_file_lead_to_the_first_private_round(heading: str) -> None:
    names = [words[0] for words in our_commands(heading) if words[0] != "demo"]
    assert names[: names.index("round") + 1] == ["init", "join", "join", "join", "admit", "round"]


def test_the_tutorial_leads_from_nothing_to_a_private_model(tmp_path: Path) -> None:
    terminals = Terminals(tmp_path)
    try:
        outputs = follow(terminals, typed(MAILBOX), "waiting for the coordinator")
    finally:
        codes = terminals.end()
    assert codes == {"clinic-1": 0, "clinic-2": 0, "clinic-3": 0}
    assert all(f"clinic-{i}" in outputs["admit coordinator"] for i in (1, 2, 3))
    assert len(re.findall(r"3 of 3", outputs["round coordinator"])) == 2
    assert outputs["status coordinator"].count("holds round 2") == 3
    assert "epsilon" in outputs["budget clinic-1"]
    assert re.search(r"^ok +\(11\)", outputs["ledger verify"], re.MULTILINE)
    for name in terminals.serving:
        assert "round 2 of 5 is recorded and verified" in terminals.said(name)


@pytest.mark.skipif(
    importlib.util.find_spec("nvflare") is None, reason="the extra [nvflare] is not installed"
)
def test_the_tutorial_over_flare_leads_to_a_private_model(tmp_path: Path) -> None:
    terminals = Terminals(tmp_path)
    terminals.run(["demo", "digits", "--images-only"])
    port = free_port()
    commands = [[word.replace(":8002", f":{port}") for word in words] for words in typed(FLARE)]
    try:
        outputs = follow(terminals, commands, "waiting for the coordinator's package")
    finally:
        codes = terminals.end()
    assert codes == {"site-1": 0, "site-2": 0, "site-3": 0}
    assert len(re.findall(r"3 of 3", outputs["round flare"])) == 2
    assert re.search(r"^ok +\(11\)", outputs["ledger verify"], re.MULTILINE)


def test_the_service_of_the_readme_starts_a_command_that_exists() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, command, *_ = shlex.split(line)
    assert Path(program).name == "cachefl-secure"
    assert command == "join"
