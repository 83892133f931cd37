# %% [markdown]
# # 8b. Swin: shifted windows and their mask
#
# [The page before](08_swin.py) explains windows: tokens attend only to the tokens of their own window. This page shows
# how Swin connects the windows by a shift, why the shift needs a mask, and why blocks come in pairs. You will be able
# to say what the shift and the mask do, and to show it with a measurement.
#
# **Run time.** The code of this page takes about 3 s on one core of a server processor.
#
# **Words used here.** *Plain* windows cut the map from its top left corner. *Shifted* windows are moved by half a
# window. A *mask* says which pairs of tokens may attend to each other. The *receptive field* of an output is the set of
# inputs that it depends on.

# %%
import warnings

import numpy as np
from matplotlib.patches import Rectangle

import minivit
from minivit import explain, functional as F, nn
from minivit.draw import figures
from minivit.draw.windows import draw_masks, draw_moves

rng = np.random.default_rng(0)

# %% [markdown]
# ## The cyclic shift
#
# Windows have a drawback: no information leaves a window. Two tokens on both sides of a border are neighbors in the
# image, but never attend to each other. So every second block shifts its windows by half a window.
#
# Shifted windows are cut off at the border of the map, so they have several sizes. To keep one size, Swin *rolls* the
# map up and left by the shift. Rows shifted out at the top reappear at the bottom, and columns shifted out at the left
# reappear at the right. Take a map of 8 x 8, windows of 4, and a shift of 2:

# %%
at = explain.layout((8, 8), (4, 4), (2, 2))
before, after = explain.positions(at), explain.positions_after_roll(at)
print(explain.side_by_side([("on the map", explain.grid_text(before, (4, 4))),
                            ("rolled by (-2, -2)", explain.grid_text(after, (4, 4)))]))  # fmt: skip

rolled, unroll = F.roll(before[None, :, :, None], (-2, -2))
assert (rolled[0, :, :, 0] == after).all()
assert (unroll(rolled)[0, :, :, 0] == before).all()  # the backward pass of a roll is the opposite roll

# %% [markdown]
# ## The mask
#
# In the window at the top right after the roll, 23 and 16 are adjacent. On the map, 23 is the last token of its row and
# 16 the first. They are at opposite ends of the image, and share a window only because of the roll. A mask excludes
# such pairs: tokens may attend to each other only if they belonged to the same window before the roll.
#
# In the figure, each color is one window before the roll. After the roll, tokens of a window may attend to each other
# if they have the same label.


# %%
def canvas(height):
    """An empty figure, for drawings that place their own parts."""
    figure, axes = figures.new(width=9, height=height)
    axes.remove()
    figure.set_layout_engine("none")
    return figure


figure = canvas(3.9)
draw_moves(figure, at)
figures.show(
    figure,
    "08b_shift",
    alt="A numbered map of 8 by 8 cut by shifted windows, the same map after the roll with plain windows and a dashed "
    "seam, and the labels of the nine regions.",
)

# %% [markdown]
# The next figure shows the mask as a table for each window, with a row for each query and a column for each key. The
# *seam* is the border along which the roll has joined opposite ends of the map. Window 0 has no seam, windows 1 and 2
# have one, and window 3 has two.

# %%
figure = canvas(2.9)
draw_masks(figure, at)
figures.show(
    figure,
    "08b_masks",
    alt="Four square masks, queries by keys: window 0 is full, window 1 is striped, window 2 has two blocks, "
    "window 3 has four small blocks striped.",
)
mask = F.shift_mask((8, 8), (4, 4), (2, 2))  # (windows, 16, 16), True = may attend
print("masked pairs of 256 in each window:", (~mask).sum(axis=(1, 2)).tolist())
assert (~mask).sum(axis=(1, 2)).tolist() == [0, 128, 128, 192]

# %% [markdown]
# What happens without the mask? The next cell changes **one** token, the one at the top left, and finds the outputs of
# the layer that change. The class `NoMask` is the library's window attention without the mask.
#
# **Predict first.** Windows are 4 x 4 and the map is 8 x 8. How many outputs change with plain windows, with shifted
# windows and the mask, and with shifted windows without the mask? Where are they?


# %%
class NoMask(nn.WindowAttention):
    def forward(self, x, rng=None, mask=None):
        return super().forward(x, rng, mask=None)


