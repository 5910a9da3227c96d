"""Mistakes of init that can be known in a moment are told in one: without torch, by the option's name, nothing made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.claims import REPOSITORY

PROGRAM = """
import json, sys
sys.modules['torch'] = None  # importing it is an error
from typer.testing import CliRunner
from cachefl_secure_cli.main import app
found = {}
for name, words in json.load(sys.stdin).items():
    ended = CliRunner(env={'COLUMNS': '400'}).invoke(app, ['init', *words])
    found[name] = [ended.exit_code, ended.stderr, repr(ended.exception)]
print(json.dumps(found))
"""

CASES: dict[str, tuple[str, str]] = {
    "doubled class": ("new --classes cat,dog,cat --generator text", "--classes: named more than once: 'cat'"),
    "one class": ("new --classes cat --generator text", "--classes: two or more are needed, found 1"),
    "no file of classes": ("new --classes @absent.txt", "--classes: @absent.txt: No such file or directory"),
    "classes in Latin-1": ("new --classes @latin.txt", "--classes: @latin.txt: is not UTF-8 text"),
    "a long class": (f"new --generator text --classes a,{'b' * 201}", "--classes: must have at most 200"),
    "classes of no digit": ("new --classes cat,dog", "--generator: the embedded one draws digits only"),
    "no epsilon": ("new --epsilon 0", "--epsilon: must be more than 0, is 0"),
    "no local epsilon": ("new --epsilon-local -1", "--epsilon-local: must be more than 0, is -1"),
    "local without epsilon": ("new --mechanism local --epsilon 0", "--epsilon: must be more than 0, is 0"),
    "release without epsilon": ("new --mechanism statistics --epsilon 0", "--epsilon: must be more than 0"),
    "infinite epsilon": ("new --epsilon inf", "--epsilon: must be finite"),
    "large delta": ("new --delta 0.1", "--delta: must be at most 0.001, is 0.1"),
    "no delta": ("new --delta 0", "--delta: must be at least 1e-12, is 0"),
    "no keys": ("new -k 0", "--images-per-class: must be at least 1, is 0"),
    "no alpha": ("new --alpha 0", "--alpha: must be more than 0, is 0"),
    "negative beta": ("new --beta -2", "--beta: must be more than 0, is -2"),
    "no rate": ("new --learning-rate 0", "--learning-rate: must be more than 0, is 0"),
    "server's rate": ("new --server momentum --server-rate 0", "--server-rate: must be more than 0, is 0"),
    "server's momentum": ("new --server adam --server-momentum 1", "--server-momentum: must be at least 0"),
    "no name": ("new --name=", "--name: must have at least 1 character, has 0"),
    "template without a place": ("new --template photo", "--template: 'photo' must hold exactly one {}"),
    "fewer candidates than keys": ("new -k 4 --candidates 3", "--candidates: 3 a class, of which the best 4"),
    "leave-one-out of one": ("new -k 1 --alpha-beta leave-one-out", "--alpha-beta: leave-one-out needs"),
    "alpha twice": ("new --alpha-beta leave-one-out --alpha 2", "--alpha: is chosen by --alpha-beta leave"),
    "a table of nothing": ("new --alpha-beta table", "--alpha-beta: table needs --dataset"),
    "misspelt table": (
        "new --alpha-beta tabel",
        "--alpha-beta: 'tabel' is none of given, table, leave-one-out",
    ),
    "a grid of nobody": (
        "new --alpha-beta grid:absent",
        "--alpha-beta: absent: no such directory; name that",
    ),
    "alpha beside a grid": (
        "new --alpha-beta grid:full --alpha 2",
        "--alpha: is chosen by --alpha-beta grid:full",
    ),
    "a grid without epsilon": ("new --mechanism grid --epsilon 0", "--epsilon: must be more than 0, is 0"),
    "a grid of one pair": (
        "new --mechanism grid --alphas 1 --betas 1",
        "--alphas: with betas they must make 2 to",
    ),
    "none unconfirmed": ("new --mechanism none", "--mechanism: none gives no privacy at all; confirm with"),
    "more survivors than silos": ("new --minimum-survivors 4", "--minimum-survivors: of the 3 silos"),
    "one survivor": ("new --minimum-survivors 1", "--minimum-survivors: must be at least 2, is 1"),
    "too many colluders": (
        "new --colluders 2",
        "--colluders: a sum of 3 silos hides two honest updates from",
    ),
    "an occupied directory": ("full", "full: exists already and is not empty"),
    "a file for a directory": ("latin.txt", "latin.txt: exists already and is not a directory"),
    "unknown prompts": ("new --prompts poem", "--prompts: write paper, dataset or file:PATH"),
    "folder of other classes": (
        "new --classes cat,dog --generator folder:full",
        "--generator: folder:full: no class is called 'wolf'; classes are 'cat', 'dog'",
    ),
    "no folder of pictures": ("new --generator folder:absent", "--generator: folder:absent: no such folder"),
    "an empty folder": ("new --generator folder:empty", "--generator: folder:empty: holds no picture"),
    "no features": ("new --generator features:absent.npz", "--generator: features:absent.npz: no such file"),
    "features of no kind": ("new --generator features:latin.txt", "latin.txt: is neither .npz, .safetensors"),
    "pictures as a pipeline": (
        "new --generator full",
        "--generator: full: no model_index.json in it, as a diffusers pipeline has; a folder of pictures is given as "
        "folder:full",
    ),
    "no pipeline": ("new --generator ./absent", "--generator: ./absent: no such folder, and no model id"),
    "no encoder": ("new --classes a,b --clip local-dir:absent", "absent: no such folder"),
    "no weights": ("new --classes a,b --clip local-dir:full", "missing: the weights of the encoder"),
    "no tag": ("new --classes a,b --clip RN50", "--pretrained: needed with --clip RN50: a tag of open_clip"),
    "unknown data set": ("new --dataset mnist", "--dataset: 'mnist' is none of imagenet, caltech101, "),
    "a data set without its files": ("new --dataset dtd", "--root: DTD's class names are read from its own"),
    "files of nothing": ("new --root empty", "--root: goes with --dataset"),
}
SECONDS_OF_TYPER: dict[str, tuple[str, str]] = {
    "mechanism": ("new --mechanism locl", "'distributed', 'local', 'statistics', 'grid', 'none'"),
    "trained": ("new --trained key", "'keys', 'class-residual'"),
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str, str]]]:
    """All cases in one process."""
    folder = tmp_path_factory.mktemp("init")
    (folder / "full" / "wolf").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "latin.txt").write_bytes("Füchse\nWölfe\n".encode("latin-1"))
    words = {name: given.split() for name, (given, _) in (CASES | SECONDS_OF_TYPER).items()}
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "cli")])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(words),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, {name: tuple(found) for name, found in json.loads(done.stdout).items()}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_in_one_sentence_before_torch_is_imported(
    case: str, ended: tuple[Path, dict[str, tuple[int, str, str]]]
) -> None:
    folder, found = ended
    exit_code, said, exception = found[case]
    assert exit_code == 7, (said, exception)
    assert CASES[case][1] in said
    assert said.startswith("cachefl-secure: ")
    assert said.count("\n") == 1
    assert "options" not in said
    assert "Expected `" not in said
    assert not (folder / "new").exists()


@pytest.mark.parametrize("case", SECONDS_OF_TYPER)
def test_a_misspelt_choice_lists_those_that_there_are(
    case: str, ended: tuple[Path, dict[str, tuple[int, str, str]]]
) -> None:
    exit_code, said, _ = ended[1][case]
    assert exit_code == 2
    assert SECONDS_OF_TYPER[case][1] in " ".join(said.split())


def test_plan_names_options_as_init_does() -> None:
    from typer.testing import CliRunner

    from cachefl_secure_cli.main import app

    for words, told in (
        ("--delta 1", "--delta: must be at most 0.001, is 1"),
        (
            "--mechanism grid --epsilon 0.0005",
            "--epsilon: 0.0005 asks for more noise than a plan may hold; raise it",
        ),
        (
            "--mechanism statistics --epsilon 8 --epsilon-local 0.001",
            "--epsilon-local: 0.001 asks for more noise than a plan may hold; raise it",
        ),
    ):
        refused = CliRunner().invoke(app, ["plan", *words.split()])
        assert refused.exit_code == 7
        assert refused.stderr == f"cachefl-secure: {told}\n"
