from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachefl_secure.datasets.partition import (
    Partition,
    check_records,
    digest_of_records,
    draw_partition,
    partition_by_site,
    read_partition,
    write_partition,
)
from cachefl_secure.errors import ConfigError
from cachefl_secure.names import digest_of

LABELS = np.arange(600) % 10
NAMES = [f"class-{label}/{index:04d}.jpg" for index, label in enumerate(LABELS)]
SCHEMES = ("iid", "dirichlet:0.1", "pathological:3", "quantity:0.5")


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=5, max_size=80),
    scheme=st.sampled_from(["iid", "dirichlet:0.05", "dirichlet:100", "pathological:5", "quantity:0.1"]),
    silos=st.integers(1, 5),
    rng_seed=st.integers(0, 2**63 - 1),
    share=st.sampled_from([0.0, 0.2]),
)
def test_every_record_lies_in_exactly_one_place(
    labels: list[int], scheme: str, silos: int, rng_seed: int, share: float
) -> None:
    present = len(set(labels))
    scheme = scheme.replace("pathological:5", f"pathological:{present}")
    partition = draw_partition(np.array(labels), scheme, silos, rng_seed, held_out_share=share)
    everywhere = [index for held in (*partition.silos.values(), partition.held_out) for index in held]
    assert sorted(everywhere) == list(range(len(labels)))
    assert list(partition.silos) == [f"silo-{number}" for number in range(1, silos + 1)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_partition_depends_on_its_seed_alone(scheme: str) -> None:
    assert draw_partition(LABELS, scheme, 5, 3) == draw_partition(LABELS, scheme, 5, 3)
    assert draw_partition(LABELS, scheme, 5, 3).silos != draw_partition(LABELS, scheme, 5, 4).silos


def test_every_scheme_of_one_seed_holds_out_the_same_stratified_share() -> None:
    drawn = [draw_partition(LABELS, scheme, 5, 3, held_out_share=0.25) for scheme in SCHEMES]
    assert len({partition.held_out for partition in drawn}) == 1
    assert np.bincount(LABELS[list(drawn[0].held_out)]).tolist() == [15] * 10


def test_a_record_goes_to_the_silo_of_its_site() -> None:
    partition = partition_by_site(np.zeros(5, int), ["Ward 3", "ward_1", "Ward 3", "Zürich", "ward_1"])
    assert partition.silos == {"ward-3": (0, 2), "zurich": (3,), "ward-1": (1, 4)}


@pytest.mark.parametrize(
    "sites", [["A b", "a-b"], ["", "x"], ["coordinator", "x"], ["京都", "x"], ["x" * 64, "y"]]
)
def test_sites_that_give_no_names_apart_are_refused(sites: list[str]) -> None:
    with pytest.raises(ConfigError):
        partition_by_site(np.zeros(2, int), sites)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_partition_survives_its_file(tmp_path: Path, scheme: str) -> None:
    partition = draw_partition(LABELS, scheme, 12, 1, names=NAMES, held_out_share=0.1)
    write_partition(partition, tmp_path / "p.json")
    read = read_partition(tmp_path / "p.json")
    assert read == partition
    assert read.digest == partition.digest
    assert list(read.silos) == list(partition.silos)  # silo-10 stays behind silo-2
    check_records(read, NAMES, LABELS)


def test_a_bare_file_name_lies_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_partition(draw_partition(LABELS, "iid", 3, 0), Path("p.json"))
    assert [found.name for found in tmp_path.iterdir()] == ["p.json"]


def test_names_of_classes_are_beside_the_split_and_not_in_its_digest(tmp_path: Path) -> None:
    bare = draw_partition(LABELS, "iid", 3, 0)
    named = msgspec.structs.replace(bare, classes=tuple("abcdefghij"), data_set="eurosat")
    assert named.digest == bare.digest
    # As files of earlier versions were digested.
    assert bare.digest == digest_of("cachefl-secure/partition/1", msgspec.json.encode(bare, order="sorted"))
    write_partition(bare, tmp_path / "p.json")
    assert b"classes" not in (tmp_path / "p.json").read_bytes()
    write_partition(named, tmp_path / "p.json")  # a file without names gets them
    assert read_partition(tmp_path / "p.json") == named


def test_another_partition_is_not_written_over(tmp_path: Path) -> None:
    write_partition(draw_partition(LABELS, "iid", 3, 0), tmp_path / "p.json")
    write_partition(draw_partition(LABELS, "iid", 3, 0), tmp_path / "p.json")
    with pytest.raises(ConfigError, match="another partition"):
        write_partition(draw_partition(LABELS, "iid", 3, 1), tmp_path / "p.json")


def _moved(plain: dict[str, Any]) -> None:
    plain["silos"]["silo-2"].append(plain["silos"]["silo-1"].pop())


def _doubled(plain: dict[str, Any]) -> None:
    plain["silos"]["silo-2"].append(plain["silos"]["silo-1"][-1])
    plain["silos"]["silo-2"].sort()


TAMPERINGS: dict[str, Any] = {
    "a record is lost": lambda plain: plain["silos"]["silo-1"].pop(),
    "a record lies twice": _doubled,
    "out of order": lambda plain: plain["silos"]["silo-1"].reverse(),
    "a record too far": lambda plain: plain["silos"]["silo-1"].append(10_000),
    "a negative index": lambda plain: plain["silos"]["silo-1"].insert(0, -1),
    "another number": lambda plain: plain.update(records=599),
    "another version": lambda plain: plain.update(version=2),
    "an unknown scheme": lambda plain: plain.update(scheme="dirichlet:0"),
    "an unknown field": lambda plain: plain.update(comment=""),
    "a silo without a legal name": lambda plain: plain["silos"].update({"../x": []}),
    "no silo": lambda plain: plain.update(silos={}),
    "a short digest": lambda plain: plain.update(records_digest="ab"),
    "a fraction": lambda plain: plain.update(rng_seed=0.5),
}


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_file_that_was_tampered_with_is_refused(tmp_path: Path, tampering: str) -> None:
    file = tmp_path / "p.json"
    write_partition(draw_partition(LABELS, "iid", 3, 0), file)
    plain = json.loads(file.read_bytes())
    TAMPERINGS[tampering](plain)
    file.write_text(json.dumps(plain))
    with pytest.raises(ConfigError):
        read_partition(file)


def test_a_record_moved_to_another_silo_shows_in_the_digest(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    partition = draw_partition(np.zeros(40, int), "iid", 2, 0)
    plain = json.loads(json.dumps({"silos": {name: list(held) for name, held in partition.silos.items()}}))
    _moved(plain)
    plain["silos"]["silo-2"].sort()
    write_partition(partition, file)
    file.write_text(json.dumps(json.loads(file.read_bytes()) | plain))
    assert read_partition(file).digest != partition.digest


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b'{"version": 1', b"\xff", b"[" * 100_000])
def test_what_is_no_partition_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "p.json").write_bytes(raw)
    with pytest.raises(ConfigError):
        read_partition(tmp_path / "p.json")
    with pytest.raises(ConfigError):
        read_partition(tmp_path / "absent.json")