def layer(kind, shift):
    """Attention in windows of 4 of a map with 8 channels; masked scores are minus infinity, so their weight is 0."""
    attention = kind(8, 2, 4, mask_value=-np.inf, dtype="float64", seed=1)
    return nn.ShiftedWindows(attention, 4, shift)


def who_changes(layer, position, x):
    """(H, W): how much each output changes with the token at `position`."""
    moved = x.copy()
    moved[(0, *position)] += 1.0
    return np.abs(layer(moved)[0] - layer(x)[0]).max(axis=-1)[0]


tokens = rng.standard_normal((1, 8, 8, 8))  # (B, H, W, D)
cases = {
    "plain windows": layer(nn.WindowAttention, 0),
    "shifted, with the mask": layer(nn.WindowAttention, 2),
    "shifted, without the mask": layer(NoMask, 2),
}
changes = {title: who_changes(each, (0, 0), tokens) for title, each in cases.items()}
for title, change in changes.items():
    rows, columns = np.nonzero(change)
    print(f"{title:27s} {len(rows):3d} outputs change, the furthest is {max(rows.max(), columns.max())} positions away")

assert [int((change > 0).sum()) for change in changes.values()] == [16, 4, 16]
in_corners = np.ix_([0, 1, 6, 7], [0, 1, 6, 7])  # (4, 4)
assert (changes["shifted, without the mask"][in_corners] > 0).all()
assert changes["shifted, without the mask"][7, 7] > 0 and changes["shifted, with the mask"][7, 7] == 0

# %%
figure, axes = figures.new(1, 3, width=9, height=3.2)
for panel, (title, change) in zip(axes, changes.items()):
    panel.imshow(np.where(change > 0, 1.0, 0.0), cmap="Greys", vmin=0, vmax=2)
    for border in (4,) if title.startswith("plain") else (2, 6):  # of the windows; cells are drawn around their middle
        panel.axhline(border - 0.5, color="#222222", linestyle="-", marker="")
        panel.axvline(border - 0.5, color="#222222", linestyle="-", marker="")
    for row, column in np.ndindex(8, 8):
        word = "X" if (row, column) == (0, 0) else "•" if change[row, column] > 0 else ""
        panel.text(column, row, word, ha="center", va="center")
    panel.set(title=title, xlabel="column", ylabel="row", xticks=range(8), yticks=range(8))
    panel.spines[:].set_visible(True)
figures.show(
    figure,
    "08b_perturbed",
    alt="Which of 8 by 8 outputs change when the token at the top left is changed: a window of 16 with plain windows, "
    "the 4 in the corner with shift and mask, and without the mask also positions in the three far corners.",
)

# %% [markdown]
# With plain windows the 16 outputs of the token's window change. With the shift and the mask only 4 change: the window
# at the top left is cut off by the ends of the image. Without the mask 16 change, and 12 of them are in the three other
# corners of the image.
#
# Without the mask the left end of the image is adjacent to the right end, and the top to the bottom: the map is
# periodic. So if the input is rolled by a whole window, the output is rolled in the same way. The layer does not depend
# on where the image ends. With the mask it does.

# %%
for title, each in cases.items():
    y, _ = each(tokens)
    of_rolled, _ = each(np.roll(tokens, 4, axis=2))  # one window to the right; the last columns come in at the left
    difference = np.abs(of_rolled - np.roll(y, 4, axis=2)).max()
    print(f"{title:27s} differs by {difference:.1e} when the image is rolled by a window")
    assert (difference < 1e-12) == (title != "shifted, with the mask")

# %% [markdown]
# With plain windows the output is also just rolled, because the windows are independent. A Swin needs both: the shift
# for attention across the borders of windows, and the mask against attention across the ends of the image. [Lesson
# 10](10_break_it.py) has a task that can only be solved with both.
#
# The relative positions of [the page before](08_swin.py) are also wrong without the mask. In the top right window after
# the roll, 16 is one column to the right of 23. So the pair reads the row of the table for the right neighbor. On the
# map 16 is seven columns to the left of 23.
#
# **Predict first.** Does a gradient check notice that the mask is missing?

# %%
small = rng.standard_normal((2, 4, 4, 4))  # (B, H, W, D): windows of 2, shift 1
for kind in (nn.WindowAttention, NoMask):
    attention = kind(4, 2, 2, mask_value=-np.inf, dtype="float64", seed=1)
    error = minivit.check_vjp(nn.ShiftedWindows(attention, 2, 1), small)
    print(f"{kind.__name__:16s} gradient check passes, error {error:.0e}")
    assert error < 1e-6

