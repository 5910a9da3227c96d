"""Loading CLIPs: from a folder without any network, never from a pickle, never without weights."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import cachefl_secure
from cachefl_secure.cache.encoder import CONFIG_NAME, WEIGHT_NAMES, Encoder, load_encoder, text_classifier
from cachefl_secure.errors import ConfigError

TINY = {
    "model_cfg": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


@pytest.fixture(scope="module")
def tiny_weights() -> dict[str, torch.Tensor]:
    import open_clip

    torch.manual_seed(1)
    state: dict[str, torch.Tensor] = open_clip.CLIP(**json.loads(json.dumps(TINY["model_cfg"]))).state_dict()
    return state


@pytest.fixture
def tiny(tmp_path: Path, tiny_weights: dict[str, torch.Tensor]) -> Path:
    """A folder with an untrained CLIP of one layer, in open_clip's own format."""
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(TINY))
    save_file(tiny_weights, folder / WEIGHT_NAMES[0])
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def noise_images(count: int) -> list[Image.Image]:
    pixels = np.random.default_rng(5).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def check_encoder(encoder: Encoder) -> None:
    """What holds for every encoder."""
    images = noise_images(3)
    features = encoder.encode_images(images)
    assert features.shape == (3, encoder.feature_dim)
    assert (features.dtype, features.device.type) == (torch.float32, "cpu")
    assert not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert torch.equal(features, encoder.encode_images(images))
    torch.testing.assert_close(features[:1], encoder.encode_images(images[:1]))
    texts = encoder.encode_text(["a photo of a cat.", "7"])
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(2))
    assert not torch.allclose(texts[0], texts[1])


@pytest.mark.usefixtures("no_network")
def test_a_folder_is_loaded_without_the_network(tiny: Path) -> None:
    encoder = load_encoder("local-dir", local_dir=tiny)
    check_encoder(encoder)
    assert encoder.feature_dim == 8
    assert encoder.logit_scale == pytest.approx(1 / 0.07)
    assert encoder.encode_images([]).shape == (0, 8)
    assert encoder.encode_text([]).shape == (0, 8)


@pytest.mark.usefixtures("no_network")
def test_a_folder_stands_in_for_a_model_of_the_hub(tiny: Path) -> None:
    here = load_encoder("hf-hub:some/model", local_dir=tiny)
    assert here.weights_digest == load_encoder("local-dir", local_dir=tiny).weights_digest


@pytest.mark.usefixtures("no_network")
def test_the_embedded_clip_loads_and_knows_its_prompts() -> None:
    folder = Path(cachefl_secure.__file__).parent / "embedded" / "clip"
    check_encoder(load_encoder("embedded", local_dir=folder))


def test_the_real_image_text_model_loads(data_root: Path) -> None:
    encoder = load_encoder("local-dir", local_dir=data_root / "lit_mnv2_openclip")
    check_encoder(encoder)
    assert (encoder.feature_dim, round(encoder.logit_scale, 3)) == (256, 30.0)


def test_the_weights_digest_changes_with_one_bit_and_not_with_the_file(
    tiny: Path, tiny_weights: dict[str, torch.Tensor]
) -> None:
    first = load_encoder("local-dir", local_dir=tiny)
    (tiny / WEIGHT_NAMES[0]).rename(tiny / WEIGHT_NAMES[1])
    save_file(tiny_weights, tiny / WEIGHT_NAMES[1], metadata={"made": "again"})
    again = load_encoder("local-dir", local_dir=tiny)
    assert (again.weights_digest, again.preprocessing_digest) == (
        first.weights_digest,
        first.preprocessing_digest,
    )
    scale = torch.nextafter(tiny_weights["logit_scale"], torch.tensor(9.0))
    save_file({**tiny_weights, "logit_scale": scale}, tiny / WEIGHT_NAMES[1])
    assert load_encoder("local-dir", local_dir=tiny).weights_digest != first.weights_digest


@pytest.mark.parametrize("change", [{"preprocess_cfg": {"mean": [0, 0, 0]}}, {"quick_gelu": True}])
def test_what_else_decides_features_is_in_the_preprocessing_digest(
    tiny: Path, change: dict[str, object]
) -> None:
    first = load_encoder("local-dir", local_dir=tiny)
    config = json.loads(json.dumps(TINY))
    if "quick_gelu" in change:
        config["model_cfg"].update(change)
    else:
        config.update(change)
    (tiny / CONFIG_NAME).write_text(json.dumps(config))
    other = load_encoder("local-dir", local_dir=tiny)
    assert other.weights_digest == first.weights_digest
    assert other.preprocessing_digest != first.preprocessing_digest
    assert not torch.allclose(other.encode_images(noise_images(1)), first.encode_images(noise_images(1)))


