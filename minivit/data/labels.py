"""The names of classes: from a text or JSON file, or from config.json next to the weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minivit.data.idx import DataError
from minivit.io.budget import parse_json, read_small
from minivit.io.text import printable


def read_labels(path: str | os.PathLike[str], classes: int) -> list[str]:
    """The label of each class; control characters in it are replaced by their escaped form.

    Args:
        path: a text file with one label a line, or a JSON file with a list of labels, or a dict from numbers to labels
            ({"0": "tench"}, as Hugging Face's id2label; {"0": ["n01440764", "tench"]}, as Keras's index of ImageNet) or
            from labels to numbers.
        classes: the model's number of classes.

    Raises:
        DataError: if the file cannot be read, or does not have that many labels.
    """
    file = Path(path)
    try:
        text = read_small(file).decode("utf-8-sig")
        content = parse_json(text) if file.suffix.lower() == ".json" else text.strip().splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: no labels could be read ({error})") from None
    labels = _listed(content)
    if labels is None or len(labels) != classes:
        count = "no list or dict of labels" if labels is None else f"{len(labels)} labels"
        raise DataError(f"{file} holds {count}, and the model has {classes} classes: give one label for each, in order")
    return labels


def labels_beside(config: dict[str, Any], classes: int) -> list[str] | None:
    """The labels in a config.json: Hugging Face's `id2label`, timm's `label_names`; None if it has none."""
    cfg = config.get("pretrained_cfg")
    for entry in (config, cfg if isinstance(cfg, dict) else {}):
        for key in ("id2label", "label_names"):
            labels = _listed(entry.get(key))
            if labels is not None and len(labels) == classes:
                return labels
    return None


def _listed(content: Any) -> list[str] | None:
    """Labels in the order of their classes, 0, 1, 2, ...; None for other content."""
    if isinstance(content, dict):
        if content and all(isinstance(value, int) for value in content.values()):
            content = {number: label for label, number in content.items()}
        numbered = {str(number): label for number, label in content.items()}
        if set(numbered) != {str(number) for number in range(len(numbered))}:
            return None
        content = [numbered[str(number)] for number in range(len(numbered))]
    if not isinstance(content, list):
        return None
    return [printable(str(label[-1] if isinstance(label, list) and label else label).strip()) for label in content]
