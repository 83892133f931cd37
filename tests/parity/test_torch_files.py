"""What torch.save writes, in both of its formats, is read as torch.load reads it: every dtype and layout, bit for bit.

`test_torch_file.py` has the rest, with files written without PyTorch.
"""

from __future__ import annotations

import argparse
import collections
import pickle
import warnings

import numpy as np
import pytest
from parity_tools import torch

from minivit.io.torch_file import read_torch_file

DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
DTYPES += ["complex64", "complex128", *(name for name in ("uint16", "uint32", "uint64") if hasattr(torch, name))]
formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])


@pytest.fixture
def written(tmp_path):
    """What torch.save writes, read here."""

    def save_and_read(value, zipped, **options):
        torch.save(value, tmp_path / "file.pt", _use_new_zipfile_serialization=zipped, **options)
        return read_torch_file(tmp_path / "file.pt")

    return save_and_read


def as_array(tensor):
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def same(got, expected):
    """Structure for structure, and tensors bit for bit."""
    if isinstance(expected, torch.Tensor):
        array = as_array(expected)
        assert type(got) is np.ndarray and (got.dtype, got.shape) == (array.dtype, array.shape)
        return got.tobytes() == array.tobytes()
    if isinstance(expected, dict):
        return type(got) is dict and list(got) == list(expected) and all(same(got[key], expected[key]) for key in got)
    if isinstance(expected, (list, tuple)):
        return len(got) == len(expected) and all(map(same, got, expected))
    return type(got) is type(expected) and got == expected


@formats
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (5,), (2, 3, 4)], ids=str)
def test_every_dtype(written, zipped, name, shape):
    values = torch.randint(0, 2 if name == "bool" else 100, shape).to(getattr(torch, name))
    if values.is_floating_point() and values.dim():
        values = values / 7
    assert same(written({"a": values}, zipped), {"a": values})


@formats
def test_every_bfloat16(written, zipped):
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(torch.bfloat16)
    assert same(written(values, zipped), values)


@formats
def test_layouts(written, zipped):
    base = torch.randn(4, 6, 8)
    layouts = [
        base[1],
        base[:, ::2, 1::3],
        base.permute(2, 0, 1),
        base.transpose(0, 2)[3:],
        base[0, 0].expand(5, 8),
        base[:, :1, :1].expand(4, 6, 8),
        base.as_strided((3, 4), (1, 2), 5),
        base[4:],
        torch.zeros(4, 0)[2:],
        base[0, 0, 0],
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    ]
    got = written(layouts, zipped)
    assert same(got, layouts)
    assert np.shares_memory(got[0], got[1])


@formats
def test_parameters_buffers_and_devices(written, zipped):
    noted = torch.nn.Parameter(torch.randn(3))
    noted.note = "attributes of a parameter are left out"
    value = {
        "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        "noted": noted,
        "again": noted,
    }
    assert same(written(value, zipped), value)
    names = [torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3])]
    assert written(names, zipped) == ["torch.float32", "torch.bfloat16", "cpu", "cuda:1", (2, 3)]
    storage = torch.arange(3, dtype=torch.uint8).untyped_storage()
    assert written([storage], zipped)[0].tolist() == [0, 1, 2]


@formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_whole_checkpoint(written, zipped, protocol):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.BatchNorm2d(8), torch.nn.Flatten(), torch.nn.Linear(32, 5).half().float()
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        schedule.step()
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"last_epoch": schedule.last_epoch, "base_lrs": schedule.base_lrs},
        "random": torch.get_rng_state(),
        "epoch": 2,
        "best": np.float64(0.75),
        "counts": np.arange(4),
        "name": "vit",
        "scaler": None,
    }
    kept = {**checkpoint, "counts": torch.arange(4)}
    checkpoint["args"] = argparse.Namespace(lr=1e-3, opt_betas=None, data_set="IMNET", input_size=224, dtype=torch.half)
    checkpoint["meters"] = collections.defaultdict(list, {"loss": [1.0, 0.5]})
    got = written(checkpoint, zipped, pickle_protocol=protocol)
    args, meters = got.pop("args"), got.pop("meters")
    assert same(got, kept)
    assert args == {"lr": 1e-3, "opt_betas": None, "data_set": "IMNET", "input_size": 224, "dtype": "torch.float16"}
    assert meters == {"loss": [1.0, 0.5]}


@formats
def test_a_vision_transformer(written, zipped):
    layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    for model in (encoder, encoder.half(), encoder.bfloat16()):
        state = model.state_dict()
        assert len(state) == 36 and same(written({"model": state}, zipped), {"model": state})


@formats
def test_whole_modules_and_sparse_tensors_are_refused(written, zipped):
    with pytest.raises(ValueError, match="names torch.nn.modules.linear.Linear|as a storage"):
        written(torch.nn.Linear(2, 2), zipped)
    with pytest.raises(ValueError, match="names torch._utils._rebuild_sparse_tensor"):
        written(torch.eye(3).to_sparse(), zipped)
    with pytest.raises(ValueError, match="conjugate or negative"):
        written(torch.randn(2, dtype=torch.complex64).conj(), zipped)


def test_a_tensor_pickled_without_torch_save_is_refused(tmp_path):
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(torch.ones(2)))
    with pytest.raises(ValueError, match="names torch.storage._load_from_bytes"):
        read_torch_file(tmp_path / "file.pkl")


def test_torchscript_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2)), tmp_path / "file.pt")
    with pytest.raises(ValueError, match="TorchScript|compressed"):
        read_torch_file(tmp_path / "file.pt")


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="a later PyTorch has it")
def test_files_without_checksums(written):
    torch.serialization.set_crc32_options(False)
    try:
        values = torch.randn(5)
        assert same(written([values], True), [values])
    finally:
        torch.serialization.set_crc32_options(True)
