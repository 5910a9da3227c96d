"""partition: from a published layout, from a folder and from a CSV; what it prints, writes and refuses."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET
from PIL import Image
from typer.testing import CliRunner, Result

from cachefl_secure.cache.images import image_folder
from cachefl_secure.datasets.partition import read_partition
from cachefl_secure.datasets.table import DATA_SETS
from cachefl_secure_cli.main import app
from tests.datasets.layouts import lay_out, picture


def invoke(*arguments: str | Path | float) -> Result:
    return CliRunner().invoke(app, ["partition", *map(str, arguments)])


def run(*arguments: str | Path | float) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output + result.stderr
    found: dict[str, Any] = json.loads(result.stdout)["result"]
    return found


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for shade, name in enumerate(("cat", "dog")):
        for number in range(20):
            picture(tmp_path / "own" / name / f"{number}.png", 40 * shade + number)
    return tmp_path / "own"


def test_a_data_set_is_dealt_out_with_file_folders_and_figure(tmp_path: Path) -> None:
    lay_out(DATA_SETS["caltech101"], tmp_path / "data", of_each=16)
    out, figure = tmp_path / "parts", tmp_path / "split.png"
    source = ("--dataset", "Caltech101", "--root", tmp_path / "data", "--shots", 4)
    law = ("--scheme", "dirichlet:0.5", "--silos", 2, "--seed", 3)
    found = run(tmp_path / "split.json", *source, *law, "--folders", out, "--figure", figure)
    partition = read_partition(tmp_path / "split.json")
    assert found["digest"] == partition.digest
    assert read_partition(out / "partition.json") == partition
    classes = (out / "classes.txt").read_text().splitlines()
    sizes = {name: len(image_folder(out / name, classes)) for name in ("silo-1", "silo-2")}
    assert sizes == {name: silo["records"] for name, silo in found["silos"].items()}
    assert sum(sizes.values()) == 12
    assert found["others"] == {"held-out": 12, "validation": 12}
    with Image.open(figure) as image:
        assert image.format == "PNG"
        assert len(image.convert("RGB").getcolors(1 << 24) or ()) > 50


def test_the_same_seed_makes_the_same_file_and_another_seed_does_not_replace_it(
    own: Path, tmp_path: Path
) -> None:
    first = run(tmp_path / "a.json", "--images", own)
    assert run(tmp_path / "a.json", "--images", own)["digest"] == first["digest"]
    raw = (tmp_path / "a.json").read_bytes()
    run(tmp_path / "b.json", "--images", own)
    assert (tmp_path / "b.json").read_bytes() == raw
    refused = invoke(tmp_path / "a.json", "--images", own, "--seed", 1)
    assert refused.exit_code == 7
    assert "another partition lies here" in refused.stderr
    assert (tmp_path / "a.json").read_bytes() == raw


def test_init_is_told_to_take_the_file_which_names_classes_and_data_set(own: Path, tmp_path: Path) -> None:
    lay_out(DATA_SETS["eurosat"], tmp_path)
    shown = invoke(tmp_path / "a.json", "--dataset", "eurosat", "--root", tmp_path, "--silos", 2)
    assert shlex.split(shown.stdout.partition("for init: ")[2]) == ["--dataset", str(tmp_path / "a.json")]
    assert "compares with no paper's" in shown.stderr  # three classes of ten
    known = read_partition(tmp_path / "a.json")
    assert (known.data_set, known.classes) == ("eurosat", ("Annual Crop Land", "b_two", "aardvark"))
    invoke(tmp_path / "b.json", "--images", own)
    assert (read_partition(tmp_path / "b.json").data_set, read_partition(tmp_path / "b.json").classes) == (
        UNSET,
        ("cat", "dog"),
    )


def test_own_images_hold_out_a_stratified_share(own: Path, tmp_path: Path) -> None:
    found = run(tmp_path / "a.json", "--images", own, "--held-out", 0.25, "--scheme", "iid", "--silos", 3)
    assert found["others"] == {"held-out": 10}
    assert [silo["records"] for silo in found["silos"].values()] == [10, 10, 10]


def test_a_csv_with_real_sites(own: Path, tmp_path: Path) -> None:
    lines = [
        f"{name}/{n}.png,{name},{'North' if n < 5 else 'South'}" for name in ("cat", "dog") for n in range(20)
    ]
    (own / "records.csv").write_text("path,label,clinic\n" + "\n".join(lines))
    source = ("--csv", own / "records.csv", "--site-column", "clinic")
    found = run(tmp_path / "a.json", *source, "--scheme", "by-column", "--held-out", 0)
    assert {name: silo["records"] for name, silo in found["silos"].items()} == {"north": 10, "south": 30}


def test_people_see_a_table_and_are_told_of_empty_silos(own: Path, tmp_path: Path) -> None:
    shown = invoke(tmp_path / "a.json", "--images", own, "--scheme", "dirichlet:0.02", "--silos", 6)
    assert shown.exit_code == 0
    assert all(f"silo-{number}" in shown.stdout for number in range(1, 7))
    empty = [name for name, held in read_partition(tmp_path / "a.json").silos.items() if not held]
    assert empty  # two classes over six silos, nearly whole
    assert f"no record for {', '.join(empty)}" in shown.stderr


REFUSED = {
    "no source": (),
    "two sources": ("--dataset", "dtd", "--images", "own"),
    "an unknown data set": ("--dataset", "mnist", "--root", "."),
    "no root": ("--dataset", "dtd"),
    "a root without it": ("--dataset", "dtd", "--root", "."),
    "shots of a folder": ("--images", "own", "--shots", "4"),
    "an unknown scheme": ("--images", "own", "--scheme", "even"),
    "too many silos": ("--images", "own", "--silos", "41"),
    "no silos": ("--images", "own", "--silos", "0"),
    "all held out": ("--images", "own", "--held-out", "1"),
    "a negative seed": ("--images", "own", "--seed", "-1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_is_said_in_a_sentence(
    what: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke("a.json", *REFUSED[what])
    assert result.exit_code == 7, result.output
    assert result.stderr.startswith("cachefl-secure: ")
    assert not Path("a.json").exists()


def test_the_hint_of_a_missing_data_set_is_its_published_layout(tmp_path: Path) -> None:
    said = invoke(tmp_path / "a.json", "--dataset", "dtd", "--root", tmp_path).stderr
    assert str(tmp_path / "dtd") in said
    assert "dtd/images/ and dtd/split_zhou_DescribableTextures.json" in said


def test_partitions_are_made_without_torch(own: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from cachefl_secure_cli.main import app\n"
        f"app(['partition', {str(tmp_path / 'a.json')!r}, '--images', {str(own)!r}, '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["result"]["records"] == 40
