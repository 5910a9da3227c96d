"""Features of OpenAI's CLIP ViT-B/32 that others extracted and published, as tasks.

Training is the validation split and the 16-shot keys, test is test. Caltech101 is cut to the classes that
have a text feature; elsewhere one public photo a class stands in for the text, and is the cache key too.
No generated images exist for these encoders here, so the start is text, or that photo.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from cachefl_secure.cache.features import FeatureSet
from tests.bench.rivals.task import Task

FOLDER, TEXT = "clip_vitb32_features", "detic_text_a_cname.npz"
_SCALE = 100.0  # of OpenAI's CLIP
SAME = {
    "face": "human face",
    "motorbike": "motorcycle",
    "binocular": "binoculars",
    "car_side": "car",
    "cellphone": "cellular telephone",
    "cougar_body": "cougar",
    "crayfish": "crawfish",
    "dollar_bill": "dollar",
    "headphone": "headphones",
    "octopus": "octopus (animal)",
    "panda": "giant panda",
    "rhino": "rhinoceros",
    "rooster": "cock",
    "sea_horse": "seahorse",
}
"""Names under which the text features know classes of Caltech101; one class for each name."""


def task(folder: Path, name: str) -> Task:
    """The task of one file."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    shots = max(int(key.removeprefix("keys_")) for key in arrays if key.startswith("keys_"))
    photo, keys = _set(arrays, "keys_1", "keylab_1"), _set(arrays, f"keys_{shots}", f"keylab_{shots}")
    new = ~(keys.features @ photo.features.T > 0.9999).any(dim=1)  # the public photo is nobody's record
    val = _set(arrays, "val_f", "val_l")
    training = FeatureSet(
        torch.cat([val.features, keys.features[new]]), torch.cat([val.labels, keys.labels[new]])
    )
    test, names = _set(arrays, "test_f", "test_l"), [str(each) for each in arrays["classnames"]]
    if name == "caltech101":
        kept, text = _texts(folder / TEXT, names)
        return _task(
            name,
            [names[label] for label in kept],
            text,
            FeatureSet(text, torch.arange(len(kept))),
            _only(training, kept),
            _only(test, kept),
            f"CLIP ViT-B/32; {len(kept)} of {len(names)} classes, those with a text feature, which is the key too: no synthetic images",
        )
    order = photo.labels.argsort()
    stand_in = photo.features[order]
    return _task(
        name,
        names,
        stand_in,
        FeatureSet(stand_in, photo.labels[order]),
        training,
        test,
        "CLIP ViT-B/32; one public photo a class stands in for its text and is its key: no text, no synthetic images",
    )


def _task(
    name: str,
    names: list[str],
    text: Tensor,
    public: FeatureSet,
    training: FeatureSet,
    test: FeatureSet,
    origin: str,
) -> Task:
    return Task(f"clip {name}", tuple(names), text, _SCALE, public, 1, training, test, origin)


def _set(arrays: dict[str, NDArray[Any]], features: str, labels: str) -> FeatureSet:
    unit = normalize(torch.from_numpy(arrays[features].astype(np.float32)), dim=1)
    return FeatureSet(unit, torch.from_numpy(arrays[labels].astype(np.int64)))


def _texts(file: Path, names: list[str]) -> tuple[list[int], Tensor]:
    """Labels of the classes whose name has a text feature, and those features."""
    with np.load(file, allow_pickle=False) as arrays:
        places = {_plain(str(name)): number for number, name in reversed(list(enumerate(arrays["names"])))}
        text = normalize(torch.from_numpy(arrays["text"].astype(np.float32)), dim=1)
    known = [places.get(_plain(SAME.get(name, name))) for name in names]
    kept = [label for label, place in enumerate(known) if place is not None]
    return kept, text[[place for place in known if place is not None]]


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").strip()


def _only(records: FeatureSet, kept: list[int]) -> FeatureSet:
    """The records of some classes, labelled by their place among them."""
    place = {label: new for new, label in enumerate(kept)}
    positions = torch.tensor([i for i, label in enumerate(records.labels.tolist()) if label in place])
    labels = torch.tensor([place[label] for label in records.labels[positions].tolist()])
    return FeatureSet(records.features[positions], labels)
