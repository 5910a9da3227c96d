"""An encoder's files come from a folder or the hub's cache on this machine; what is missing is named. No socket opens.

A tiny architecture stands in for the large ones, under a tag as open_clip keeps them; the hub's cache is laid out
as its library lays it out.
"""

from __future__ import annotations

import importlib.util
import json
import socket
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cachefl_secure.cache.encoder import (
    CONFIG_NAME,
    WEIGHT_NAMES,
    load_encoder,
    precision_on,
)
from cachefl_secure.cache.encoder_files import TOKENIZER_FILES
from cachefl_secure.cache.offline import without_hub
from cachefl_secure.errors import ConfigError, MissingExtra

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
}
TAG = {
    "hf_hub": "maker/tiny.tag/",
    "url": "https://example.invalid/tiny.pt",
    "mean": (0.1, 0.2, 0.3),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "quick_gelu": True,
}
PICKLE = b"cos\nsystem\n(S'exit 1'\ntR."


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """TinyNet, with the tag 'tag'."""
    from open_clip import factory, pretrained

    monkeypatch.setitem(factory._MODEL_CONFIGS, "TinyNet", TINY)
    monkeypatch.setitem(pretrained._PRETRAINED, "TinyNet", {"tag": TAG})
    return "TinyNet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    import open_clip

    torch.manual_seed(3)
    save_file(open_clip.CLIP(**json.loads(json.dumps(TINY))).state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def put(cache: Path, repository: str, **files: bytes) -> None:
    """Files as the hub's library keeps them."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def picture() -> Image.Image:
    return Image.effect_noise((20, 24), 90).convert("RGB")


def test_a_tag_is_taken_from_the_cache_with_its_own_preprocessing_and_activation(
    cache: Path, architecture: str, weights: Path
) -> None:
    put(cache, "maker/tiny.tag", **{WEIGHT_NAMES[0]: weights.read_bytes()})
    tagged = load_encoder(architecture, "tag", offline=True)
    brought = load_encoder(architecture, "tag", weights=weights, offline=True)
    plain = load_encoder(architecture, str(weights), offline=True)
    assert tagged.weights_digest == brought.weights_digest == plain.weights_digest
    assert tagged.preprocessing_digest == brought.preprocessing_digest != plain.preprocessing_digest
    image = picture()
    assert torch.equal(tagged.encode_images([image]), brought.encode_images([image]))
    assert tagged._model.visual.preprocess_cfg["mean"] == TAG["mean"]
    kinds = {type(module).__name__ for module in tagged._model.modules()}
    assert "QuickGELU" in kinds  # open_clip itself only warns, and computes with another activation
    assert "QuickGELU" not in {type(module).__name__ for module in plain._model.modules()}


@pytest.mark.claim("C13")
@pytest.mark.parametrize("held", [{}, {"open_clip_pytorch_model.bin": PICKLE}], ids=["nothing", "pickle"])
def test_a_tag_that_is_not_here_as_safetensors_says_what_to_bring(
    cache: Path, architecture: str, held: dict[str, bytes]
) -> None:
    put(cache, "maker/tiny.tag", **held)
    with pytest.raises(ConfigError) as caught:
        load_encoder(architecture, "tag", offline=True)
    assert "nothing is downloaded here" in caught.value.reason
    assert f"bring {WEIGHT_NAMES[0]} of maker/tiny.tag" in caught.value.reason
    assert "--clip FILE.safetensors" in caught.value.reason


@pytest.mark.claim("C13")
def test_a_tag_that_is_published_as_a_pickle_only_is_refused(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from open_clip import pretrained

    monkeypatch.setitem(pretrained._PRETRAINED, "TinyNet", {"tag": TAG | {"hf_hub": ""}})
    with pytest.raises(ConfigError, match="as a pickle only, which is not read"):
        load_encoder(architecture, "tag")


@pytest.mark.claim("C13")
def test_a_brought_file_must_be_safetensors(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(PICKLE)
    with pytest.raises(ConfigError, match=r"neither a tag of open_clip nor a \.safetensors file"):
        load_encoder(architecture, "tag", weights=tmp_path / "weights.pt")
    for content in (PICKLE, b"PK\x03\x04" + b"x" * 100):  # a pickle, and an archive as of TorchScript
        (tmp_path / "renamed.safetensors").write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be loaded: SafetensorError"):
            load_encoder(architecture, "tag", weights=tmp_path / "renamed.safetensors")


def test_a_model_of_the_hub_is_taken_from_the_cache_or_its_files_are_named(
    cache: Path, weights: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_encoder("hf-hub:maker/model", offline=True)
    assert f"bring its {CONFIG_NAME} and {WEIGHT_NAMES[0]} in a folder" in caught.value.reason
    assert "--clip local-dir:FOLDER" in caught.value.reason
    config = json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}).encode()
    put(cache, "maker/model", **{CONFIG_NAME: config})
    with pytest.raises(ConfigError, match=rf"{WEIGHT_NAMES[0]}: missing"):
        load_encoder("hf-hub:maker/model", offline=True)
    put(cache, "maker/model", **{WEIGHT_NAMES[1]: weights.read_bytes()})
    assert load_encoder("hf-hub:maker/model", offline=True).feature_dim == 8


def test_an_architecture_whose_text_tower_lies_in_the_hub_is_refused(weights: Path) -> None:
    with pytest.raises(ConfigError, match="hf_model_name: would be fetched from a hub"):
        load_encoder("roberta-ViT-B-32", str(weights))


def test_without_the_hub_its_library_refuses_and_afterwards_is_as_it_was(cache: Path) -> None:
    import os

    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    before = constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")
    with without_hub(), pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("maker/model", "file")
    assert (constants.HF_HUB_OFFLINE, os.environ.get("HF_HUB_OFFLINE")) == before


@pytest.fixture
def siglip_folder(tmp_path: Path, weights: Path) -> Path:
    """A folder whose configuration names a tokenizer of the hub, as SigLIP's does; without that tokenizer."""
    folder = tmp_path / "siglip"
    folder.mkdir()
    text = TINY["text_cfg"] | {
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }  # type: ignore[operator]
    (folder / CONFIG_NAME).write_text(json.dumps({"model_cfg": TINY | {"text_cfg": text}}))
    (folder / WEIGHT_NAMES[0]).write_bytes(weights.read_bytes())
    return folder


def test_a_silo_needs_no_tokenizer_and_whoever_does_is_told_the_extra(
    siglip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "transformers" else find(name)
    )
    encoder = load_encoder("local-dir", local_dir=siglip_folder)
    assert encoder.encode_images([picture()]).shape == (1, 8)
    with pytest.raises(MissingExtra) as caught:
        encoder.encode_text(["a cat"])
    assert caught.value.extra == "siglip"


def test_a_tokenizer_that_is_not_in_the_folder_is_named_file_by_file(
    siglip_folder: Path, cache: Path
) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError) as caught:
        load_encoder("local-dir", local_dir=siglip_folder).encode_text(["a cat"])
    listed = ", ".join(TOKENIZER_FILES)
    assert f"bring {listed} of timm/ViT-B-16-SigLIP into {siglip_folder}" in caught.value.reason


