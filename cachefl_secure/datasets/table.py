"""The eleven data sets of CLIP's few-shot literature: where their files lie, how they are prompted, how large they are.

Layouts and split files are CoOp's (Zhou et al. 2022, its DATASETS.md); templates, alpha, beta, learning rate and
epochs are those that Tip-Adapter starts from (Zhang et al. 2022), never those it finds by searching the test set.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cachefl_secure.errors import ConfigError

_PHOTO = ("a photo of a {}.",)


class Layout(enum.Enum):
    """Which files say what is train, val and test."""

    split_file = "one JSON file of CoOp's"
    folders = "a folder each for train and val, with classnames.txt"
    variants = "FGVC's own text files"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """One data set. Paths are relative to the folder that holds all data sets."""

    name: str
    """As typed: lower case, no spaces."""
    title: str
    """As in papers."""
    folder: str
    images: str = ""
    """Below ``folder``; paths in the split file start here."""
    split: str = ""
    layout: Layout = Layout.split_file
    templates: tuple[str, ...] = _PHOTO
    renames: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What the files call a class (ImageNet: its folder), to what it is called here; other names stay."""
    classes: int
    test_images: int
    alpha: float
    beta: float = 1.0
    learning_rate: float = 1e-3
    epochs: int = 20

    @property
    def published_layout(self) -> str:
        """What must lie where, in one line."""
        images = f"{self.folder}/{self.images}/".replace("//", "/")
        match self.layout:
            case Layout.split_file:
                return f"{images} and {self.folder}/{self.split}"
            case Layout.folders:
                return f"{images}train/, {images}val/ and {self.folder}/classnames.txt"
            case Layout.variants:
                return (
                    f"{images}, {self.folder}/variants.txt and "
                    f"{self.folder}/images_variant_train.txt, ..._val.txt, ..._test.txt"
                )


_ALL = (
    DataSet(
        name="imagenet",
        title="ImageNet",
        folder="imagenet",
        images="images",
        layout=Layout.folders,
        templates=(
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
        # CLIP's list of names calls two folders missile and two sunglasses; classes of a plan have names apart.
        # These are ImageNet's own words for the other folder of each pair.
        renames=MappingProxyType({"n04008634": "projectile", "n04355933": "sunglass"}),
        classes=1000,
        test_images=50_000,
        alpha=1.17,
    ),
    DataSet(
        name="caltech101",
        title="Caltech101",
        folder="caltech-101",
        images="101_ObjectCategories",
        split="split_zhou_Caltech101.json",
        renames=MappingProxyType(
            {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
        ),
        classes=100,  # BACKGROUND_Google and Faces_easy are left out
        test_images=2465,
        alpha=3.0,
    ),
    DataSet(
        name="oxford_pets",
        title="OxfordPets",
        folder="oxford_pets",
        images="images",
        split="split_zhou_OxfordPets.json",
        templates=("a photo of a {}, a type of pet.",),
        classes=37,
        test_images=3669,
        alpha=1.17,
    ),
    DataSet(
        name="stanford_cars",
        title="StanfordCars",
        folder="stanford_cars",
        split="split_zhou_StanfordCars.json",
        classes=196,
        test_images=8041,
        alpha=3.0,
    ),
    DataSet(
        name="flowers102",
        title="Flowers102",
        folder="oxford_flowers",
        images="jpg",
        split="split_zhou_OxfordFlowers.json",
        templates=("a photo of a {}, a type of flower.",),
        classes=102,
        test_images=2463,
        alpha=10.0,
    ),
    DataSet(
        name="food101",
        title="Food101",
        folder="food-101",
        images="images",
        split="split_zhou_Food101.json",
        templates=("a photo of {}, a type of food.",),
        classes=101,
        test_images=30_300,
        alpha=1.17,
    ),
    DataSet(
        name="fgvc_aircraft",
        title="FGVCAircraft",
        folder="fgvc_aircraft",
        images="images",
        layout=Layout.variants,
        templates=("a photo of a {}, a type of aircraft.",),
        classes=100,
        test_images=3333,
        alpha=5.0,
    ),
    DataSet(
        name="sun397",
        title="SUN397",
        folder="sun397",
        images="SUN397",
        split="split_zhou_SUN397.json",
        classes=397,
        test_images=19_850,
        alpha=1.17,
    ),
    DataSet(
        name="dtd",
        title="DTD",
        folder="dtd",
        images="images",
        split="split_zhou_DescribableTextures.json",
        templates=("{} texture.",),
        classes=47,
        test_images=1692,
        alpha=2.0,
    ),
    DataSet(
        name="eurosat",
        title="EuroSAT",
        folder="eurosat",
        images="2750",
        split="split_zhou_EuroSAT.json",
        templates=("a centered satellite photo of {}.",),
        renames=MappingProxyType(
            {
                "AnnualCrop": "Annual Crop Land",
                "HerbaceousVegetation": "Herbaceous Vegetation Land",
                "Highway": "Highway or Road",
                "Industrial": "Industrial Buildings",
                "Pasture": "Pasture Land",
                "PermanentCrop": "Permanent Crop Land",
                "Residential": "Residential Buildings",
                "SeaLake": "Sea or Lake",
            }
        ),
        classes=10,
        test_images=8100,
        alpha=2.0,
        epochs=100,
    ),
    DataSet(
        name="ucf101",
        title="UCF101",
        folder="ucf101",
        images="UCF-101-midframes",
        split="split_zhou_UCF101.json",
        templates=("a photo of a person doing {}.",),
        classes=101,
        test_images=3783,
        alpha=3.0,
    ),
)

DATA_SETS: Mapping[str, DataSet] = MappingProxyType({data_set.name: data_set for data_set in _ALL})


def find_data_set(name: str, *, file: str = "--dataset") -> DataSet:
    """By its name, or its title in whatever case, hyphens and underscores left out.

    Raises:
        ConfigError: none is called so.
    """
    for data_set in _ALL:
        if _plain(name) in {_plain(data_set.name), _plain(data_set.title)}:
            return data_set
    raise ConfigError(file, "", f"{name[:60]!r} is none of {', '.join(DATA_SETS)}")


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")
