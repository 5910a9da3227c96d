"""Options of init that say what is to be classified, by hand or of a known data set; and where alpha and beta come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cachefl_secure_cli.failures import say
from cachefl_secure_cli.panels import CACHE, CLASSES
from cachefl_secure_cli.training_options import GIVEN, TABLE

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
DEFAULT_ALPHA, DEFAULT_BETA = 10.0, 3.0
Alpha = Annotated[
    float | None,
    typer.Option(
        help=f"Weight of the cache against the text classifier. Default: that of --dataset, else {DEFAULT_ALPHA:g}.",
        rich_help_panel=CACHE,
        show_default=False,
    ),
]
Beta = Annotated[
    float | None,
    typer.Option(
        help=f"Sharpness of the affinities. Default: that of --dataset, else {DEFAULT_BETA:g}.",
        rich_help_panel=CACHE,
        show_default=False,
    ),
]

_ORIGINS = {
    "given": "given",
    "table": "from the data set's table",
    "default": "default",
    "leave-one-out": "by leave-one-out",
    "grid": "by the grid",
}
"""Where a number comes from, as ``--json`` and as people read it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Alpha and beta, and who says so (a key of ``_ORIGINS``). With leave-one-out and a grid the numbers are not
    known yet."""

    alpha: float
    alpha_from: str
    beta: float
    beta_from: str

    def in_words(self, alpha: float, beta: float) -> str:
        """The plan's numbers with their origins: ``3 and 1 (from the data set's table)``."""
        if self.alpha_from == self.beta_from:
            return f"{alpha:g} and {beta:g} ({_ORIGINS[self.alpha_from]})"
        return f"{alpha:g} ({_ORIGINS[self.alpha_from]}) and {beta:g} ({_ORIGINS[self.beta_from]})"


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


def weights_of(chosen_by: str, alpha: float | None, beta: float | None, task: Task | None) -> Weights:
    """Alpha and beta with their origins: by hand, else of the table, else the defaults.

    ``chosen_by`` is what ``--alpha-beta`` says.

    Raises:
        ConfigError: by hand although something else is to choose them, or the table is asked for and there is none.
    """
    from cachefl_secure.errors import ConfigError

    data_set = None if task is None else task.data_set
    if chosen_by not in (GIVEN, TABLE):
        for option, given in (("--alpha", alpha), ("--beta", beta)):
            if given is not None:
                raise ConfigError(
                    option, "", f"is chosen by --alpha-beta {chosen_by}: give one of the two only"
                )
        origin = chosen_by.partition(":")[0]
        return Weights(DEFAULT_ALPHA, origin, DEFAULT_BETA, origin)
    if chosen_by == TABLE and data_set is None:
        raise ConfigError("--alpha-beta", "", "table needs --dataset, of a data set that partition knows")
    known = (None, None) if data_set is None else (data_set.alpha, data_set.beta)
    return Weights(*_weight(alpha, known[0], DEFAULT_ALPHA), *_weight(beta, known[1], DEFAULT_BETA))


def _weight(given: float | None, of_table: float | None, default: float) -> tuple[float, str]:
    if given is not None:
        return given, "given"
    return (default, "default") if of_table is None else (of_table, "table")


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
