# %% [markdown]
# # 8. Swin: windows, shifts and a pyramid
#
# This page explains the parts of the Swin Transformer. You will see how its map of tokens halves from stage to stage,
# how attention in small windows makes the cost linear, why every second block shifts its windows, and what the mask is
# for. You will be able to say what each part does, and show it with a measurement.
#
# Words from earlier pages are used here: a *token* is a vector of channels that stands for a piece of the image, and
# *attention* gives each token a weighted mean of the others, with weights from a *score* for each pair
# ([derivation](../derivations/attention.md)). An *MLP* is two linear maps with a nonlinearity between them, for each
# token alone. A *block* is attention followed by an MLP, both added to the stream of tokens. A *LayerNorm* brings each
# token's channels to mean 0 and standard deviation 1 ([derivation](../derivations/layer_norm.md)).

# %%
import os
import warnings

import numpy as np
from matplotlib.patches import Rectangle

import minivit
from minivit import explain, functional as F, nn
from minivit.draw import figures
from minivit.draw.windows import draw_masks, draw_moves

SHORT = os.environ.get("MINIVIT_LESSONS") == "short"
rng = np.random.default_rng(0)

# %% [markdown]
# ## A pyramid instead of one grid
#
# A ViT cuts an image of 224 x 224 pixels into 14 x 14 patches of 16 pixels, and keeps this one grid from the first
# block to the last. The image is reduced 16 times on each side, in one step. All details inside a patch have to fit
# into its one vector.
#
# Swin (Liu et al. 2021) starts with patches of 4 pixels and halves the map three times: 4, 8, 16 and 32 times smaller.
# Each halving doubles the channels. Convolutional networks such as ResNet have the same structure, so methods that use
# their four maps (for object detection, say) can use Swin's.
#
# Here is Swin-T, part by part, with random weights: only the shapes matter.

# %%
swin = minivit.create_model("swin_tiny_patch4_window7_224", seed=0)
x = rng.standard_normal((1, 3, 224, 224), dtype=np.float32)  # one image (B, C, H, W)

names = ["patches of 4 x 4", "stage 1", "stage 2", "stage 3", "stage 4", "norm", "mean", "classifier"]
parts = [swin.embed, *swin.layers, swin.norm, swin.pool, swin.head]
sides = []
for name, part in zip(names, parts):
    x, _ = part(x)  # the backward function is not needed here
    if x.ndim == 4 and name.startswith("stage"):
        sides.append((x.shape[1], x.shape[3]))
        name += f": {len(part.blocks)} blocks, {224 // x.shape[1]:2d} times smaller"
    print(f"{name:35s} -> {x.shape}")

assert sides == [(56, 96), (28, 192), (14, 384), (7, 768)]  # the map halves, the channels double

# %% [markdown]
# The figure draws the grids over the same image: thin lines separate the tokens, thick lines the windows explained
# below. Swin-T's windows have 7 x 7 tokens in each stage. In the last stage one window covers the whole image.

# %%
grids = [(f"Swin stage {i + 1}", 4 * 2**i, 28 * 2**i) for i in range(4)] + [("ViT, all blocks", 16, 224)]
figure, axes = figures.new(1, 5, width=10, height=2.6)
for panel, (title, patch, window) in zip(axes, grids):
    for lines, style in ((range(0, 225, patch), ("#999999", 0.4)), (range(0, 225, window), ("#222222", 1.8))):
        for at in lines:
            panel.plot([at, at], [0, 224], "-", color=style[0], linewidth=style[1], marker="")
            panel.plot([0, 224], [at, at], "-", color=style[0], linewidth=style[1], marker="")
    panel.set(title=title, xlabel=f"{224 // patch} x {224 // patch} tokens", xticks=[], yticks=[], aspect="equal")
    panel.spines[:].set_visible(False)
figures.show(
    figure,
    "08_pyramid",
    alt="Five grids over one image: Swin's four stages with 56, 28, 14 and 7 tokens a side and windows of 7 by 7 "
    "tokens, and ViT's single grid of 14 by 14 tokens without windows.",
)

# %% [markdown]
# ## Patch partition: 48 numbers, then a linear map
#
# A patch of 4 x 4 pixels with 3 colors has 4 * 4 * 3 = 48 numbers. The partition concatenates them, and a linear map
# turns them into the C = 96 channels of the first stage. The two together are a convolution whose kernel is as large as
# its stride, which is why the weight is stored as (96, 3, 4, 4). See [patch embedding](../derivations/patch_embed.md)
# for its gradient.

