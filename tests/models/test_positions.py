"""The tables of positions against their formulas, one number at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from minivit.models.positions import make_positions


def test_the_kinds_are_named_where_another_is_asked_for() -> None:
    kinds = "'learned_1d', 'none', 'learned_2d', 'sincos_1d', 'sincos_2d', 'relative'"
    with pytest.raises(ValueError, match=f"pos_embed='learned': choose one of {kinds}"):
        make_positions("learned", (2, 3), 1, 8, "float64", None)
    for kind in ("none", "relative"):
        assert make_positions(kind, (2, 3), 1, 8, "float64", None) is None


@pytest.mark.parametrize("kind", ["sincos_1d", "sincos_2d"])
def test_sines_and_cosines_of_each_position(kind: str) -> None:
    """Wavelengths rise from 2 pi by the same factor up to 10,000 of them; prefix tokens get zeros."""
    positions = make_positions(kind, (2, 3), 2, 8, "float64", None)
    assert positions is not None
    table, back = positions.table((2, 3))
    assert table.shape == (8, 8) and not table[:2].any()
    for row in range(2):
        for column in range(3):
            parts = [(8, 3 * row + column)] if kind == "sincos_1d" else [(4, row), (4, column)]
            expected: list[float] = []
            for dim, position in parts:
                angles = [position / 10_000 ** (2 * i / dim) for i in range(dim // 2)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            np.testing.assert_allclose(table[2 + 3 * row + column], expected, rtol=0, atol=1e-15)
    assert back(np.ones_like(table)) is None


@pytest.mark.parametrize(("kind", "dim", "parts"), [("sincos_1d", 7, 2), ("sincos_2d", 6, 4), ("learned_2d", 7, 2)])
def test_channels_that_do_not_share_evenly_are_refused(kind: str, dim: int, parts: int) -> None:
    with pytest.raises(
        ValueError, match=f"pos_embed='{kind}' needs an (even embed_dim|embed_dim that is a multiple of {parts})"
    ):
        make_positions(kind, (2, 3), 1, dim, "float64", np.random.default_rng(0))


def test_half_of_the_channels_tell_the_row_and_half_the_column() -> None:
    positions = make_positions("learned_2d", (2, 3), 1, 4, "float64", np.random.default_rng(0))
    assert positions is not None
    row, column = positions.pos_embed_row, positions.pos_embed_col
    assert row.shape == (2, 2) and column.shape == (3, 2)
    table, back = positions.table((2, 3))
    assert table.shape == (7, 4) and not table[0].any()
    gradient = np.arange(28.0).reshape(7, 4)
    for y in range(2):
        for x in range(3):
            assert table[1 + 3 * y + x].tolist() == [*row.data[y], *column.data[x]]
    back(gradient)
    places = gradient[1:].reshape(2, 3, 4)
    assert np.array_equal(row.grad, places[:, :, :2].sum(axis=1))
    assert np.array_equal(column.grad, places[:, :, 2:].sum(axis=0))


def test_the_grids_part_alone_is_resampled() -> None:
    """Rows of the grid that are constant at 2x2 stay so at 4x4, and the class token keeps its vector."""
    positions = make_positions("learned_1d", (2, 2), 1, 2, "float64", np.random.default_rng(0))
    assert positions is not None
    positions.pos_embed.data = np.array([[[9.0, 8.0], [1, 2], [1, 2], [5, 4], [5, 4]]])
    table, back = positions.table((4, 4))
    assert table.shape == (17, 2) and table[0].tolist() == [9, 8]
    grid = table[1:].reshape(4, 4, 2)
    np.testing.assert_allclose(grid, np.broadcast_to(grid[:, :1], grid.shape), rtol=0, atol=1e-14)
    assert (np.diff(grid[:, 0], axis=0) > 0).all()
    back(np.ones_like(table))
    gradient = positions.pos_embed.grad
    assert gradient is not None and gradient[0, 0].tolist() == [1, 1]
    np.testing.assert_allclose(gradient[0, 1:], 4, rtol=1e-12)  # the matrices' rows sum to 1, and 4 x 4 share 2 x 2
