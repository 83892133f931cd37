"""Upload a model to the Hugging Face Hub: weights, config.json in timm's form, and a model card.

Needs huggingface_hub: pip install huggingface_hub.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from minivit.data import Preprocess
from minivit.models import Model
from minivit.models.configs import name_of
from minivit.pretrained import save
from minivit.pretrained.preprocessing import preprocess_entries
from minivit.protocol import Array
from minivit.train import report

# timm's architecture of each class, whose arguments `model_args` overrides
_ARCHITECTURES = {"ViT": "vit_base_patch16_224", "Swin": "swin_tiny_patch4_window7_224"}
_ARCHITECTURES |= {"SwinV2": "swinv2_tiny_window8_256", "distilled": "deit_base_distilled_patch16_224"}
# arguments that timm's classes have under the same name
_ARGUMENTS = (
    *("img_size", "patch_size", "in_chans", "embed_dim", "depth", "depths", "num_heads", "window_size", "mlp_ratio"),
    *("qkv_bias", "class_token", "global_pool", "fc_norm", "dynamic_img_size", "pretrained_window_sizes"),
    *("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
    *("reg_tokens", "no_embed_class", "pre_norm", "final_norm", "pool_include_prefix", "init_values"),
    *("qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias"),
)
# other options of a ViT, and the values with which its architecture in _ARCHITECTURES computes
_AS_IN_TIMM: dict[str, tuple[Any, ...]] = {
    "pos_embed": ("learned_1d",),
    "qkv_bias": (True, False),
    "norm_eps": (1e-6,),
    "norm_layer": ("layernorm",),
    "mlp_layer": ("mlp",),
    "attn_layer": ("",),
    "block_fn": ("block",),
    "post_norm": (False,),
    "patch_norm": (False,),
    "representation_size": (None,),
    "partial_patches": ("refuse",),
    "resnet_layers": (None,),
}
_ACTIVATIONS = {"tanh": "gelu_tanh", "quick": "quick_gelu"}


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    preprocess: Preprocess | None = None,
    classes: Sequence[str] | None = None,
    title: str | None = None,
    facts: dict[str, Any] | None = None,
    labels: Array | None = None,
    logits: Array | None = None,
    pictures: Sequence[str | Path] = (),
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
    commit_message: str = "Upload a model of minivit",
) -> str:
    """Upload a model; `minivit.from_pretrained(repo_id)` loads it again. Returns the URL of its page.

    The repository is made if it does not exist. It gets model.safetensors, config.json, README.md (the model card) and
    the images of `pictures`.

    Args:
        model: on any device.
        repo_id: "owner/name".
        preprocess: the transform from images to the model's input; None writes none.
        classes: names of the classes, in the order of the logits.
        title: of the card; None is the model's kind.
        facts: rows of the card's table, such as {"data": "MNIST", "seed": 0}.
        labels, logits: (n,) and (n, K) of test images, for the accuracy of each class.
        pictures: image files that the card shows, such as curves.png.
        license: such as "mit"; None adds a note to the card that there is none.
        private: None is the owner's default for a new repository.
        token: with permission to write; None is HF_TOKEN's or that of `hf auth login`.
        endpoint: URL of a mirror, instead of HF_ENDPOINT's.
        commit_message: of the upload.

    Raises:
        ImportError: without huggingface_hub.
        PermissionError: without a token, or with one that may not write there.
        ConnectionError: the Hub cannot be reached, or refuses the files.
        ValueError: arguments that contradict each other.
    """
    if classes is not None and len(classes) != model.num_classes:
        raise ValueError(f"{len(classes)} names of classes for a model of num_classes={model.num_classes}")
    if (labels is None) != (logits is None):
        raise ValueError("give both labels and logits, for the accuracy of each class, or neither")
    missing = [str(path) for path in pictures if not Path(path).is_file()]
    if missing:
        raise ValueError(f"{missing[0]}: no such image file")
    hub = _library()
    token = token or hub.get_token()
    if not token:
        raise PermissionError(
            "there is no token for the Hub: make one that may write, in the settings of your account there, then log "
            "in with `hf auth login`, set HF_TOKEN, or pass token="
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        save(model, out / "model.safetensors")
        (out / "config.json").write_text(json.dumps(hub_config(model, preprocess, classes), indent=2), encoding="utf-8")
        card = report.hub_card(
            title or f"A {type(model).__name__} of minivit",
            facts or {},
            repo_id=repo_id,
            license=license,
            preprocess=preprocess,
            per_class=None
            if labels is None or logits is None
            else report.class_accuracies(labels, logits, classes or [f"class {k}" for k in range(logits.shape[1])]),
            pictures=[Path(path).name for path in pictures],
        )
        (out / "README.md").write_text(card, encoding="utf-8")
        for path in pictures:
            shutil.copy(path, out)
        return _upload(hub, out, repo_id, token, endpoint, private, commit_message)


def hub_config(model: Model, preprocess: Preprocess | None, classes: Sequence[str] | None) -> dict[str, Any]:
    """The content of config.json in timm's form: architecture, its arguments, classes and preprocessing.

    A model that timm lacks, such as a hybrid of another size, has no "architecture"; minivit reads its configuration
    from model.safetensors.
    """
    config, kind = model.config, type(model).__name__
    found: dict[str, Any] = {"num_classes": model.num_classes}
    published = name_of(config)
    if published is not None:
        found["architecture"] = published
        found["model_args"] = {name: config[name] for name in ("img_size", "in_chans")}
    elif kind != "ViT" or all(config[name] in values for name, values in _AS_IN_TIMM.items()):
        found["architecture"] = _ARCHITECTURES["distilled" if config.get("distilled") else kind]
        found["model_args"] = {name: config[name] for name in _ARGUMENTS if config.get(name) is not None}
        if config["gelu"] in _ACTIVATIONS:
            found["model_args"]["act_layer"] = _ACTIVATIONS[config["gelu"]]
    if "model_args" in found:
        found["model_args"]["num_classes"] = model.num_classes
    found["global_pool"] = config["global_pool"]
    if classes is not None:
        found["label_names"] = list(classes)
    if preprocess is not None:
        found |= preprocess_entries(preprocess)
    return found


def _library() -> Any:
    try:
        import_module("huggingface_hub.errors")
        return import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError(
            f"push_to_hub needs huggingface_hub, which cannot be imported ({error}): pip install huggingface_hub"
        ) from None


def _upload(
    hub: Any, folder: Path, repo_id: str, token: str, endpoint: str | None, private: bool | None, message: str
) -> str:
    api = hub.HfApi(endpoint=endpoint, token=token, library_name="minivit")
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
    except hub.errors.HFValidationError as error:
        raise ValueError(f"repo_id={repo_id!r} is not the name of a repository, owner/name: {error}") from None
    except Exception as error:  # its HTTP client, and so the types of errors, has changed with each major version
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = " ".join(str(error).split())[:300] or type(error).__name__
        if status in (401, 403):
            raise PermissionError(
                f"the Hub refuses to write {repo_id} ({why}): use a token that may write there, and check the owner"
            ) from error
        raise ConnectionError(
            f"{repo_id} could not be uploaded ({why}): check the network and HF_ENDPOINT, and try again; what is there "
            "already stays as it was"
        ) from error
    return str(url)