# %%
image = rng.standard_normal((1, 3, 224, 224), dtype=np.float32)
rows, _ = F.patchify(image, 4)  # (1, 3136, 48): one row for each patch
projection = swin.embed.patch_embed.proj
by_hand = rows @ projection.weight.data.reshape(96, 48).T + projection.bias.data  # (1, 3136, 96)
from_the_layer, _ = projection(image)

print(f"partition {image.shape} -> {rows.shape}, linear map -> {by_hand.shape}")
assert rows.shape == (1, 56 * 56, 48)
assert np.allclose(by_hand, from_the_layer, atol=1e-5)

# %% [markdown]
# ## Patch merging: four positions become one
#
# Between two stages, each neighborhood of 2 x 2 tokens becomes one token. Four slices with step 2 select the four
# corners of all neighborhoods at once: `x0` top left, `x1` bottom left, `x2` top right, `x3` bottom right. They are
# concatenated, which gives 4C channels.
#
# Note the order: **down comes before right**. All published Swins were trained with it. Another order would train as
# well, but published weights would then be applied to the wrong corners, without an error, because the shapes are the
# same.

# %%
numbers = np.arange(16.0).reshape(1, 4, 4, 1)  # (B, H, W, C): positions numbered in reading order
x0 = numbers[:, 0::2, 0::2]  # top left
x1 = numbers[:, 1::2, 0::2]  # bottom left: one down
x2 = numbers[:, 0::2, 1::2]  # top right: one to the right
x3 = numbers[:, 1::2, 1::2]  # bottom right
by_hand = np.concatenate([x0, x1, x2, x3], axis=-1)  # (1, 2, 2, 4)
merged, _ = F.patch_merging(numbers)
print("the first new token holds the positions", merged[0, 0, 0].astype(int).tolist(), "(down before right)")
assert (merged == by_hand).all()
assert merged[0, 0, 0].tolist() == [0, 4, 1, 5]

# %%
shades = np.array(["#FFFFFF", "#9CCBE8", "#F3D27A", "#C9C9C9"])  # one for each slot
slots = np.array([[0, 2], [1, 3]])  # slot = down + 2 * right
figure, axes = figures.new(1, 6, width=10, height=2.6, width_ratios=[2.2, 1, 1, 1, 1, 1.6])


def draw(panel, words, colors, title):
    """Numbered cells, each in its color."""
    for (row, column), word in np.ndenumerate(words):
        panel.add_patch(Rectangle((column, row), 1, 1, facecolor=colors[row, column], edgecolor="#222222"))
        panel.text(column + 0.5, row + 0.5, f"{word:.0f}", ha="center", va="center")
    panel.set(xlim=(-0.05, words.shape[1] + 0.05), ylim=(words.shape[0] + 0.05, -0.05), title=title, aspect="equal")
    panel.set_axis_off()


draw(axes[0], numbers[0, :, :, 0], shades[np.tile(slots, (2, 2))], "a map of 4 x 4")
for slot, (panel, part) in enumerate(zip(axes[1:5], (x0, x1, x2, x3))):
    draw(panel, part[0, :, :, 0], np.full((2, 2), shades[slot]), f"x{slot}")
stacked = merged[0].reshape(4, 4)  # (new positions, 4C)
draw(axes[5], stacked, np.tile(shades, (4, 1)), "merged, 4C")
figures.show(
    figure,
    "08_merging",
    alt="A numbered map of 4 by 4 positions, the four maps x0 to x3 of every second position, and the four merged "
    "tokens; the first one holds 0, 4, 1, 5.",
)

# %% [markdown]
# Then a LayerNorm normalizes the 4C channels, and a linear map without bias reduces them to 2C. So a quarter of the
# tokens remains, each with twice the channels: half of the numbers. The layer is checked by both [gradient
# checks](../gradcheck.md): `check_vjp` compares the backward pass with small steps along a random direction,
# `check_complex_step` with an imaginary step, element by element.

# %%
merging = nn.PatchMerging(4, dtype="float64", seed=0)
places = rng.standard_normal((2, 4, 6, 4))  # (B, H, W, C)
y, _ = merging(places)
print(f"{places.shape} -> 4C = 16 channels -> {y.shape}; weights {merging.reduction.weight.shape}")
assert y.size == places.size // 2
print(f"errors of its gradient: {minivit.check_vjp(merging, places):.0e} and ", end="")
print(f"{minivit.check_complex_step(merging, places):.0e}")

