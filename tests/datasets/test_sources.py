from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cachefl_secure.cache.images import ImageList, image_folder
from cachefl_secure.datasets.folders import class_folder, write_folders
from cachefl_secure.datasets.schemes import parse_scheme
from cachefl_secure.datasets.sources import Columns, Source, csv_source, data_set_source, folder_source
from cachefl_secure.datasets.table import DATA_SETS
from cachefl_secure.errors import ConfigError
from tests.datasets.layouts import lay_out, picture, touch


def _own(root: Path, of_each: int = 10) -> Path:
    for shade, name in enumerate(("cat", "Sea horse", "dog")):
        for number in range(of_each):
            picture(root / name / f"{number}.png", 40 * shade + number)
    return root


def _csv(root: Path, text: str) -> Path:
    for name in "abcdef":
        touch(root / f"scans/{name}.png")
    (root / "records.csv").write_text(text)
    return root / "records.csv"


SITES = """path,label,site
scans/b.png,ill,Ward 2
scans/a.png,well,Ward 1
scans/c.png,"ill",Ward 1
"""


def _bytes_by_label(images: ImageList) -> Counter[tuple[int, bytes]]:
    return Counter(
        (label, (images.root / path).read_bytes())
        for path, label in zip(images.paths, images.labels, strict=True)
    )


@pytest.mark.parametrize("linkable", [True, False], ids=["hard links", "copies"])
def test_join_finds_in_each_folder_exactly_its_silos_images(
    tmp_path: Path, linkable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linkable:

        def refused(*_: object) -> None:
            raise OSError(1, "no hard links here")

        monkeypatch.setattr(os, "link", refused)
    source = folder_source(_own(tmp_path / "own"))
    partition = source.draw(parse_scheme("dirichlet:0.5"), 3, 1, 0.2)
    places = source.places(partition)
    assert write_folders(tmp_path / "out", partition, places) == 30
    classes = (tmp_path / "out/classes.txt").read_text().splitlines()
    assert classes == ["Sea horse", "cat", "dog"]
    for place in ("silo-1", "silo-2", "silo-3", "held-out"):
        assert _bytes_by_label(image_folder(tmp_path / "out" / place, classes)) == _bytes_by_label(
            places[place]
        )
    assert len(places["held-out"]) == 6
    files = list((tmp_path / "out").rglob("*.png"))
    assert {file.stat().st_nlink for file in files} == {2 if linkable else 1}
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))
    assert write_folders(tmp_path / "out", partition, places) == 30  # again, as after an interruption


def test_every_image_of_a_data_set_reaches_a_folder_that_join_accepts(tmp_path: Path) -> None:
    """FGVC has a class "F/A-18", which no folder can be called."""
    lay_out(DATA_SETS["fgvc_aircraft"], tmp_path)
    source = data_set_source(DATA_SETS["fgvc_aircraft"], tmp_path, shots=4, rng_seed=2)
    partition = source.draw(parse_scheme("pathological:1"), 3, 2, 0.2)
    write_folders(tmp_path / "out", partition, source.places(partition))
    classes = (tmp_path / "out/classes.txt").read_text().splitlines()
    assert classes[1] == "F/A-18"
    found = {p.name: image_folder(p, classes) for p in (tmp_path / "out").iterdir() if p.is_dir()}
    assert {name: len(images) for name, images in found.items()} == {
        **{f"silo-{number}": 4 for number in (1, 2, 3)},
        "held-out": 24,  # all of test: a data set holds out no training images
        "validation": 12,
    }
    assert sorted(found[f"silo-{number}"].labels for number in (1, 2, 3)) == [(0,) * 4, (1,) * 4, (2,) * 4]


def test_images_of_one_name_in_one_class_are_kept_apart(tmp_path: Path) -> None:
    for number, inner in enumerate(("indoor", "outdoor")):
        picture(tmp_path / "own/church" / inner / "1.png", number)
    picture(tmp_path / "own/barn/1.png", 9)
    source = folder_source(tmp_path / "own")
    partition = source.draw(parse_scheme("iid"), 1, 0, 0.0)
    places = source.places(partition)
    write_folders(tmp_path / "out", partition, places)
    assert _bytes_by_label(image_folder(tmp_path / "out/silo-1", ("barn", "church"))) == _bytes_by_label(
        source.records
    )


def test_a_link_in_the_source_becomes_a_file(tmp_path: Path) -> None:
    """A hard link to a link would be a link, and one that leaves the folder."""
    picture(tmp_path / "elsewhere.png", 3)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/a.png").symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "records.csv").write_text("path,label\nscans/a.png,well\n")
    source = csv_source(tmp_path / "records.csv", Columns())
    partition = source.draw(parse_scheme("iid"), 1, 0, 0.0)
    write_folders(tmp_path / "out", partition, source.places(partition))
    assert not (tmp_path / "out/silo-1/well/a.png").is_symlink()
    assert len(image_folder(tmp_path / "out/silo-1", ("well",))) == 1


def test_a_folder_with_other_files_or_another_partition_is_left_alone(tmp_path: Path) -> None:
    source = folder_source(_own(tmp_path / "own"))
    first, second = (source.draw(parse_scheme("iid"), 3, seed, 0.2) for seed in (0, 1))
    touch(tmp_path / "mine/letter.txt")
    with pytest.raises(ConfigError, match="holds other files"):
        write_folders(tmp_path / "mine", first, source.places(first))
    write_folders(tmp_path / "out", first, source.places(first))
    before = sorted(file for file in (tmp_path / "out").rglob("*"))
    with pytest.raises(ConfigError, match="another partition"):
        write_folders(tmp_path / "out", second, source.places(second))
    assert sorted(file for file in (tmp_path / "out").rglob("*")) == before