def test_a_partition_of_other_records_is_refused() -> None:
    partition = draw_partition(LABELS, "iid", 3, 0, names=NAMES)
    relabelled, swapped = LABELS.copy(), [*NAMES[1:], NAMES[0]]
    relabelled[7] += 1
    for names, labels in ((NAMES, relabelled), (swapped, LABELS), (NAMES[:-1], LABELS[:-1])):
        with pytest.raises(ConfigError):
            check_records(partition, names, labels)


def test_no_two_lists_of_names_have_one_digest() -> None:
    labels = np.zeros(2, int)
    assert digest_of_records(["ab", "c"], labels) != digest_of_records(["a", "bc"], labels)


def test_counts_are_of_each_silo_and_class() -> None:
    partition = draw_partition(LABELS, "dirichlet:0.3", 4, 0)
    counts = partition.counts(LABELS, 11)
    slow = [
        [sum(LABELS[i] == label for i in held) for label in range(11)] for held in partition.silos.values()
    ]
    assert counts.tolist() == slow


@pytest.mark.parametrize(
    ("scheme", "silos"), [("iid", 0), ("iid", 601), ("by-column", 3), ("pathological:1", 3)]
)
def test_what_cannot_be_dealt_out_is_refused(scheme: str, silos: int) -> None:
    with pytest.raises(ConfigError):
        draw_partition(LABELS, scheme, silos, 0)


@pytest.mark.parametrize("labels", [np.zeros(0, int), np.zeros(3), np.zeros((2, 2), int)])
def test_labels_must_be_integers_in_a_row(labels: Any) -> None:
    with pytest.raises(ValueError, match="labels must be"):
        draw_partition(labels, "iid", 1, 0)


def test_constructing_one_checks_it_too() -> None:
    with pytest.raises(ValueError, match="one place"):
        Partition(scheme="iid", rng_seed=0, records=2, records_digest="0" * 64, silos={"a": (0,)})
