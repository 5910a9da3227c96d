"""What importing us pulls in, and what our source never calls."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.claims import REPOSITORY

SOURCES = sorted(
    path.relative_to(REPOSITORY)
    for package in ("cachefl_secure", "cli/cachefl_secure_cli")
    for path in (REPOSITORY / package).rglob("*.py")
)

# Modules that turn bytes into code, start programs, or draw guessable randomness.
BANNED_MODULES = {
    *(
        "pickle",
        "_pickle",
        "cPickle",
        "cloudpickle",
        "dill",
        "joblib",
        "shelve",
        "marshal",
        "yaml",
        "code",
        "codeop",
    ),
    *("imp", "runpy", "ctypes", "subprocess", "pty"),
    "random",
}
BANNED_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
BANNED_ATTRIBUTES = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "numpy.fromstring", "pandas.read_pickle"),
    *("os.system", "os.popen", "importlib.import_module"),
    "numpy.random",
}
ALLOWED = {
    # Drawing pictures for the built-in demonstration needs a seeded generator, and hides nothing.
    Path("cachefl_secure/embedded"): {"numpy.random", "random"},
    # Who gets which record of an experiment is drawn from a stated seed; pyproject.toml keeps it from noise and masks.
    Path("cachefl_secure/datasets"): {"numpy.random"},
    # The names of the commands are a constant tuple there.
    Path("cli/cachefl_secure_cli/main.py"): {"importlib.import_module"},
    # FLARE's server and client are programs: this one module starts them, by a constant command and no shell.
    Path("cachefl_secure/transport/flare/children.py"): {"subprocess"},
}


def aliases(tree: ast.AST) -> dict[str, str]:
    """Local names of imported modules and of what is imported from them."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names if alias.asname
            }
            names |= {
                alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names if not alias.asname
            }
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``np.random.rand`` as ``numpy.random.rand``; empty for anything but names and dots."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value, names)
        return f"{owner}.{node.attr}" if owner else ""
    return ""


def banned_uses(source: str) -> set[str]:
    """Every banned module, call and attribute in a source, under its full name."""
    tree = ast.parse(source)
    names = aliases(tree)
    found = {name.split(".")[0] for name in imported(tree)} & BANNED_MODULES
    for name in [
        *imported(tree),
        *(dotted(node, names) for node in ast.walk(tree) if isinstance(node, ast.expr)),
    ]:
        found |= {banned for banned in BANNED_ATTRIBUTES if f"{name}.".startswith(f"{banned}.")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found |= {dotted(node.func, names)} & BANNED_CALLS
            found |= {
                f"{keyword.arg}=True"
                for keyword in node.keywords
                if keyword.arg in {"allow_pickle", "shell", "trust_remote_code"}
                and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
            }
    return found


@pytest.mark.claim("C13")
@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_no_source_of_ours_runs_code_out_of_data_or_draws_guessable_numbers(path: Path) -> None:
    allowed = [names for place, names in ALLOWED.items() if path.is_relative_to(place)]
    assert banned_uses((REPOSITORY / path).read_text(encoding="utf-8")) <= set().union(*allowed)


@pytest.mark.claim("C13")
@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle"),
        ("def f():\n    import yaml", "yaml"),
        ("import torch as t\nt.load(x)", "torch.load"),
        ("from torch import load as fetch\nfetch(x)", "torch.load"),
        ("import numpy as np\nnp.random.rand(3)", "numpy.random"),
        ("from numpy.random import default_rng", "numpy.random"),
        ("import numpy as np\nf = np.random.default_rng", "numpy.random"),
        ("import numpy as np\nnp.load(x, allow_pickle=True)", "allow_pickle=True"),
        ("eval(x)", "eval"),
        ("exec(x)", "exec"),
        ("import os.path\nos.system(x)", "os.system"),
    ],
)
def test_the_search_sees_through_aliases(source: str, name: str) -> None:
    assert name in banned_uses(source)


def test_the_search_does_not_cry_wolf() -> None:
    assert (
        banned_uses("import torch, re\nre.compile(x)\ntorch.no_grad()\nmodel.eval()\nself.load(x)") == set()
    )


def test_every_source_file_is_searched() -> None:
    assert Path("cachefl_secure/plan.py") in SOURCES
    assert Path("cli/cachefl_secure_cli/main.py") in SOURCES


@pytest.mark.parametrize(
    "module",
    [
        "cachefl_secure",
        "cachefl_secure.plan",
        "cachefl_secure.crypto",
        "cachefl_secure.protocol",
        "cachefl_secure.protocol.silo",
        "cachefl_secure.protocol.coordinator",
        "cachefl_secure.privacy",
        "cachefl_secure.privacy.accounting",
        "cachefl_secure.privacy.ledger",
        "cachefl_secure.privacy.mechanism",
        "cachefl_secure.federation.budget",
        "cachefl_secure.federation.coordinator_files",
        "cachefl_secure.federation.record",
        "cachefl_secure_cli.main",
        "cachefl_secure_cli.commands.budget",
    ],
)
def test_what_an_auditor_needs_does_not_import_torch(module: str) -> None:
    program = f"import sys, {module}; print(*({{'torch', 'opacus', 'open_clip', 'diffusers'}} & sys.modules.keys()))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "cli")])}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-800:]
    assert run.stdout.split() == []
