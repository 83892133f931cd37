"""Zero-shot classification: an image is compared with one vector for each class, such as the embedding of its name.

Notation: B images, n classes, D channels of the space that images and texts share.
"""

from __future__ import annotations

from math import exp
from pathlib import Path

import numpy as np

from minivit import functional as F
from minivit.data.idx import DataError
from minivit.io.budget import open_file
from minivit.pretrained.recognition import Recognized
from minivit.protocol import Array

USUAL_SCALE = 100.0  # the bound of exp(logit_scale) in CLIP's training, which its published weights reach

_MOST = 50.0  # of a logit_scale: CLIP's is at most log 100


def zero_shot_probabilities(features: Array, vectors: Array, scale: float = USUAL_SCALE) -> Array:
    """(B, n): softmax over the classes of scale cos(x, v), for image features x (B, D) and class vectors v (n, D).

    The lengths of both have no effect. SigLIP's bias of all similarities has none either, since softmax removes it.

    Source: Radford et al. 2021 (CLIP), section 3.1.2.

    Raises:
        ValueError: if the vectors have another number of channels than the features.
    """
    if features.shape[-1] != vectors.shape[-1]:
        raise ValueError(
            f"class vectors have {vectors.shape[-1]} channels, and the model's output {features.shape[-1]}: take the "
            "text embeddings of this model, or weights with the projection to the space of these vectors"
        )
    images, classes = F.normalize(features)[0], F.normalize(vectors)[0].astype(features.dtype)
    return F.softmax(scale * (images @ classes.T))[0]


def scale_of(found: Recognized) -> float | None:
    """exp(logit_scale) of the file, beside its model; None if it has none.

    Raises:
        ValueError: if it is not one number, or too large.
    """
    for name in found.left_out:
        if name.rpartition(".")[2] == "logit_scale":
            values = found.weights.arrays[name].reshape(-1)
            if values.size != 1 or not abs(values[0]) < _MOST:
                raise ValueError(f"{found.path}: {name} is not one number of moderate size: fetch the file again")
            return exp(values[0])
    return None


def read_class_vectors(path: str | Path) -> Array:
    """The class vectors (n, D) in a .npy file, as float64.

    Raises:
        DataError: if the file cannot be read, or holds no such vectors.
    """
    remedy = "write an array (n, D) of floats, a vector for each class, with np.save"
    try:
        with open_file(path):  # a regular file
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)  # which compares the sizes with the file's
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0]
        raise DataError(f"{path}: no class vectors could be read ({reason:.200}): {remedy}") from None
    if not isinstance(vectors, np.ndarray) or vectors.ndim != 2 or vectors.dtype.kind != "f" or not vectors.size:
        holds = f"{vectors.shape} of {vectors.dtype}" if isinstance(vectors, np.ndarray) else "several arrays"
        raise DataError(f"{path} holds {holds}: {remedy}")
    read = np.array(vectors, np.float64)
    odd = np.flatnonzero(~np.isfinite(read).all(axis=1) | ~read.any(axis=1))
    if odd.size:
        raise DataError(f"{path}: the vector of class {odd[0]} is 0 or not finite: embed that class again")
    return read
