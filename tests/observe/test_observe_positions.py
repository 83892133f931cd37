"""The similarity of positions, against loops, on tables whose answer is known, and as a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from minivit import Swin, ViT, explain, nn
from minivit.draw import positions as position_pictures

SMALL = {"img_size": (12, 20), "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "in_chans": 1}
KINDS = ["learned_1d", "learned_2d", "sincos_1d", "sincos_2d"]
VITS: dict[str, dict[str, Any]] = {
    "class token": {},
    "distilled": {"distilled": True},
    "no token": {"class_token": False, "global_pool": "avg"},
}


def made(kind: str = "learned_1d", tokens: str = "class token", **changes: Any) -> Any:
    return ViT(**{**SMALL, "dtype": "float64", "pos_embed": kind, **VITS[tokens], **changes})


@pytest.mark.parametrize("tokens", VITS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_cosine_between_the_vectors_that_two_patches_get(kind, tokens):
    model = made(kind, tokens)
    table = np.array(model.embed.positions.table((3, 5))[0])
    p = len(model.embed.prefix)
    assert len(table) == p + 15
    got = explain.position_similarity(model)
    assert got.shape == (3, 5, 3, 5)
    for y, x, v, u in np.ndindex(3, 5, 3, 5):
        one, other = table[p + 5 * y + x], table[p + 5 * v + u]
        expected = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
        assert abs(got[y, x, v, u] - expected) < 1e-14


@pytest.mark.parametrize("dtype, bar", [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_position_is_similar_to_itself_and_similarity_is_symmetric(kind, dtype, bar):
    got = explain.position_similarity(made(kind, dtype=dtype))
    assert got.dtype == np.dtype(dtype)
    flat = got.reshape(15, 15)
    assert np.abs(np.diag(flat) - 1).max() < bar and np.abs(flat - flat.T).max() < bar and np.abs(flat).max() < 1 + bar


def test_the_class_tokens_rows_are_left_out():
    for tokens, p in (("class token", 1), ("distilled", 2), ("no token", 0)):
        model = made("learned_1d", tokens)
        before = explain.position_similarity(model)
        model.parameters()["pos_embed"].data[0, :p] = 1e6
        assert np.array_equal(explain.position_similarity(model), before)
        model.parameters()["pos_embed"].data[0, p] += 1.0  # the first patch
        changed = explain.position_similarity(model) != before
        assert changed[0, 0].any() and changed[:, :, 0, 0].any() and not changed[1:, :, 1:].any()


def nearest_are_in_the_own_row_and_column(got: Any) -> None:
    """At each distance, a place in the own row or column is more alike than one that is as far away on both axes."""
    gh, gw = got.shape[:2]
    for y, x, v, u in np.ndindex(gh, gw, gh, gw):
        if y != v and x != u:
            assert got[y, x, v, u] < min(got[y, x, y, u], got[y, x, v, x])
        if (y, x) != (v, u):
            assert got[y, x, v, u] < got[y, x, y, x]


def test_on_smooth_tables_the_own_row_and_column_are_the_nearest():
    nearest_are_in_the_own_row_and_column(explain.position_similarity(made("sincos_2d")))
    model = made("learned_2d")  # halves of a circle, more apart the farther the positions
    for name, count in (("pos_embed_row", 3), ("pos_embed_col", 5)):
        angle = np.linspace(0, np.pi / 2, count)
        model.parameters()[name].data = np.stack((np.cos(angle), np.sin(angle), 0 * angle, 0 * angle), axis=1)
    got = explain.position_similarity(model)
    nearest_are_in_the_own_row_and_column(got)
    assert got[0, 0, 2, 4] == pytest.approx(0) and got[0, 0, 0, 4] == pytest.approx(0.5)
    assert (np.diff(got[0, 0, 0]) < 0).all() and (np.diff(got[0, 0, :, 0]) < 0).all()
    model = made("learned_1d")  # the same learned as one table
    table = np.array(made("sincos_2d").embed.positions.table((3, 5))[0])
    model.parameters()["pos_embed"].data = table[None]
    nearest_are_in_the_own_row_and_column(explain.position_similarity(model))


def test_swin_with_absolute_positions():
    model = Swin(30, 4, 1, 2, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, ape=True, dtype="float64")
    got = explain.position_similarity(model)  # 30 pixels are padded to 8 patches
    table = model.parameters()["absolute_pos_embed"].data[0]
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    assert np.abs(got.reshape(64, 64) - unit @ unit.T).max() < 1e-14 and got.shape == (8, 8, 8, 8)


@pytest.mark.parametrize(
    "model, word",
    [
        (made("none"), "ViT with pos_embed='none' adds no vector of position"),
        (made("relative"), "ViT with pos_embed='relative' adds no vector of position .*are a bias in attention"),
        (
            Swin(8, 2, 1, 2, embed_dim=4, depths=(2,), num_heads=(2,), window_size=2),
            "Swin with ape=False .*with ape=True",
        ),
        (nn.Linear(2, 2), "Linear with no positions in its embedding"),
    ],
    ids=["none", "relative", "swin", "layer"],
)
def test_models_without_absolute_positions_are_refused_with_a_remedy(model, word):
    with pytest.raises(ValueError, match=word):
        explain.position_similarity(model)


def test_a_vector_of_zeros_has_no_direction():
    model = made()
    model.parameters()["pos_embed"].data[0, 4] = 0
    with pytest.raises(ValueError, match="1 of 15 position vectors are all zeros"):
        explain.position_similarity(model)


@pytest.mark.parametrize("kind", KINDS)
def test_on_every_device(kind, device):
    model = made(kind)
    expected = explain.position_similarity(model)
    model.move_to(device.put)
    got = explain.position_similarity(model)
    assert type(got) is type(device.put(expected)) and np.abs(device.get(got) - expected).max() < 1e-14


# --- the figure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(3, 5), (14, 11), (1, 4)])
def test_the_figure_draws_each_map_at_its_position(grid):
    pytest.importorskip("matplotlib")
    similarity = np.random.default_rng(0).uniform(-0.5, 1, (*grid, *grid))
    _, axes = position_pictures.draw_position_similarity(similarity)
    wall = np.ma.filled(axes.get_images()[0].get_array(), np.nan)
    rows = [int(text.get_text()) for text in axes.get_yticklabels()]
    columns = [int(text.get_text()) for text in axes.get_xticklabels()]
    for chosen, count in ((rows, grid[0]), (columns, grid[1])):
        assert chosen[0] == 0 and chosen[-1] == count - 1 and len(set(chosen)) == len(chosen) == min(count, 8)
    gh, gw = grid
    for a, b in np.ndindex(len(rows), len(columns)):
        part = wall[a * (gh + 1) : a * (gh + 1) + gh, b * (gw + 1) : b * (gw + 1) + gw]
        assert np.array_equal(part, similarity[rows[a], columns[b]])
        assert abs(axes.get_yticks()[a] - (a * (gh + 1) + (gh - 1) / 2)) < 1e-9
    assert np.isnan(wall).sum() == wall.size - len(rows) * len(columns) * gh * gw


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"similarity has shape \(2, 3, 3, 2\)"):
        position_pictures.draw_position_similarity(np.zeros((2, 3, 3, 2)))
