"""Features on a GPU: in half precision nearly those of single precision, and told apart from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cachefl_secure.cache.encoder import Encoder, load_encoder, text_classifier
from cachefl_secure.cache.features import batch_size_on, extract, image_folder
from cachefl_secure.cache.images import ImageList
from cachefl_secure.embedded import CLASSES, CLIP_DIR, TEMPLATES
from cachefl_secure.embedded.digits import write_image_folders

LEAST_COSINE = {"float32": 0.999999, "float16": 0.9999, "bfloat16": 0.995}


@pytest.fixture(scope="module")
def handwriting(tmp_path_factory: pytest.TempPathFactory) -> ImageList:
    root = tmp_path_factory.mktemp("digits")
    write_image_folders(root, 0)
    return image_folder(root / "held-out", CLASSES)


def encoder_on(device: str, precision: str) -> Encoder:
    return load_encoder("embedded", local_dir=CLIP_DIR, device=device, precision=precision)


def features_of(images: ImageList, encoder: Encoder) -> Tensor:
    return extract(images, encoder, batch_size=batch_size_on(encoder.device)).view(0).features


@pytest.mark.parametrize("precision", sorted(LEAST_COSINE))
def test_features_are_nearly_those_of_the_processor_and_decide_alike(
    handwriting: ImageList, precision: str
) -> None:
    on_cpu, encoder = encoder_on("cpu", "float32"), encoder_on("cuda", precision)
    expected, found = features_of(handwriting, on_cpu), features_of(handwriting, encoder)
    assert found.dtype == torch.float32
    assert float((expected * found).sum(dim=1).min()) > LEAST_COSINE[precision]
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
    texts = text_classifier(encoder, CLASSES, TEMPLATES)  # in float32 whatever the images are encoded in
    torch.testing.assert_close(texts, text_classifier(on_cpu, CLASSES, TEMPLATES), rtol=1e-3, atol=1e-4)
    labels = torch.tensor(handwriting.labels)
    right = [float(((rows @ texts.T).argmax(dim=1) == labels).float().mean()) for rows in (expected, found)]
    assert abs(right[0] - right[1]) <= 0.01
    assert torch.equal(found, features_of(handwriting, encoder))


def test_auto_is_half_precision_and_features_say_which_they_are_of(handwriting: ImageList) -> None:
    assert encoder_on("cuda", "auto").precision == "float16"
    few = handwriting.part(0, 3)
    digests = {extract(few, encoder_on("cuda", precision)).digest for precision in LEAST_COSINE}
    assert len(digests) == 3


def test_features_of_another_precision_are_not_taken_for_these(
    handwriting: ImageList, tmp_path: Path
) -> None:
    few = handwriting.part(0, 40)
    for precision in ("float16", "float32"):
        encoder = encoder_on("cuda", precision)
        kept = extract(few, encoder, shards=tmp_path, batch_size=batch_size_on(encoder.device)).view(0)
        assert torch.equal(kept.features, features_of(few, encoder))
