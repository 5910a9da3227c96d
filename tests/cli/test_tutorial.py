"""The tutorial of the README, typed as it stands: a process for every terminal, from nothing to a private model."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.claims import REPOSITORY

pytestmark = pytest.mark.slow

HEADING = "## Across sites, in four terminals"
PATIENCE_SECONDS = 240.0


def typed() -> list[list[str]]:
    """The commands of the tutorial, in order, without the program's name."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = text[text.index(HEADING) :].split("```")[1]
    return [shlex.split(line)[1:] for line in block.splitlines() if line.startswith("cachefl-secure ")]


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

    def start(self, name: str, words: list[str]) -> None:
        with (self._folder / f"{name}.log").open("wb") as log:
            self.serving[name] = subprocess.Popen(
                self._words(words), cwd=self._folder, env=self._environment, stdout=log, stderr=log
            )

    def said(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text(encoding="utf-8")

    def all_wait(self) -> bool:
        return all("waiting for the coordinator" in self.said(name) for name in self.serving)

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


def test_the_tutorial_leads_from_nothing_to_a_private_model(tmp_path: Path) -> None:
    terminals, commands = Terminals(tmp_path), typed()
    until_trained = [words[0] for words in commands if words[0] != "demo"]
    assert until_trained[: until_trained.index("round") + 1] == [
        "init",
        "join",
        "join",
        "join",
        "admit",
        "round",
    ]
    try:
        outputs: dict[str, str] = {}
        for words in commands:
            if words[0] == "join":
                terminals.start(words[words.index("--name") + 1], words)
                continue
            if words[0] == "admit":
                terminals.wait_for(terminals.all_wait)
            outputs[" ".join(words[:2])] = terminals.run(words, say="y\n" if words[0] == "admit" else "")
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


def test_the_service_of_the_readme_starts_a_command_that_exists() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, command, *_ = shlex.split(line)
    assert Path(program).name == "cachefl-secure"
    assert command == "join"
