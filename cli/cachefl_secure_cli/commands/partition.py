"""partition: deal records out to silos."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cachefl_secure.wording import counted
from cachefl_secure_cli.failures import explained, say
from cachefl_secure_cli.output import Json, console, percent, print_json, table

if TYPE_CHECKING:
    from cachefl_secure.datasets.partition import Partition
    from cachefl_secure.datasets.sources import Source


@explained
def command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to write the partition.", show_default=False)
    ],
    dataset: Annotated[
        str,
        typer.Option(
            help="imagenet, caltech101, oxford_pets, stanford_cars, flowers102, food101, fgvc_aircraft, sun397, "
            "dtd, eurosat or ucf101, as CoOp lays them out. Deals out the training images."
        ),
    ] = "",
    root: Annotated[
        Path | None,
        typer.Option(
            help="The folder that holds the data set's folder; with --csv, what its paths are relative to.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Instead: your own images, one folder a class.", show_default=False),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            "--csv",
            help="Instead: a CSV file with columns path, label and, for by-column, the site.",
            show_default=False,
        ),
    ] = None,
    site_column: Annotated[str, typer.Option(help="With --csv: the column of sites.")] = "site",
    scheme: Annotated[
        str,
        typer.Option(
            help="iid; dirichlet:A (each class's shares over silos; 0.1 is very uneven, 100 nearly even); "
            "pathological:C (C classes a silo); quantity:A (only the sizes differ); by-column (real sites)."
        ),
    ] = "dirichlet:0.3",
    silos: Annotated[int, typer.Option(help="How many; by-column takes as many as there are sites.")] = 5,
    seed: Annotated[int, typer.Option(help="The same seed makes the same partition.")] = 0,
    shots: Annotated[
        int, typer.Option(min=0, help="With --dataset: so many images a class in all, not all of them (0).")
    ] = 0,
    held_out: Annotated[
        float,
        typer.Option(help="Share of every class that no silo gets; a data set has test images of its own."),
    ] = 0.2,
    folders: Annotated[
        Path | None,
        typer.Option(
            help="Also make a folder of images for each silo, for held-out and validation, here.",
            show_default=False,
        ),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out images that are listed but absent.")
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="Also draw who holds what into this PNG.")] = None,
    json: Json = False,
) -> None:
    """Deal labelled images out to silos: to try a federation before there are partners, or to compare with papers.

    The file holds who has which record, with a digest of the records, so that others repeat exactly this split.

    Example: cachefl-secure partition split.json --dataset caltech101 --root DATA --scheme dirichlet:0.1
    --silos 5 --shots 16 --folders parts --figure split.png

    Then init takes --dataset split.json, each join takes --data parts/silo-1 (2, 3 ...), and evaluate
    takes --data parts/held-out. A row of the figure is a silo: with few dark cells it knows few classes.
    """
    from cachefl_secure.datasets.folders import write_folders
    from cachefl_secure.datasets.partition import write_partition
    from cachefl_secure.datasets.schemes import parse_scheme

    law = parse_scheme(scheme)
    source = _source(dataset, root, images, csv, site_column, shots, seed, skip_missing)
    partition = source.draw(law, silos, seed, held_out)
    places = source.places(partition)
    write_partition(partition, file)
    if folders is not None:
        write_folders(folders, partition, places)
    if figure is not None:
        from cachefl_secure_cli.figures import records_by_class

        counts = partition.counts(source.labels, len(source.records.classes))
        title = f"{source.name}, {partition.scheme}, seed {seed}"
        records_by_class(figure, counts, list(partition.silos), source.records.classes, title)
    summary = _summary(source, partition, {name: len(held) for name, held in places.items()})
    if json:
        print_json("partition", summary | {"file": str(file), "folders": folders and str(folders)})
        return
    console().print(_table(summary, partition))
    for what, where in (("partition", file), ("folders", folders), ("figure", figure)):
        if where is not None:
            console().print(f"{what}: {where}")
    console().print(f"for init: --dataset {shlex.quote(str(file))}")
    if source.missing:
        are = "is" if source.missing == 1 else "are"
        say(f"{counted(source.missing, 'image')} {are} listed but absent, and left out")
    if not source.has_published_size:
        say(f"not all of {source.name} as published: accuracy on it compares with no paper's")
    if empty := [name for name, held in partition.silos.items() if not held]:
        say(
            f"no record for {', '.join(empty)}: join refuses an empty folder; try fewer silos or another seed"
        )


def _source(
    dataset: str,
    root: Path | None,
    images: Path | None,
    csv: Path | None,
    site_column: str,
    shots: int,
    seed: int,
    skip_missing: bool,
) -> Source:
    from cachefl_secure.datasets import sources
    from cachefl_secure.datasets.table import find_data_set
    from cachefl_secure.errors import ConfigError

    if sum((bool(dataset), images is not None, csv is not None)) != 1:
        raise ConfigError("--dataset", "", "give one of --dataset, --images and --csv")
    if shots and not dataset:
        raise ConfigError("--shots", "", "needs --dataset, whose test images are known")
    if csv is not None:
        columns = sources.Columns(site=site_column)
        return sources.csv_source(csv, columns, root=root, skip_missing=skip_missing)
    if images is not None:
        return sources.folder_source(images)
    if root is None:
        raise ConfigError("--root", "", "required with --dataset: nothing is downloaded")
    return sources.data_set_source(
        find_data_set(dataset), root, shots=shots, rng_seed=seed, skip_missing=skip_missing
    )


def _summary(source: Source, partition: Partition, sizes: dict[str, int]) -> dict[str, Any]:
    counts = partition.counts(source.labels, len(source.records.classes))
    silos = {
        name: {
            "records": int(row.sum()),
            "classes": int((row > 0).sum()),
            "largest_class_share": float(row.max() / max(1, row.sum())),
        }
        for name, row in zip(partition.silos, counts, strict=True)
    }
    return {
        "source": source.name,
        "scheme": partition.scheme,
        "seed": partition.rng_seed,
        "classes": len(source.records.classes),
        "records": partition.records,
        "records_digest": partition.records_digest,
        "digest": partition.digest,
        "silos": silos,
        "others": {name: size for name, size in sizes.items() if name not in silos},
        "missing": source.missing,
        "has_published_size": source.has_published_size,
    }


def _table(summary: dict[str, Any], partition: Partition) -> Any:
    rows = [
        (name, f"{silo['records']:,}", str(silo["classes"]), percent(silo["largest_class_share"]))
        for name, silo in summary["silos"].items()
    ]
    rows += [(name, f"{size:,}", "-", "-") for name, size in summary["others"].items()]
    title = f"{summary['source']}: {partition.scheme}, seed {partition.rng_seed}"
    caption = f"{summary['classes']} classes; digest {partition.digest[:16]}"
    return table(title, ("place", "records", "classes present", "largest class"), rows, caption=caption)