def test_a_class_whose_folder_would_be_hidden_is_refused() -> None:
    assert class_folder("2012 Ram C/V") == "2012 Ram C_V"
    with pytest.raises(ConfigError):
        class_folder(".hidden")


def test_real_sites_become_silos(tmp_path: Path) -> None:
    source = csv_source(_csv(tmp_path, SITES), Columns())
    assert source.records.paths == ("scans/a.png", "scans/b.png", "scans/c.png")
    assert source.records.classes == ("ill", "well")
    assert source.records.labels == (1, 0, 0)
    partition = source.draw(parse_scheme("by-column"), 5, 0, 0.0)
    assert partition.silos == {"ward-1": (0, 2), "ward-2": (1,)}


def test_columns_may_have_other_names_and_paths_another_root(tmp_path: Path) -> None:
    text = "\ufeffimage;x,finding,clinic\na.png,ill,north\n".replace(
        ";x", ""
    )  # a byte order mark, as Excel writes
    file = _csv(tmp_path, text)
    columns = Columns(path="image", label="finding", site="clinic")
    source = csv_source(file, columns, root=tmp_path / "scans")
    assert (source.records.paths, source.sites) == (("a.png",), ("north",))


def test_without_a_column_of_sites_by_column_is_refused(tmp_path: Path) -> None:
    for source in (
        csv_source(_csv(tmp_path, "path,label\nscans/a.png,ill\n"), Columns()),
        folder_source(_own(tmp_path / "own")),
    ):
        with pytest.raises(ConfigError, match="by-column needs --csv"):
            source.draw(parse_scheme("by-column"), 2, 0, 0.0)


def test_absent_images_of_a_csv_are_left_out_only_on_request(tmp_path: Path) -> None:
    file = _csv(tmp_path, SITES + "scans/x.png,ill,Ward 9\n")
    number = len(file.read_text().splitlines())
    with pytest.raises(ConfigError, match=rf"line {number}: 'scans/x\.png' is absent in .*--skip-missing"):
        csv_source(file, Columns())
    source = csv_source(file, Columns(), skip_missing=True)
    assert (source.missing, source.sites) == (1, ("Ward 1", "Ward 2", "Ward 1"))


BAD_CSV = {
    "no label": "path,site\nscans/a.png,x\n",
    "no path": "file,label\nscans/a.png,x\n",
    "an empty label": "path,label\nscans/a.png,\n",
    "a short line": "path,label\nscans/a.png\n",
    "an empty site": "path,label,site\nscans/a.png,x,y\nscans/b.png,x, \n",
    "a path upwards": "path,label\n../scans/a.png,x\n",
    "an absolute path": "path,label\n/etc/passwd,x\n",
    "the same image twice": "path,label\nscans/a.png,x\nscans/a.png,y\n",
    "an open quote": 'path,label\nscans/a.png,"x\n',
    "nothing": "",
}


@pytest.mark.parametrize("what", BAD_CSV)
def test_a_csv_that_says_no_records_is_refused(what: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        csv_source(_csv(tmp_path, BAD_CSV[what]), Columns())


def test_a_site_called_like_another_folder_is_refused(tmp_path: Path) -> None:
    file = _csv(tmp_path, "path,label,site\nscans/a.png,x,Held out\nscans/b.png,x,north\n")
    source = csv_source(file, Columns())
    partition = source.draw(parse_scheme("by-column"), 2, 0, 0.0)
    with pytest.raises(ConfigError, match="held-out"):
        source.places(partition)


def _renamed(root: Path) -> Source:
    (root / "cat/3.png").rename(root / "cat/33.png")
    return folder_source(root)


def _moved(root: Path) -> Source:
    (root / "cat/3.png").rename(root / "dog/33.png")
    return folder_source(root)


def _more(root: Path) -> Source:
    picture(root / "cat/99.png", 1)
    return folder_source(root)


@pytest.mark.parametrize("change", [_renamed, _moved, _more])
def test_a_partition_is_not_applied_to_other_records(
    change: Callable[[Path], Source], tmp_path: Path
) -> None:
    partition = folder_source(_own(tmp_path)).draw(parse_scheme("iid"), 2, 0, 0.2)
    with pytest.raises(ConfigError):
        change(tmp_path).places(partition)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no images"):
        folder_source(tmp_path).draw(parse_scheme("iid"), 2, 0, 0.2)
    with pytest.raises(ConfigError, match="no such folder"):
        folder_source(tmp_path / "absent")


def test_absolute_paths_count_below_the_root(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / f"scans/{number}.png", number)
    file = tmp_path / "lists/scans.csv"
    file.parent.mkdir()
    rows = [f"{tmp_path / 'scans' / f'{number}.png'},{'xy'[number % 2]}" for number in range(4)]
    file.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"line 2: .*leaves .*lists; give a folder that holds all images by --root"
    ):
        csv_source(file, Columns())
    found = csv_source(file, Columns(), root=tmp_path)
    assert found.records.paths == tuple(f"scans/{number}.png" for number in range(4))
    rows[0] = f"{tmp_path}/lists/../../elsewhere.png,x"
    file.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    with pytest.raises(ConfigError, match="leaves"):
        csv_source(file, Columns(), root=tmp_path)


def test_what_join_would_merge_is_told_before_it_is_dealt_out(tmp_path: Path) -> None:
    for name in ("one hand", "one_hand"):
        picture(tmp_path / "own" / name / "1.png", 1)
    with pytest.raises(ConfigError, match="class folders 'one hand', 'one_hand' differ only"):
        folder_source(tmp_path / "own")
    listed = tmp_path / "own/list.csv"
    listed.write_text("path,label\none hand/1.png,One\none_hand/1.png,one\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="label: labels 'One', 'one' differ only"):
        csv_source(listed, Columns())