# %% [markdown]
# It does not. The layer without the mask has a right gradient, of the wrong function.
#
# ## Why blocks come in pairs
#
# A plain block spreads information within its windows, and a shifted block spreads it across their borders. How large
# is the receptive field after a few blocks? Gradients show it. Run some blocks, start the backward pass from a single
# output, and find the inputs whose gradient is not 0.
#
# **Predict first.** On a map of 16 x 16 with windows of 4 x 4: how many inputs does an output see after 6 blocks, if
# plain and shifted blocks alternate? How many if all blocks are plain, or all shifted?

# %%
dim, side, window = 4, 16, 4


def tower(shifts):
    """Real Swin blocks, one for each shift."""
    blocks = []
    for number, shift in enumerate(shifts):
        attention = nn.WindowAttention(dim, 2, window, mask_value=-np.inf, dtype="float64", seed=number)
        mlp = nn.Mlp(dim, 2 * dim, dtype="float64", seed=number)
        norms = [nn.LayerNorm(dim, dtype="float64") for _ in range(2)]
        blocks.append(nn.Block(norms[0], nn.ShiftedWindows(attention, window, shift), norms[1], mlp))
    return nn.Sequential(*blocks)


def seen_by(shifts, position=(8, 8)):
    """(H, W) booleans: the inputs that the output at `position` depends on, from a backward pass."""
    _, back = tower(shifts)(np.random.default_rng(3).standard_normal((1, side, side, dim)))
    dy = np.zeros((1, side, side, dim))
    dy[(0, *position)] = np.random.default_rng(4).standard_normal(dim)
    return (back(dy) != 0).any(axis=-1)[0]


deepest = 6
kinds = {"plain, shifted, plain, ...": [0, 2], "plain only": [0, 0], "shifted only": [2, 2]}
reach = {name: [int(seen_by((pair * 3)[:n]).sum()) for n in range(1, deepest + 1)] for name, pair in kinds.items()}
for name, counts in reach.items():
    print(f"{name:28s} inputs seen after 1 ... {deepest} blocks: {counts}")

assert reach["plain only"] == reach["shifted only"] == [16] * deepest  # never more than one window
assert reach["plain, shifted, plain, ..."][-1] == side * side  # all of the map

# %% [markdown]
# If they alternate, the output sees all 256 inputs. Plain windows alone never see more than the 16 inputs of a window.
# Shifted windows alone do not either, because they are just another fixed grid. Only alternating between the two grids
# enlarges the receptive field. So blocks come in pairs, and minivit warns of a Swin with an odd number of blocks in a
# stage:

# %%
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    minivit.Swin(img_size=32, embed_dim=12, depths=(3,), num_heads=(2,), window_size=4)
print(warned[0].message)

# %%
figure, axes = figures.new(1, 2, width=9, height=3.6, width_ratios=[1, 1.25])
depth = np.zeros((side, side), int)
for n in range(deepest, 0, -1):
    depth[seen_by(([0, 2] * 3)[:n])] = n  # the smallest number of blocks writes last
picture = axes[0].imshow(depth, cmap="Greys_r", vmin=0, vmax=7)
for row, column in np.ndindex(side, side):
    color = "white" if depth[row, column] < 4 else "black"
    axes[0].text(column, row, depth[row, column], ha="center", va="center", fontsize=7, color=color)
