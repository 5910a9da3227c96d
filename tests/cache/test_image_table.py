"""Tables of images: CSV and Parquet, told apart by their names, read by the same rules."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cachefl_secure.cache.image_table import image_table
from cachefl_secure.cache.sources import image_list
from cachefl_secure.errors import ConfigError, MissingExtra

CLASSES = ("cat", "Sea Horse", "fire_truck")
Rows = Sequence[tuple[object, object]]
Write = Callable[[Path, Rows], Path]


def write_csv(folder: Path, rows: Rows) -> Path:
    path = folder / "list.csv"
    path.write_text("".join(f"{a},{b}\n" for a, b in [("path", "label"), *rows]), encoding="utf-8")
    return path


def write_parquet(folder: Path, rows: Rows) -> Path:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = folder / "list.parquet"
    columns = {"path": [row[0] for row in rows], "label": [row[1] for row in rows], "age": [7] * len(rows)}
    parquet.write_table(pyarrow.table(columns), path)
    return path


both = pytest.mark.parametrize("write", [write_csv, write_parquet])


@both
def test_class_names_match_as_folders_do_and_paths_are_relative_to_the_table(
    write: Write, tmp_path: Path
) -> None:
    table = write(tmp_path, [("b.png", "sea_horse"), ("../x/./a.png", "CAT"), ("/data/c.png", "Fire Truck")])
    images = image_list(table, CLASSES, skip_missing=True)
    assert images.root == tmp_path
    assert images.paths == ("b.png", "../x/a.png", "/data/c.png")  # the table's order
    assert images.labels == (1, 0, 2)


@both
def test_numbers_are_class_numbers_unless_they_are_names(write: Write, tmp_path: Path) -> None:
    rows = [("a", 2), ("b", 0)]
    assert image_table(write(tmp_path, rows), CLASSES).labels == (2, 0)
    assert image_table(write(tmp_path, rows), ("2", "1", "0")).labels == (0, 2)


@both
@pytest.mark.parametrize("labels", [("cat", "1"), ("0", "3"), ("0", "-1"), ("cat", "wolf"), ("0", "1.0")])
def test_a_column_of_both_or_of_no_class_is_refused(
    write: Write, tmp_path: Path, labels: tuple[str, str]
) -> None:
    table = write(tmp_path, [("a", labels[0]), ("b", labels[1])])
    with pytest.raises(ConfigError, match=r"label: no class is called '.*; classes are 'cat'"):
        image_table(table, CLASSES)


@both
@pytest.mark.parametrize("again", ["a.png", "./a.png", "x/../a.png"])
def test_a_record_named_twice_would_count_twice_and_is_refused(
    write: Write, tmp_path: Path, again: str
) -> None:
    with pytest.raises(ConfigError, match=r"path: named more than once: 'a\.png'"):
        image_table(write(tmp_path, [("a.png", "cat"), (again, "cat")]), CLASSES)


@both
@pytest.mark.parametrize("kind", ["absolute", "link"])
def test_a_file_under_another_name_is_the_same_record(write: Write, tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    (tmp_path / "link.png").symlink_to("a.png")
    other = str(tmp_path / "a.png") if kind == "absolute" else "link.png"
    with pytest.raises(ConfigError, match="named more than once"):
        image_table(write(tmp_path, [("a.png", "cat"), (other, "cat")]), CLASSES)


@both
def test_a_record_without_a_file_is_told_by_number_and_path(write: Write, tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        (tmp_path / name).touch()
    table = write(tmp_path, [("a.png", "cat"), ("x/b.png", "cat"), ("c.png", "cat"), ("d.png", "cat")])
    with pytest.raises(
        ConfigError, match=r"record 2: 'x/b\.png' is not there, nor are those of 1 more record"
    ):
        image_list(table, CLASSES)
    assert len(image_list(table, CLASSES, skip_missing=True)) == 4  # --skip-unreadable lists them
    (tmp_path / "x").mkdir()
    (tmp_path / "x/b.png").touch()
    with pytest.raises(ConfigError, match=r"record 4: 'd\.png' is not there \(paths are relative"):
        image_list(table, CLASSES)


@both
def test_an_empty_path_is_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="empty in record 2"):
        image_table(write(tmp_path, [("a.png", "cat"), ("", "cat")]), CLASSES)


def test_a_csv_needs_its_header_and_may_have_other_columns_quotes_and_a_mark_of_excel(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("a.png,cat\n")
    with pytest.raises(ConfigError, match="the first line must name path and label"):
        image_table(table, CLASSES)
    table.write_bytes(b'\xef\xbb\xbfage,label,path\r\n7,cat,"a, b.png"\r\n')
    assert image_table(table, CLASSES).paths == ("a, b.png",)
    table.write_text("path,label\na.png\n")
    with pytest.raises(ConfigError, match="label"):
        image_table(table, CLASSES)
    for raw in (b"path,label\n\xff\xfe,cat\n", b'path,label\n"' + b"x" * 200_000):
        table.write_bytes(raw)
        with pytest.raises(ConfigError, match=r"not CSV in UTF-8"):
            image_table(table, CLASSES)


def test_bad_parquet_is_refused(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = tmp_path / "list.parquet"
    for raw in (b"", b"PAR1" * 9, b"\x80\x04."):
        table.write_bytes(raw)
        with pytest.raises(ConfigError, match="Parquet"):
            image_table(table, CLASSES)
    for columns, reason in [
        ({"path": ["a"]}, "no such column"),
        ({"path": ["a", None], "label": ["cat", "cat"]}, "1 empty"),
        ({"path": [1], "label": ["cat"]}, "expected text"),
        ({"path": ["a"], "label": [0.5]}, "expected text"),
    ]:
        parquet.write_table(pyarrow.table(columns), table)
        with pytest.raises(ConfigError, match=reason):
            image_table(table, CLASSES)
    dictionary = pyarrow.array(["cat", "cat"]).dictionary_encode()
    parquet.write_table(pyarrow.table({"path": ["a", "b"], "label": dictionary}), table)
    assert image_table(table, CLASSES).labels == (0, 0)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pyarrow" else find(name, *rest)
    )
    with pytest.raises(MissingExtra) as caught:
        image_table(tmp_path / "list.parquet", CLASSES)
    assert caught.value.extra == "parquet"


def test_what_is_no_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder or file"):
        image_list(tmp_path / "absent.csv2", CLASSES)
    (tmp_path / "list.txt").touch()
    with pytest.raises(ConfigError, match=r"neither a folder nor \.csv"):
        image_list(tmp_path / "list.txt", CLASSES)
    with pytest.raises(ConfigError, match="No such file"):
        image_list(tmp_path / "absent.csv", CLASSES)
