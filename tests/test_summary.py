"""The table of a model's stages adds up: parameters, multiply-adds, shapes, and bytes counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

import minivit
from minivit import nn, optim
from minivit.nn.kept_memory import Kept
from minivit.summary import summary

SIZES = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 2, "num_heads": 2}


def vit(**options):
    return minivit.ViT(**{**SIZES, **options})


def own(layer):
    return [*(param.data for param in layer.parameters().values()), *layer.constants()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_pool": "avg"},
        {"distilled": True},
        {"num_classes": 0},
        {"representation_size": 5},
        {"patch_norm": True, "pos_embed": "relative"},
        {"skip_unused_tokens": False},
    ],
)
def test_totals_are_the_models(options):
    model = vit(**options)
    table = summary(model, quiet=True)
    assert table.parameters == optim.parameter_count(model.parameters())
    assert table.parameters == sum(row.parameters for row in table.rows)
    assert table.kept_bytes == sum(row.kept_bytes for row in table.rows)
    assert table.backward_macs == 2 * table.macs
    assert table.published_macs == nn.multiply_adds(model, (1, 1, 8, 8)) >= table.macs
    assert all(param.grad is None for param in model.parameters().values())


def test_rows_and_shapes():
    rows = {row.name: row for row in summary(vit(), quiet=True).rows}
    assert {name: (row.kind, row.shape) for name, row in rows.items()} == {
        "embed": ("Tokens", (1, 5, 8)),
        "blocks.0": ("Block", (1, 5, 8)),
        "blocks.1": ("Block", (1, 1, 8)),  # only the class token comes out of the last block
        "norm": ("LayerNorm", (1, 1, 8)),
        "pool": ("Pool", (1, 8)),
        "head_drop": ("Dropout", (1, 8)),
        "head": ("Linear", (1, 3)),
    }
    assert rows["head"].macs == 24 and rows["head"].parameters == 27
    assert rows["embed"].macs == 4 * 16 * 8 and rows["embed"].parameters == 8 + 5 * 8 + 16 * 8 + 8
    # per token: q, k, v and out 4 x 8 x 8, MLP 8 x 8 x 8; 5 x 5 scores and weighted sums of width 8
    assert rows["blocks.0"].macs == 5 * (4 + 8) * 64 + 2 * 25 * 8
    # one token asks: its q, out and MLP; k and v of all five
    assert rows["blocks.1"].macs == (2 + 8) * 64 + 5 * 2 * 64 + 2 * 5 * 8


def test_multiply_adds_are_linear_in_the_batch():
    for stage, shape in [(vit().blocks[0], (1, 5, 8)), (vit().blocks[1], (1, 5, 8)), (vit().embed, (1, 1, 8, 8))]:
        assert nn.multiply_adds(stage, (7, *shape[1:])) == 7 * nn.multiply_adds(stage, shape) > 0


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_linear_layer_keeps_its_input_and_nothing_else(batch, dtype):
    layer = nn.Linear(5, 3, dtype=dtype, seed=0)
    x = np.ones((batch, 4, 5), dtype)
    _, back = layer(x)
    assert Kept(own(layer)).add(back) == batch * 4 * 5 * x.itemsize
    assert Kept(()).add(back) == batch * 4 * 5 * x.itemsize + (3 * 5 + 3) * x.itemsize  # and the parameters


def test_kept_bytes_grow_linearly_with_the_batch():
    model = vit(drop_rate=0.1, attn_drop_rate=0.1, proj_drop_rate=0.1)
    kept = []
    for batch in (1, 2, 3, 4):
        _, back = model(np.ones((batch, 1, 8, 8), np.float32), np.random.default_rng(0))
        kept.append(Kept(own(model)).add(back))
    assert len(set(np.diff(kept))) == 1
    assert kept[0] > 0


def test_the_table_measures_what_a_run_keeps():
    model = vit()
    _, back = model(np.zeros((1, 1, 8, 8), np.float32))
    # stages that share a buffer count it each, so the rows' sum may be larger, but not by much
    whole, rows = Kept(own(model)).add(back), summary(model, quiet=True).kept_bytes
    assert whole <= rows <= 1.5 * whole


def test_a_spent_back_keeps_nothing():
    model = vit()
    y, back = model(np.zeros((1, 1, 8, 8), np.float32))
    assert Kept(own(model)).add(back) > 0
    back(y)
    assert Kept(own(model)).add(back) == 0 and back.spent


def test_a_view_counts_its_whole_buffer_once():
    x = np.zeros(1000)
    parts = [x[:10], x[10:20].reshape(2, 5)]

    def back():
        return parts, x

    assert Kept(()).add(back) == x.nbytes
    assert Kept([x]).add(back) == 0


def test_printing(capsys):
    model = vit()
    table = summary(model)
    printed = capsys.readouterr().out
    assert printed == f"{table}\n"
    lines = printed.splitlines()
    assert lines[0].split() == ["stage", "layer", "output", "parameters", "MACs", "forward", "MACs", "backward", "kept"]
    assert lines[2].split()[:4] == ["embed", "Tokens", "5x8", "184"]
    total = next(line for line in lines if line.startswith("total"))
    assert f"{table.parameters:,}" in total and f"{table.macs:,}" in total
    assert f"{table.kept_bytes / 1024:,.1f} KiB" in total
    assert len({len(line) for line in lines[: lines.index(total) + 1]}) == 1, "the columns are not aligned"
    assert f"{table.published_macs:,} MACs forward" in lines[-1] and "papers" in lines[-1]
    summary(model, quiet=True)
    assert capsys.readouterr().out == ""


def test_the_published_line_stands_only_where_it_differs():
    assert "papers" not in str(summary(vit(skip_unused_tokens=False), quiet=True))
    assert "papers" not in str(summary(vit(global_pool="avg"), quiet=True))


@pytest.mark.parametrize("size, grid", [(16, 16), ((8, 16), 8), (None, 4)])
def test_other_image_sizes(size, grid):
    table = summary(vit(dynamic_img_size=True), size, quiet=True)
    assert table.rows[0].shape == (1, 1 + grid, 8)