axes[0].add_patch(Rectangle((7.5, 7.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2))
axes[0].set(title="blocks until the framed output sees this input", xlabel="column", ylabel="row")
for name, counts in reach.items():
    axes[1].plot(range(1, deepest + 1), counts, label=name)
axes[1].axhline(side * side, color="#666666", linewidth=1, linestyle=":", marker="")
axes[1].text(1, side * side - 14, "the whole map, 256", color="#444444", fontsize=9, va="top")
axes[1].set(xlabel="blocks", ylabel="inputs that one output sees", ylim=(0, 275))
axes[1].legend(loc="center right")
figures.show(
    figure,
    "08b_reach",
    alt="Left, a map of 16 by 16 with the number of blocks until the middle output sees each input, growing outward. "
    "Right, inputs seen against blocks: alternating blocks reach all 256, plain or shifted alone stay at 16.",
)

# The library measures the same for its figures, with weights of its own.
library = explain.receptive_field(explain.layout((side, side), (window, window), (2, 2)), deepest, (8, 8))
assert (library == depth).all()

# %% [markdown]
# Merging between stages enlarges the receptive field, too: a window of 7 x 7 tokens spans 28 pixels in the first stage,
# and 224 in the last.
#
# ## The whole model, checked
#
# Roll and partition are permutations, so their backward passes are the inverse permutations (see
# [windows](../derivations/windows.md)). The gathering of 2 x 2 tokens in a merging is one, too. Here is a small Swin
# with shift, mask, bias table and merging. Its images of 14 x 10 pixels make a map of 7 x 5. Windows of 4 x 4 do not
# divide this map, so it is zero-padded. Every gradient is right:

# %%
small = minivit.Swin(
    img_size=(14, 10), patch_size=2, in_chans=1, num_classes=3, embed_dim=4, depths=(2, 2), num_heads=(1, 2),
    window_size=4, dtype="float64",
)  # fmt: skip
images = rng.standard_normal((2, 1, 14, 10))
error = minivit.check_vjp(small, images)
print(f"Swin with {sum(p.size for p in small.parameters().values()):,} parameters: gradient error {error:.0e}")
assert error < 1e-6
attention = nn.ShiftedWindows(nn.WindowAttention(4, 2, (2, 3), dtype="float64", seed=0), (2, 3), (1, 1))
print(f"shifted windows, every element: {minivit.check_complex_step(attention, rng.standard_normal((2, 3, 5, 4))):.0e}")

# %% [markdown]
# ## What you have seen
#
# - The shift lets windows exchange information, but only if plain and shifted blocks alternate.
# - Swin computes shifted windows by a roll of the map, so all windows have the same size.
# - Without the mask opposite ends of the image attend to each other, and a gradient check does not show it.
# - The backward pass of a roll is the opposite roll.
#
# ## Try it
#
# **Exercise 1.** In the experiment that changes one token, set the shift to 1 instead of 2. How many outputs change
# with the mask, and why?
#
# <details>
# <summary>Solution 1</summary>
#
# Only one, the output of the changed token itself. With a shift of 1 the borders of the shifted windows lie behind row
# 0 and column 0. So the window at the top left, cut off by the end of the image, holds a single token.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
by_shift = {
    shift: int(np.count_nonzero(who_changes(layer(nn.WindowAttention, shift), (0, 0), tokens))) for shift in (1, 2, 3)
}
print("outputs that change, by shift:", by_shift)
assert by_shift == {1: 1, 2: 4, 3: 9}

# %% [markdown]
# **Exercise 2.** In `seen_by`, ask the output at a corner, `position=(0, 0)`. How many blocks does it need to see
# everything?
#
# <details>
# <summary>Solution 2</summary>
#
# Seven blocks. The output in the middle needs four. A shifted window in the corner is cut off to 2 x 2 tokens, so a
# shifted block adds nothing for the corner if it is the last one: the counts are 16, 16, 64, 64, 144, 144, 256.
#
# </details>

# %% tags=["hide-cell"]
# Solution 2
from_corner = [int(seen_by(([0, 2] * 4)[:n], position=(0, 0)).sum()) for n in range(1, 8)]
print("inputs seen from the corner after 1 ... 7 blocks:", from_corner)
assert from_corner == [16, 16, 64, 64, 144, 144, 256]

# %% [markdown]
# **Exercise 3.** Published Swins do not set masked scores to minus infinity. They add -100. How large can the weight of
# a masked pair become? When would that go wrong?
#
# <details>
# <summary>Solution 3</summary>
#
# If all other scores are about equal, the weight is about $e^{-100}$, which is $4 \cdot 10^{-44}$ and far below the
# precision of float32. It goes wrong if a masked score is larger than the allowed ones by about 100 or more. Then the
# sum no longer suppresses it. Trained models have far smaller scores, and minus infinity is safe in any case.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
allowed = np.array([[True, True, False]])
for scores in ([[0.0, 0.0, 0.0]], [[0.0, 0.0, 101.0]]):
    scores = np.array(scores)
    by_sum, _ = F.softmax(np.where(allowed, scores, scores - 100))
    by_infinity, _ = F.softmax(np.where(allowed, scores, -np.inf))
    print(f"scores {scores[0]}: weight of the masked token {by_sum[0, 2]:.1e} by -100, {by_infinity[0, 2]} by -inf")
assert by_sum[0, 2] > 0.5 and by_infinity[0, 2] == 0

# %% [markdown]
# Next: [9. Backpropagation](09_backpropagation.py), from the loss to one pixel.