def test_the_text_classifier_is_the_normalised_mean_over_templates(tiny: Path) -> None:
    encoder = load_encoder("local-dir", local_dir=tiny)
    templates = ("a photo of a {}.", "{}", "braces {x} and {}")
    rows = []
    for name in ("sea horse", "cat"):
        features = torch.cat([encoder.encode_text([t.replace("{}", name)]) for t in templates])
        rows.append(features.mean(0) / features.mean(0).norm())
    torch.testing.assert_close(text_classifier(encoder, ("sea_horse", "cat"), templates), torch.stack(rows))


@pytest.mark.parametrize("model", ["local-dir", "embedded"])
def test_a_folder_model_without_a_folder_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="local_dir"):
        load_encoder(model)


@pytest.mark.claim("C13")
def test_a_folder_whose_weights_are_a_pickle_is_refused_unread(tiny: Path) -> None:
    (tiny / WEIGHT_NAMES[0]).unlink()
    (tiny / "open_clip_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ConfigError, match=r"open_clip_model\.safetensors: missing"):
        load_encoder("local-dir", local_dir=tiny)


@pytest.mark.claim("C13")
def test_safetensors_win_over_a_pickle_beside_them(tiny: Path) -> None:
    first = load_encoder("local-dir", local_dir=tiny).weights_digest
    (tiny / WEIGHT_NAMES[0]).rename(tiny / WEIGHT_NAMES[1])
    for name in ("open_clip_pytorch_model.bin", "a.pth", "pytorch_model.bin"):
        (tiny / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    (tiny / "a.safetensors").write_bytes(b"")
    assert load_encoder("local-dir", local_dir=tiny).weights_digest == first


def test_weights_that_do_not_fit_the_configuration_are_refused(
    tiny: Path, tiny_weights: dict[str, torch.Tensor]
) -> None:
    for wrong in (
        {name: tensor for name, tensor in tiny_weights.items() if name != "text_projection"},
        {**tiny_weights, "stray": torch.zeros(1)},
        {**tiny_weights, "text_projection": torch.zeros(8, 9)},
        {**tiny_weights, "text_projection": torch.full((8, 8), torch.nan)},
    ):
        save_file(wrong, tiny / WEIGHT_NAMES[0])
        with pytest.raises(ConfigError, match=r"cannot be loaded|not finite"):
            load_encoder("local-dir", local_dir=tiny)
    (tiny / WEIGHT_NAMES[0]).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_encoder("local-dir", local_dir=tiny)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("text_cfg", "hf_model_name", "a/b"), ("vision_cfg", "timm_model_name", "hf-hub:a/b")],
)
def test_a_folder_that_would_ask_a_hub_is_refused(tiny: Path, section: str, field: str, value: str) -> None:
    config = json.loads(json.dumps(TINY))
    config["model_cfg"][section][field] = value
    (tiny / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="would be fetched from a hub"):
        load_encoder("local-dir", local_dir=tiny)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"model_cfg": 1}', '{"model_cfg": {"text_cfg": 1}}', "[" * 10**5]
)
def test_a_bad_configuration_is_refused(tiny: Path, content: str) -> None:
    (tiny / CONFIG_NAME).write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_encoder("local-dir", local_dir=tiny)
    assert caught.value.file.endswith(CONFIG_NAME)


def test_an_architecture_takes_safetensors_or_a_known_tag_and_nothing_else(tmp_path: Path) -> None:
    pickle = tmp_path / "weights.pt"
    pickle.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    for model, pretrained, reason in [
        ("ViT-B-32", "", "would be random"),
        ("ViT-B-32", str(pickle), "neither a tag"),
        ("ViT-B-32", "no-such-tag", "neither a tag"),
        ("ViT-B-32", str(tmp_path / "absent.safetensors"), "missing"),
        ("NoSuchNet", "openai", "no architecture"),
        ("local-dir:/somewhere", "", "no architecture"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            load_encoder(model, pretrained)


def test_without_the_hub_the_error_names_the_files_to_bring(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=rf"{CONFIG_NAME} and {WEIGHT_NAMES[0]}"):
        load_encoder("hf-hub:no/model")


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(tiny: Path, device: str) -> None:
    with pytest.raises(ConfigError, match="not available"):
        load_encoder("local-dir", local_dir=tiny, device=device)


def test_the_cache_package_imports_without_heavy_libraries() -> None:
    modules = "encoder, evaluate, features, images, initial, model, tensor_file"
    heavy = "{'open_clip', 'diffusers', 'torchvision', 'timm', 'opacus', 'sklearn', 'huggingface_hub'}"
    code = (
        f"import sys; from cachefl_secure.cache import {modules}; sys.exit(str({heavy} & set(sys.modules)))"
    )
    root = Path(cachefl_secure.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stderr.strip() == "set()"
