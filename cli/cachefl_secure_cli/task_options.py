"""Options of init that say what is to be classified, by hand or of a known data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure_cli.failures import say
from cachefl_secure_cli.panels import CLASSES

if TYPE_CHECKING:
    from cachefl_secure.datasets.task import Task

Classes = Annotated[
    str,
    typer.Option(
        help="Class names, separated by commas; @FILE for one a line. Default: those of --dataset, else the digits.",
        rich_help_panel=CLASSES,
        show_default=False,
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        help="A data set that partition knows by name (caltech101, ...), or the .json file that partition wrote: "
        "classes, and of a known data set templates, alpha and beta, are taken from there. Whatever is given by "
        "hand wins.",
        rich_help_panel=CLASSES,
        show_default=False,
    ),
]
Root = Annotated[
    Path | None,
    typer.Option(
        help="With a name as --dataset: the folder that holds the data set's folder. Its class names are read.",
        rich_help_panel=CLASSES,
        show_default=False,
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        help="Prompt for the text classifier with one {} for the class; repeat for several.",
        rich_help_panel=CLASSES,
    ),
]


def task_of(dataset: str, root: Path | None, *, wants_classes: bool) -> Task | None:
    """What ``--dataset`` names; None where it is not given.

    Raises:
        ConfigError: as ``find_task``; or ``--root`` that nothing is read from.
    """
    from cachefl_secure.errors import ConfigError

    if not dataset:
        if root is not None:
            raise ConfigError("--root", "", "goes with --dataset")
        return None
    from cachefl_secure.datasets.task import find_task

    return find_task(dataset, root, wants_classes=wants_classes)


def classes_of(text: str, task: Task | None, clip: str | None) -> tuple[str, ...]:
    """By hand, else of the data set, else of the embedded CLIP.

    Raises:
        ConfigError: fewer than two, a file that cannot be read, or none with another CLIP.
    """
    from cachefl_secure.errors import ConfigError

    if text:
        names = tuple(part.strip() for part in _parts(text) if part.strip())
        if len(names) < 2:
            raise ConfigError("--classes", "", f"two or more are needed, found {len(names)}")
        return names
    if task is not None:
        return task.classes
    if clip in (None, "embedded"):
        from cachefl_secure.embedded import CLASSES as DIGITS

        return DIGITS
    raise ConfigError("--classes", "", "required with another CLIP than the embedded one, or --dataset")


def _parts(text: str) -> list[str]:
    from cachefl_secure.errors import ConfigError

    if not text.startswith("@"):
        return text.split(",")
    try:
        return Path(text[1:]).expanduser().read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError("--classes", text[:200], error.strerror or "cannot be read") from None
    except UnicodeDecodeError:
        raise ConfigError("--classes", text[:200], "is not UTF-8 text") from None


def templates_of(given: list[str] | None, task: Task | None, clip: str | None) -> tuple[str, ...]:
    """By hand, else of the data set, else of the embedded CLIP, else the paper's one."""
    if given:
        return tuple(given)
    if task is not None and task.data_set is not None:
        return task.data_set.templates
    if clip in (None, "embedded"):
        from cachefl_secure.embedded import TEMPLATES

        return TEMPLATES
    return ("a photo of a {}.",)


def tell_of_classes(classes: Sequence[str]) -> None:
    """Names that a federation may have and that folders and tables cannot tell apart."""
    from cachefl_secure.cache.images import plain, quoted

    first: dict[str, str] = {}
    alike = [name for name in classes if first.setdefault(plain(name), name) != name]
    if alike:
        say(
            f"classes {quoted([name for each in alike[:5] for name in (first[plain(each)], each)])} differ only in "
            "case, spaces, underscores or slashes: folders and tables of images cannot tell them apart, so silos can "
            "bring feature files only"
        )
