"""push_to_hub, against a hub that runs in a thread of the test: what arrives, how it loads, and what is refused."""

from __future__ import annotations

import json
import socket
import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
from fake_hub import OLD, serving

import minivit
from minivit.data import Preprocess
from minivit.pretrained import hub
from minivit.pretrained.preprocessing import preprocessing
from minivit.publish import hub_config
from minivit.train import report

CONSTANTS = pytest.importorskip("huggingface_hub.constants")
NAME = "owner/digits"
VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 2, "in_chans": 3, "num_classes": 3, "embed_dim": 8}
SWIN |= {"depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
STEM = {"patch_size": 2, "resnet_layers": (), "resnet_width": 8, "resnet_groups": 2}
MODELS = {
    "vit": (minivit.ViT, VIT),
    "average, tanh": (minivit.ViT, {**VIT, "global_pool": "avg", "gelu": "tanh", "dynamic_img_size": True}),
    "distilled": (minivit.ViT, {**VIT, "distilled": True}),
    "no other project's": (minivit.ViT, {**VIT, "pos_embed": "relative", "representation_size": 5}),
    "hybrid": (minivit.ViT, {**VIT, **STEM}),
    "swin": (minivit.Swin, SWIN),
    "swin v2": (minivit.SwinV2, SWIN),
    "features": (minivit.ViT, {**VIT, "num_classes": 0}),
}


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nothing of this user's cache, token or mirror is seen."""
    monkeypatch.setattr(CONSTANTS, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(CONSTANTS, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake() -> Any:
    with serving({}) as fake_hub:
        yield fake_hub


def images(model: Any) -> Any:
    side = model.config["img_size"]
    rng = np.random.default_rng(0)
    return rng.standard_normal((2, model.config["in_chans"], side, side)).astype("float32")


@pytest.mark.parametrize("kind", MODELS)
def test_what_was_pushed_loads_again_by_its_name(fake: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    make, options = MODELS[kind]
    model = make(**options, seed=3)
    url = minivit.push_to_hub(model, NAME, token="writer", endpoint=fake.url)
    assert url == f"{fake.url}/{NAME}"
    assert sorted(fake.repositories[NAME][OLD]) == ["README.md", "config.json", "model.safetensors"]
    monkeypatch.setattr(hub, "fetch", partial(hub.fetch, endpoint=fake.url))
    twin = minivit.from_pretrained(NAME, report=lambda line: None)
    assert twin.config == model.config and np.array_equal(twin.predict(images(model)), model.predict(images(model)))


def test_classes_preprocessing_accuracy_and_figures_arrive(fake: Any, tmp_path: Any) -> None:
    model, prepare = minivit.ViT(**VIT), Preprocess(8, mean=(0.25,), std=(0.5,), squash=True)
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"\x89PNG")
    labels, logits = np.array([0, 0, 1, 1]), np.eye(3)[[0, 1, 1, 1]]
    minivit.push_to_hub(
        model,
        NAME,
        preprocess=prepare,
        classes=("cat", "dog", "hen"),
        title="Pets",
        facts={"data": "my pets"},
        labels=labels,
        logits=logits,
        pictures=[picture],
        license="mit",
        token="writer",
        endpoint=fake.url,
    )
    held = fake.repositories[NAME][OLD]
    assert held["curves.png"] == b"\x89PNG"
    config = json.loads(held["config.json"])
    assert config["label_names"] == ["cat", "dog", "hen"] and config["architecture"] == "vit_base_patch16_224"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(held[name])
    assert preprocessing(tmp_path / "model.safetensors", model) == prepare
    card = held["README.md"].decode()
    header, body = card.split("---\n")[1:3]
    assert "license: mit\n" in header and "pipeline_tag: image-classification\n" in header
    assert "library_name: minivit\n" in header and "metrics:\n- accuracy\n" in header
    for line in (
        "# Pets",
        "| data | my pets |",
        "75.00% of 4 test images.",
        "| cat | 2 | 50.00% |",
        "| dog | 2 | 100.00% |",
    ):
        assert f"{line}\n" in body, line
    assert "| hen" not in body, "none of its images was tested"
    assert "![curves](curves.png)\n" in body and f'minivit.from_pretrained("{NAME}")' in body


def test_a_card_without_a_license_says_so_and_its_header_is_yaml() -> None:
    header, body = report.hub_card("A", {}, repo_id=NAME).split("---\n")[1:3]
    assert "## Intended use\n\nClassification of images like those" in body and "## Limits\n\nIt was not" in body
    assert "# no license was given: add one" in header
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(header)
    assert read["tags"] == ["image-classification", "vision-transformer", "minivit"] and "license" not in read


def test_a_published_size_keeps_timms_name() -> None:
    model = minivit.create_model("vit_tiny_r_s16_p8_224", img_size=224, num_classes=2)
    assert hub_config(model, None, None)["architecture"] == "vit_tiny_r_s16_p8_224"
    assert "architecture" not in hub_config(minivit.ViT(**{**VIT, **STEM}), None, None), "timm has no such hybrid"


OTHERS: list[dict[str, Any]] = [
    {"pos_embed": "sincos_2d"},
    {"norm_eps": 1e-5},
    {"patch_norm": True},
    {"mlp_layer": "swiglu"},
    {"block_fn": "parallel_things"},
    {"qkv_bias": "qv"},
    {"post_norm": True},
    {"representation_size": 4},
]


@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_no_architecture_of_timms_stands_for_a_model_that_computes_otherwise(options: dict[str, Any]) -> None:
    assert "architecture" not in hub_config(minivit.ViT(**{**VIT, **options}), None, None)


def test_the_options_that_timm_has_are_said() -> None:
    options = {"init_values": 0.1, "reg_tokens": 2, "no_embed_class": True, "pre_norm": True, "gelu": "quick"}
    config = hub_config(minivit.ViT(**{**VIT, **options}), None, None)
    assert config["architecture"] == "vit_base_patch16_224" and config["model_args"]["act_layer"] == "quick_gelu"
    assert {name: config["model_args"][name] for name in options if name != "gelu"} == {
        name: value for name, value in options.items() if name != "gelu"
    }


def test_a_repository_that_exists_gets_the_new_files(fake: Any) -> None:
    for seed in (0, 1):
        minivit.push_to_hub(minivit.ViT(**VIT, seed=seed), NAME, token="writer", endpoint=fake.url)
        held = fake.repositories[NAME][OLD]["model.safetensors"]
        assert minivit.ViT(**VIT, seed=seed).state_dict()["head.weight"].tobytes() in held


# --- what is refused ---


def test_without_a_token_nothing_is_asked(fake: Any) -> None:
    with pytest.raises(PermissionError, match="no token.*hf auth login.*HF_TOKEN"):
        minivit.push_to_hub(minivit.ViT(**VIT), NAME, endpoint=fake.url)
    assert not fake.asked()


def test_a_token_that_may_not_write_is_named(fake: Any) -> None:
    with pytest.raises(PermissionError, match="refuses to write owner/digits"):
        minivit.push_to_hub(minivit.ViT(**VIT), NAME, token="reader", endpoint=fake.url)
    assert NAME not in fake.repositories


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install huggingface_hub"):
        minivit.push_to_hub(minivit.ViT(**VIT), NAME, token="writer")


def test_without_a_network_it_says_so() -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{one.getsockname()[1]}"
    with pytest.raises(ConnectionError, match="could not be uploaded.*check the network"):
        minivit.push_to_hub(minivit.ViT(**VIT), NAME, token="writer", endpoint=url)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": ("cat", "dog")}, "2 names of classes for a model of num_classes=3"),
        ({"labels": np.zeros(2, int)}, "give both labels and logits"),
        ({"pictures": ["none.png"]}, "none.png: no such image file"),
        ({"repo_id": "not a name"}, "not the name of a repository"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(fake: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        minivit.push_to_hub(minivit.ViT(**VIT), **{"repo_id": NAME, "token": "writer", "endpoint": fake.url, **options})
    assert not [request for request in fake.asked() if "commit" in request]