# %% [markdown]
# ## Windows: the cost becomes linear
#
# The fine map is expensive. With patches of 4 pixels there are 56 * 56 = 3,136 tokens, and attention compares all
# pairs: almost ten million. For an image of twice the height and width there are sixteen times as many.
#
# So Swin partitions the map into windows of M x M tokens, and lets only tokens of the same window attend to each other.
# Count the multiply-adds (MACs) of one attention layer with N tokens of D channels. The projections cost $4 N D^2$ in
# both cases. Scores and weighted sums cost
#
# $$\text{over the whole map: } 2 N^2 D, \qquad \text{in windows: } 2 M^2 N D .$$
#
# One factor N has become $M^2$ = 49, which does not grow with the image. The library counts the MACs of its layers:

# %%
D, heads, M = 96, 3, 7
whole = nn.Attention(D, heads, seed=0)
windowed = nn.ShiftedWindows(nn.WindowAttention(D, heads, M, seed=0), M)

print("image side   tokens   10^6 MACs over the whole map   in windows   ratio")
costs = []
for side in (28, 56, 112, 224, 448, 896):
    N = (side // 4) ** 2
    costs.append((N, nn.multiply_adds(whole, (1, N, D)), nn.multiply_adds(windowed, (1, side // 4, side // 4, D))))
    assert costs[-1][1] == 4 * N * D**2 + 2 * N**2 * D
    assert costs[-1][2] == 4 * N * D**2 + 2 * M**2 * N * D
    print(
        f"{side:10d} {N:8,} {costs[-1][1] / 1e6:30,.0f} {costs[-1][2] / 1e6:12,.0f} {costs[-1][1] / costs[-1][2]:7.1f}"
    )

assert costs[-1][2] == 4 * costs[-2][2]  # twice the side is four times the tokens: linear
assert costs[-1][1] > 15 * costs[-2][1]  # quadratic, but for the projections

# %% [markdown]
# With 49 tokens, one window, both cost the same. For more tokens the costs diverge:

# %%
N, over_all, in_windows = np.array(costs).T
figure, axes = figures.new(width=6.5, height=3.4)
axes.loglog(N, over_all, label="attention over the whole map")
axes.loglog(N, in_windows, label="attention in windows of 7 x 7")
axes.set(xlabel="tokens of the map", ylabel="multiply-adds of one layer")
axes.legend()
figures.show(
    figure,
    "08_macs",
    alt="Multiply-adds of one attention layer against the number of tokens, both axes logarithmic: in windows the line "
    "has slope 1, over the whole map it rises to slope 2.",
)

# %% [markdown]
# The same for whole models. A ViT is affordable because it has few tokens. With tokens as fine as Swin's, it would be
# far too expensive. (The time of attention is [measured](../why_swin_is_linear.md), too.)

# %%
vit = minivit.ViT(img_size=224, patch_size=16, embed_dim=384, depth=12, num_heads=6)  # ViT-S/16
fine = minivit.ViT(img_size=224, patch_size=4, embed_dim=384, depth=12, num_heads=6)  # the same with patches of 4
print("10^9 MACs       224 pixels   448 pixels   896 pixels")
for name, model in (("Swin-T", swin), ("ViT-S/16", vit), ("ViT-S/4", fine)):
    total = [nn.multiply_adds(model, (1, 3, side, side)) / 1e9 for side in (224, 448, 896)]
    print(f"{name:12s} {total[0]:13,.1f} {total[1]:12,.1f} {total[2]:12,.1f}    (x {total[2] / total[1]:.1f})")

assert nn.multiply_adds(swin, (1, 3, 448, 448)) < 4.01 * nn.multiply_adds(swin, (1, 3, 224, 224))
assert nn.multiply_adds(fine, (1, 3, 224, 224)) > 20 * nn.multiply_adds(swin, (1, 3, 224, 224))

# %% [markdown]
# ## The cyclic shift
#
# Windows have a drawback: no information leaves a window. Two tokens on both sides of a border are neighbors in the
# image, but never attend to each other. So every second block shifts its windows by half a window.
#
# Shifted windows are cut off at the border of the map. Instead of computing windows of several sizes, Swin *rolls* the
# map up and left by the shift: rows shifted out at the top reappear at the bottom. Then windows of one size suffice
# again. Take a map of 8 x 8, windows of 4, shift 2:

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
# 16 the first: they are at opposite ends of the image and share a window only because of the roll. A mask excludes such
# pairs: tokens may attend to each other only if they belonged to the same window before the roll.
#
# In the figure, each color is one window before the roll. Within a window, tokens with equal labels may attend to each
# other.


# %%
def canvas(height):
    """An empty figure, for pictures that lay out their own parts."""
    figure, axes = figures.new(width=9, height=height)
    axes.remove()
    figure.set_layout_engine("none")
    return figure


figure = canvas(3.9)
draw_moves(figure, at)
figures.show(
    figure,
    "08_shift",
    alt="A numbered map of 8 by 8 cut by shifted windows, the same map after the roll with plain windows and a dashed "
    "seam, and the labels of the nine regions.",
)

# %% [markdown]
# The same as a table for each window, with a row for each query and a column for each key. The seam is the border along
# which the roll joined opposite ends of the map. Window 0 has no seam, windows 1 and 2 have one, window 3 has two.

# %%
figure = canvas(2.9)
draw_masks(figure, at)
figures.show(
    figure,
    "08_masks",
    alt="Four square masks, queries by keys: window 0 is full, window 1 is striped, window 2 has two blocks, "
    "window 3 has four small blocks striped.",
)
mask = F.shift_mask((8, 8), (4, 4), (2, 2))  # (windows, 16, 16), True = may attend
print("masked pairs of 256 in each window:", (~mask).sum(axis=(1, 2)).tolist())
assert (~mask).sum(axis=(1, 2)).tolist() == [0, 128, 128, 192]

# %% [markdown]
# What happens without the mask? Change **one** token, the one at the top left, and see which outputs of the layer
# change. The class below is the library's window attention without the mask.


# %%
class NoMask(nn.WindowAttention):
    def forward(self, x, rng=None, mask=None):
        return super().forward(x, rng, mask=None)


def layer(kind, shift):
    """Attention in windows of 4 of a map with 8 channels; masked scores are minus infinity, so their weight is 0."""
    attention = kind(8, 2, 4, mask_value=-np.inf, dtype="float64", seed=1)
    return nn.ShiftedWindows(attention, 4, shift)


def who_changes(layer, place, x):
    """(H, W): how much each output changes with the token at `place`."""
    moved = x.copy()
    moved[(0, *place)] += 1.0
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
    "08_perturbed",
    alt="Which of 8 by 8 outputs change when the token at the top left is changed: a window of 16 with plain windows, "
    "the 4 in the corner with shift and mask, and without the mask also positions in the three far corners.",
)

# %% [markdown]
# Without the mask the left end of the image is adjacent to the right end, and the top to the bottom: the map is
# periodic. So if the input is rolled by a whole window, the output is rolled in the same way: the layer does not depend
# on where the image ends. With the mask it does.

# %%
for title, each in cases.items():
    y, _ = each(tokens)
    of_rolled, _ = each(np.roll(tokens, 4, axis=2))  # one window to the right; the last columns come in at the left
    difference = np.abs(of_rolled - np.roll(y, 4, axis=2)).max()
    print(f"{title:27s} differs by {difference:.1e} when the image is rolled by a window")
    assert (difference < 1e-12) == (title != "shifted, with the mask")

# %% [markdown]
# With plain windows the output is only rolled too, because windows are independent. A Swin needs both: the shift, for
# attention across window borders, and the mask, against attention across the ends of the image. [Lesson
# 10](10_break_it.py) has a task that can only be solved with both.
#
# A gradient check does not notice a missing mask. The layer without it has a right gradient, of the wrong function.

# %%
small = rng.standard_normal((2, 4, 4, 4))  # (B, H, W, D): windows of 2, shift 1
for kind in (nn.WindowAttention, NoMask):
    attention = kind(4, 2, 2, mask_value=-np.inf, dtype="float64", seed=1)
    error = minivit.check_vjp(nn.ShiftedWindows(attention, 2, 1), small)
    print(f"{kind.__name__:16s} gradient check passes, error {error:.0e}")
    assert error < 1e-6

# %% [markdown]
# ## The relative position index
#
# Attention does not depend on the positions of its tokens. ViT adds a position vector to each token. Swin instead adds
# a number to each score, which depends on the *offset* between the two tokens: the number of rows and columns from key
# to query. A window of M x M has $(2M - 1)^2$ offsets, and a learned table has one row for each, with one number for
# each head. The index gives the row for each pair:

# %%
index = F.relative_position_index(2)  # (4, 4): query, key
print("a window of 2 x 2 has 4 tokens, 16 pairs and 9 offsets:")
print(explain.grid_text(index))
assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]

row, column = np.divmod(np.arange(4), 2)
by_hand = (row[:, None] - row + 1) * 3 + (column[:, None] - column + 1)  # (dy + M - 1)(2M - 1) + dx + M - 1
assert (by_hand == index).all()

# %% [markdown]
# The diagonal is the offset (0, 0), each token with itself, row 4 of the table, counted from 0. A query whose key is
# its right neighbor reads row 3: token 0 with token 1 as well as token 2 with token 3. So what is learned for one pair
# applies to all pairs with the same offset.
#
# So a row of the table is used by many pairs, and its gradient is the sum over them. With a gradient of 1 for every
# score, each row's gradient is the number of its pairs, $(M - |dy|)(M - |dx|)$. (In this section only, $dy$ and $dx$
# are not gradients but the rows and columns of an offset.)

# %%
table = nn.RelativePositionBias((3, 3), 1, dtype="float64", seed=0)
bias, back = table.bias()  # (1, 9, 9)
back(np.ones_like(bias))
counts = table.relative_position_bias_table.grad.reshape(5, 5)
print("pairs of a window of 3 x 3 for each offset, dy = -2 ... 2 down, dx = -2 ... 2 across:")
print(explain.grid_text(counts.astype(int)))
assert (counts == np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1])).all()

# %% [markdown]
# This is another problem without the mask. In the top right window after the roll, 16 is one column to the right of 23,
# so the pair reads the row of the table for the right neighbor. On the map 16 is seven columns further left.
#
# ## Why blocks come in pairs
#
# A plain block spreads information within its windows, a shifted one across their borders. How large is the receptive
# field after a few blocks? Gradients show it: run some blocks, start the backward pass from one output only, and see
# which inputs have a gradient that is not 0.

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


def seen_by(shifts, place=(8, 8)):
    """(H, W) booleans: the inputs that the output at `place` depends on, from a backward pass."""
    _, back = tower(shifts)(np.random.default_rng(3).standard_normal((1, side, side, dim)))
    dy = np.zeros((1, side, side, dim))
    dy[(0, *place)] = np.random.default_rng(4).standard_normal(dim)
    return (back(dy) != 0).any(axis=-1)[0]


deepest = 6
kinds = {"plain, shifted, plain, ...": [0, 2], "plain only": [0, 0], "shifted only": [2, 2]}
reach = {name: [int(seen_by((pair * 3)[:n]).sum()) for n in range(1, deepest + 1)] for name, pair in kinds.items()}
for name, counts in reach.items():
    print(f"{name:28s} inputs seen after 1 ... {deepest} blocks: {counts}")

assert reach["plain only"] == reach["shifted only"] == [16] * deepest  # never more than one window
assert reach["plain, shifted, plain, ..."][-1] == side * side  # all of the map

# %% [markdown]
# Shifted windows alone do not help either: they are just another fixed grid. Only alternating between the two grids
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
    "08_reach",
    alt="Left, a map of 16 by 16 with the number of blocks until the middle output sees each input, growing outward. "
    "Right, inputs seen against blocks: alternating blocks reach all 256, plain or shifted alone stay at 16.",
)

