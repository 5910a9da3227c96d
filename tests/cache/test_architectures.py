"""The architectures that people bring, with random weights: shapes, unit norm and digests. One in memory at a time."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cachefl_secure.cache.encoder import load_encoder
from cachefl_secure.cache.features import extract_features, image_folder

DIMENSIONS = {
    "RN50": 1024,
    "RN101": 512,
    "ViT-B-32": 512,
    "ViT-B-16": 512,
    "ViT-L-14": 768,
    "ViT-B-16-SigLIP": 768,
}
WHOLE = "ViT-B-32"


@pytest.fixture(autouse=True)
def fewer_layers(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the whole one: widths, heads and all around the layers stay; how many there are is open_clip's matter.

    ViT-L-14 in full is 1.7 GB, and half a minute of a core.
    """
    from open_clip import factory

    if architecture == WHOLE:
        return
    config = copy.deepcopy(factory._MODEL_CONFIGS[architecture])
    vision = config["vision_cfg"]
    if "layers" in vision:  # SigLIP's are timm's
        vision["layers"] = [1, 1, 1, 1] if isinstance(vision["layers"], list) else 2
    config["text_cfg"]["layers"] = 2
    monkeypatch.setitem(factory._MODEL_CONFIGS, architecture, config)


@pytest.mark.parametrize("architecture", DIMENSIONS)
def test_an_architecture_gives_unit_features_and_a_digest_of_its_weights(
    architecture: str, tmp_path: Path
) -> None:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(architecture, pretrained=None, pretrained_text=False)
    weights = tmp_path / "random.safetensors"
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, weights)
    del model, state
    gc.collect()
    for number in range(2):
        (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
        noise = Image.effect_noise((250, 300), 80).convert("RGB")
        noise.save(tmp_path / "images" / "a" / f"{number}.png")
    images = image_folder(tmp_path / "images", ("a",))
    tag = "webli" if "SigLIP" in architecture else "openai"
    encoder = load_encoder(architecture, tag, weights=weights, offline=True)
    features = extract_features(images, encoder, batch_size=4).features
    assert (encoder.feature_dim, encoder.image_size) == (DIMENSIONS[architecture], (224, 224))
    assert features.shape == (2, DIMENSIONS[architecture])
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))
    assert not torch.equal(features[0], features[1])
    quick = {type(module).__name__ for module in encoder._model.modules()} & {"QuickGELU"}
    assert bool(quick) == (tag == "openai")  # in a ResNet's text tower
    if tag == "openai":
        texts = encoder.encode_text(["a cat", "a dog"])
        torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    digest, settings = encoder.weights_digest, encoder.preprocessing_digest
    del encoder
    gc.collect()
    if architecture == "ViT-B-16":  # as a file without a tag: the same weights, another activation
        plain = load_encoder(architecture, str(weights), offline=True)
        assert plain.weights_digest == digest
        assert plain.preprocessing_digest != settings
    weights.unlink()