def test_a_tokenizer_in_the_folder_is_enough(siglip_folder: Path, cache: Path) -> None:
    pytest.importorskip("transformers")
    write_tokenizer(siglip_folder)
    encoder = load_encoder("local-dir", local_dir=siglip_folder)
    assert encoder._tokenize()(["A Photo; of a cat!"]).tolist()[0][:6] == [4, 5, 6, 4, 7, 1]
    rows = encoder.encode_text(["a photo of a cat", "a cat"])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))


def write_tokenizer(folder: Path) -> None:
    """A unigram tokenizer as T5's and SigLIP's are, of a few words: what `save_pretrained` leaves, in small."""
    words = ["▁a", "▁photo", "▁of", "▁cat"]
    vocabulary = [
        ["<pad>", 0.0],
        ["</s>", 0.0],
        ["<unk>", 0.0],
        ["▁", -2.0],
        *([word, -3.0] for word in words),
    ]
    end = {"id": "</s>", "ids": [1], "tokens": ["</s>"]}
    sequence, special = (
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    )
    tokenizer = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "always",
            "split": True,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [sequence, special],
            "pair": [sequence, special],
            "special_tokens": {"</s>": end},
        },
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocabulary},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
    }
    (folder / TOKENIZER_FILES[0]).write_text(json.dumps(tokenizer))
    (folder / TOKENIZER_FILES[1]).write_text(json.dumps(settings))


def test_half_precision_is_for_gpus_and_automatic_there_only() -> None:
    cpu = torch.device("cpu")
    assert precision_on(cpu, "auto") == precision_on(cpu, "float32") == "float32"
    for name in ("float16", "bfloat16"):
        with pytest.raises(ConfigError, match=r"--precision: .* is for a GPU"):
            precision_on(cpu, name)
        assert precision_on(torch.device("cuda"), name) == name
    with pytest.raises(ConfigError, match="is none of auto"):
        precision_on(cpu, "float8")


def test_auto_takes_float16_where_the_gpu_computes_it_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for capability, expected in [((6, 1), "float32"), ((7, 0), "float16"), ((9, 0), "float16")]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert precision_on(cuda, "auto") == expected


def test_half_precision_gives_nearly_the_same_unit_rows(architecture: str, weights: Path) -> None:
    """By autocast on the processor, where ``load_encoder`` would refuse it: the same code as on a GPU."""
    from dataclasses import replace

    encoder = load_encoder(architecture, str(weights))
    images = [picture() for _ in range(3)]
    exact, half = encoder.encode_images(images), replace(encoder, precision="bfloat16").encode_images(images)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(half, exact, atol=2e-2, rtol=0)
    assert not torch.equal(half, exact)