# The library measures the same for its pictures, with weights of its own.
library = explain.receptive_field(explain.layout((side, side), (window, window), (2, 2)), deepest, (8, 8))
assert (library == depth).all()

# %% [markdown]
# Between stages, merging helps as well: a window of 7 x 7 tokens spans 28 pixels in the first stage, and 224 in the
# last.
#
# ## The whole model, checked
#
# Roll, partition and merging are permutations, so their backward passes are the inverse permutations (see
# [windows](../derivations/windows.md)). Here is a small Swin with padding, shift, mask, bias table and merging. Its 14
# x 10 pixels make a map of 7 x 5, which windows of 4 x 4 do not divide. Every gradient is right:

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
# - Swin is a pyramid: maps 4, 8, 16 and 32 times smaller than the image, channels doubled at each merging.
# - Windows make attention's cost grow with the image's area and not with its square.
# - The shift lets windows exchange information, but only if plain and shifted blocks alternate.
# - Without the mask opposite ends of the image attend to each other, and a gradient check does not show it.
# - Positions enter the scores: one learned number for each head and each offset.
#
# ## Try it
#
# 1. Set the shift in the perturbation to 1 instead of 2. How many outputs change with the mask, and why?
# 2. Merge in reading order: swap `x1` and `x2`. Which assertion fails? Would a model trained from scratch be less
#    accurate?
# 3. In `seen_by`, ask the output at a corner, `place=(0, 0)`. How many blocks does it need to see everything?
#
# Next: [9. Backpropagation](09_backpropagation.py), from the loss to one pixel.
