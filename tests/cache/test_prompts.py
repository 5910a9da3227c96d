"""Sentences for a text-to-image generator: the paper's, the plan's, or the operator's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cachefl_secure.cache.prompts import PAPER, file_prompts, template_prompts
from cachefl_secure.errors import ConfigError

CLASSES = ("fire_truck", "Dog")


def test_templates_are_filled_with_the_class_name() -> None:
    assert template_prompts(CLASSES, [PAPER]) == (("a photo of a fire truck.",), ("a photo of a Dog.",))
    assert template_prompts(CLASSES, ["{} texture.", "one {}"])[1] == ("Dog texture.", "one Dog")


def test_a_json_file_gives_each_class_its_own_sentences(tmp_path: Path) -> None:
    file = tmp_path / "sentences.json"
    file.write_text(json.dumps({"dog": ["A wet dog.", " A {} asleep. "], "Fire Truck": ["Red."]}))
    assert file_prompts(file, CLASSES) == (("Red.",), ("A wet dog.", "A dog asleep."))


@pytest.mark.parametrize("first", ["{} texture.", "a photo of a {}."])
def test_a_text_file_gives_every_class_the_same_templates(tmp_path: Path, first: str) -> None:
    file = tmp_path / "sentences.txt"
    file.write_text(f"{first}\n\n  the {{}} at night \n")
    assert file_prompts(file, CLASSES) == template_prompts(CLASSES, [first, "the {} at night"])


@pytest.mark.parametrize(
    ("content", "field", "reason"),
    [
        ('{"dog": ["a"]}', "fire_truck", "no sentences"),
        ('{"dog": ["a"], "fire truck": []}', "fire truck", "at least one"),
        ('{"dog": ["a"], "fire truck": "b"}', "fire truck", "list"),
        ('{"dog": ["a", 7], "fire truck": ["b"]}', "dog", "no sentence"),
        ('{"dog": ["a", " "], "fire truck": ["b"]}', "dog", "1 to 1000"),
        ('{"dog": ["\\u001b[2J"], "fire truck": ["b"]}', "dog", "printable"),
        ('{"dog": ["a"], "DOG": ["a"], "fire truck": ["b"]}', "DOG", "twice"),
        ('{"dog": ["a"], "dogg": ["a"], "fire truck": ["b"]}', "dogg", "no class"),
        ('["a {}"]', "", "object"),
        ('{"dog": ', "", "not JSON"),
        ("a dog\n", "sentence 1", "exactly one"),
        ("a {}\n{} and {}\n", "sentence 2", "exactly one"),
        ("x" * 1000 + "{}", "sentence 1", "1 to 1000"),
        ("\n \n", "", "no sentence"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_class(
    tmp_path: Path, content: str, field: str, reason: str
) -> None:
    file = tmp_path / "sentences"
    file.write_text(content)
    with pytest.raises(ConfigError, match=reason) as caught:
        file_prompts(file, CLASSES)
    assert (caught.value.file, caught.value.field) == (str(file), field)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        file_prompts(tmp_path / "absent", CLASSES)
    (tmp_path / "binary").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="UTF-8"):
        file_prompts(tmp_path / "binary", CLASSES)
