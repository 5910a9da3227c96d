"""What a text-to-image generator is asked for: sentences of each class, taken in turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cachefl_secure.errors import ConfigError

PAPER = "a photo of a {}."
"""The prompt of CacheFL and of CaFo."""

Prompts = tuple[tuple[str, ...], ...]
"""For each class in order at least one sentence; picture i of a class is drawn from sentence i modulo their number."""

_LONGEST = 1000
_MOST_BYTES = 64 * 2**20


def template_prompts(classes: Sequence[str], templates: Sequence[str]) -> Prompts:
    """Templates with one ``{}`` for the class name, in which "_" reads as a space."""
    return tuple(tuple(_filled(template, name) for template in templates) for name in classes)


def file_prompts(path: Path, classes: Sequence[str]) -> Prompts:
    """The operator's own: a JSON object of class name to sentences, as CuPL's and CaFo's, or one template a line.

    Class names match whatever their case, spaces and underscores.

    Raises:
        ConfigError: the file cannot be read, a class has no sentences or stands twice, the file knows a class
            that nobody asked for, or a sentence is empty, long or not printable.
    """
    text = _read(path)
    if text.lstrip().startswith(("{", "[")) and not text.lstrip().startswith("{}"):
        return _by_class(path, text, classes)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        if line.count("{}") != 1:
            raise ConfigError(str(path), f"sentence {number}", "must hold exactly one {} for the class name")
        _check_sentence(path, f"sentence {number}", line)
    if not lines:
        raise ConfigError(str(path), "", "holds no sentence")
    return template_prompts(classes, lines)


def _by_class(path: Path, text: str, classes: Sequence[str]) -> Prompts:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        raise ConfigError(str(path), "", "is not JSON") from None
    if not all(isinstance(pair, tuple) for pair in pairs):
        raise ConfigError(str(path), "", "must be a JSON object of class name to a list of sentences")
    wanted = {_plain(name): name for name in classes}
    found: dict[str, tuple[str, ...]] = {}
    for name, sentences in pairs:
        if _plain(name) not in wanted:
            raise ConfigError(str(path), name[:60], "is no class of this federation")
        if _plain(name) in found:
            raise ConfigError(str(path), name[:60], "stands twice")
        found[_plain(name)] = tuple(_sentences(path, name, sentences))
    for plain, name in wanted.items():
        if plain not in found:
            raise ConfigError(str(path), name[:60], "has no sentences in the file")
    return tuple(found[_plain(name)] for name in classes)


def _sentences(path: Path, name: str, sentences: object) -> Iterator[str]:
    if not isinstance(sentences, list) or not sentences:
        raise ConfigError(str(path), name[:60], "must have a list of at least one sentence")
    for sentence in sentences:
        if not isinstance(sentence, str):
            raise ConfigError(str(path), name[:60], "holds something that is no sentence")
        _check_sentence(path, name[:60], sentence)
        yield _filled(sentence.strip(), name)


def _check_sentence(path: Path, place: str, sentence: str) -> None:
    if not sentence.strip() or len(sentence) > _LONGEST or not sentence.strip().isprintable():
        reason = f"a sentence must be printable, of 1 to {_LONGEST} characters"
        raise ConfigError(str(path), place, reason)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(str(path), "", f"larger than {_MOST_BYTES // 2**20} MiB")
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(str(path), "", error.strerror or "cannot be read") from None
    except UnicodeDecodeError:
        raise ConfigError(str(path), "", "is not UTF-8 text") from None


def _filled(template: str, name: str) -> str:
    return template.replace("{}", name.replace("_", " "))


def _plain(name: str) -> str:
    return "".join(name.replace("_", " ").casefold().split())
