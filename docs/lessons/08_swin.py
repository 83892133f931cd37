# %% [markdown]
# # 8. Swin: windows and a pyramid
#
# The Swin Transformer reduces its map of tokens from stage to stage, and computes attention in small windows. This page
# and the next explain its parts. Here you will see how the map is halved, how windows make the cost of attention
# linear, and how positions enter the scores. [The next page](08b_shifted_windows.py) explains why every second block
# shifts its windows, and what the mask is for.
#
# **Run time.** The code of this page takes about 4 s on one core of a server processor.
#
# **Words used here.** A *token* is a vector of channels that stands for a piece of the image. The tokens form a *map*,
# a grid with one token for each patch. *Attention* gives each token a weighted mean of the others, with weights from a
# *score* for each pair ([lesson 3](03_self_attention.py)). An *MLP* is two linear maps with a nonlinearity between
# them, for each token alone. A *block* is attention followed by an MLP, both added to the stream of tokens ([lesson
# 6](06_vit_in_numbers.py)). A *LayerNorm* brings each token's channels to mean 0 and standard deviation 1
# ([derivation](../derivations/layer_norm.md)).

# %%
import numpy as np
from matplotlib.patches import Rectangle

import minivit
from minivit import explain, functional as F, nn
from minivit.draw import figures

rng = np.random.default_rng(0)

# %% [markdown]
# ## A pyramid instead of one grid
#
# A ViT cuts an image of 224 x 224 pixels into 14 x 14 patches of 16 pixels, and keeps this one grid from the first
# block to the last. Each side is reduced 16 times in one step. All details inside a patch have to fit into its one
# vector.
#
# Swin (Liu et al. 2021) starts with patches of 4 pixels and halves the sides of the map three times. So its four maps
# are 4, 8, 16 and 32 times smaller than the image on each side. Each halving doubles the channels. Convolutional
# networks such as ResNet have the same structure. So methods that use their four maps, for example for object
# detection, can use Swin's maps instead.
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
# The figure draws the grids over the same image. Thin lines separate the tokens. Thick lines separate the windows,
# which are explained below. Swin-T's windows have 7 x 7 tokens in each stage. In the last stage one window covers the
# whole image.

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
# its stride. That is why the weight is stored as (96, 3, 4, 4). See [patch embedding](../derivations/patch_embed.md)
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
# corners of all neighborhoods together: `x0` top left, `x1` bottom left, `x2` top right, `x3` bottom right. They are
# concatenated, which gives 4C channels.
#
# Note the order: **down comes before right**. Published Swins were trained with it. Another order would train as well.
# But published weights would then be applied to the wrong corners. No error would be raised, because the shapes are the
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
# checks](../gradcheck.md). `check_vjp` compares the backward pass with small steps along a random direction, and
# `check_complex_step` with an imaginary step for each element.

# %%
merging = nn.PatchMerging(4, dtype="float64", seed=0)
x = rng.standard_normal((2, 4, 6, 4))  # (B, H, W, C)
y, _ = merging(x)
print(f"{x.shape} -> 4C = 16 channels -> {y.shape}; weights {merging.reduction.weight.shape}")
assert y.size == x.size // 2
print(f"errors of its gradient: {minivit.check_vjp(merging, x):.0e} and ", end="")
print(f"{minivit.check_complex_step(merging, x):.0e}")

# %% [markdown]
# ## Windows: the cost becomes linear
#
# The fine map is expensive. With patches of 4 pixels there are 56 * 56 = 3,136 tokens, and attention computes a score
# for each pair: almost ten million. For an image of twice the height and width there are sixteen times as many.
#
# So Swin partitions the map into windows of M x M tokens. Only tokens of the same window attend to each other. Count
# the multiply-adds (MACs) of one attention layer with N tokens of D channels. The projections to queries, keys and
# values and the output map cost $4 N D^2$ in both cases. Scores and weighted sums cost
#
# $$\text{over the whole map: } 2 N^2 D, \qquad \text{in windows: } 2 M^2 N D .$$
#
# One factor N has become $M^2$ = 49, which does not grow with the image. The library counts the MACs of its layers.
#
# **Predict first.** For an image of 224 pixels (3,136 tokens), how many times as expensive is attention over the whole
# map as attention in windows? And for 896 pixels?

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

assert [round(whole / windows) for _, whole, windows in (costs[3], costs[5])] == [14, 209]
assert costs[-1][2] == 4 * costs[-2][2]  # twice the side is four times the tokens: linear
assert costs[-1][1] > 15 * costs[-2][1]  # quadratic, but for the projections

# %% [markdown]
# At 224 pixels attention over the whole map costs 14 times as much, and at 896 pixels 209 times. With 49 tokens, which
# are one window, both cost the same. For more tokens the costs diverge:

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
# The next cell counts whole models. A ViT is affordable because it has few tokens. With tokens as fine as Swin's it
# would be far too expensive. (The [time](../why_swin_is_linear.md) of attention is measured on a page of its own.)

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
# ## The relative position index
#
# Attention by itself does not depend on the positions of its tokens ([lesson 5](05_order.py)). ViT adds a position
# vector to each token. Swin instead adds a number to each score. The number depends on the *offset* between the two
# tokens: the number of rows and columns from the key to the query. A window of M x M has $(2M - 1)^2$ offsets. A
# learned table has a row for each offset, with one number for each head. The *index* gives the row for each pair:

# %%
index = F.relative_position_index(2)  # (4, 4): query, key
print("a window of 2 x 2 has 4 tokens, 16 pairs and 9 offsets:")
print(explain.grid_text(index))
assert index.tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]

row, column = np.divmod(np.arange(4), 2)
by_hand = (row[:, None] - row + 1) * 3 + (column[:, None] - column + 1)  # (r + M - 1)(2M - 1) + c + M - 1
assert (by_hand == index).all()

# %% [markdown]
# The diagonal has the offset (0, 0), each token with itself. It reads row 4 of the table, counted from 0. A query whose
# key is its right neighbor reads row 3: token 0 with token 1, and also token 2 with token 3. So what is learned for one
# pair applies to all pairs with the same offset.
#
# A row of the table is used by many pairs, and its gradient is the sum over these pairs. With a gradient of 1 for every
# score, each row's gradient is the number of its pairs. For an offset of $r$ rows and $c$ columns this number is $(M -
# |r|)(M - |c|)$.

# %%
table = nn.RelativePositionBias((3, 3), 1, dtype="float64", seed=0)
bias, back = table.bias()  # (1, 9, 9)
back(np.ones_like(bias))
counts = table.relative_position_bias_table.grad.reshape(5, 5)
print("pairs of a window of 3 x 3 for each offset, r = -2 ... 2 down, c = -2 ... 2 across:")
print(explain.grid_text(counts.astype(int)))
assert (counts == np.outer([1, 2, 3, 2, 1], [1, 2, 3, 2, 1])).all()

# %% [markdown]
# ## What you have seen
#
# - Swin is a pyramid: its maps are 4, 8, 16 and 32 times smaller than the image, and each merging doubles the channels.
# - Merging joins 2 x 2 tokens in a fixed order, and one linear map follows.
# - Windows make the cost of attention grow with the area of the image, and not with the square of the area.
# - Positions enter the scores: a table has one learned number for each head and each offset.
#
# ## Try it
#
# **Exercise 1.** Merge in reading order: swap `x1` and `x2`. Which assertion fails? Would a model trained from scratch
# be less accurate?
#
# <details>
# <summary>Solution 1</summary>
#
# The assertion that compares `merged` with `by_hand` fails, because the first new token is then [0, 1, 4, 5]. A model
# trained from scratch would not be less accurate. The swap permutes the 4C channels, and the linear map learns its
# columns in whichever order the channels have. But the published weights belong to one order. With the other order they
# give different outputs.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
swapped = np.concatenate([x0, x2, x1, x3], axis=-1)
print("the first token in reading order:", swapped[0, 0, 0].astype(int).tolist())
assert swapped[0, 0, 0].tolist() == [0, 1, 4, 5] and not (merged == swapped).all()

reduction = rng.standard_normal((2, 4))  # 4C = 4 channels -> 2C = 2
permuted = reduction[:, [0, 2, 1, 3]]  # its columns in the other order
assert np.allclose(swapped @ permuted.T, merged @ reduction.T)
assert not np.allclose(swapped @ reduction.T, merged @ reduction.T)

# %% [markdown]
# **Exercise 2.** Use windows of 14 x 14 instead of 7 x 7 in the first stage of Swin-T (3,136 tokens of 96 channels). By
# which factor do the scores and the weighted sums grow? And the whole attention layer?
#
# <details>
# <summary>Solution 2</summary>
#
# Scores and weighted sums cost $2 M^2 N D$, so they grow by a factor of 4. The projections do not change. Together the
# layer takes 1.6 times as many multiply-adds.
#
# </details>

# %% tags=["hide-cell"]
# Solution 2
larger = nn.ShiftedWindows(nn.WindowAttention(96, 3, 14, seed=0), 14)
both = [nn.multiply_adds(layer, (1, 56, 56, 96)) for layer in (windowed, larger)]
projections = 4 * 3136 * 96**2
print(f"{both[0] / 1e6:.0f} and {both[1] / 1e6:.0f} million multiply-adds, a factor {both[1] / both[0]:.2f}")
assert both[1] - projections == 4 * (both[0] - projections) and round(both[1] / both[0], 1) == 1.6

# %% [markdown]
# **Exercise 3.** How many rows does the table of relative positions have for windows of 7 x 7, and how many numbers
# does it hold for 3 heads? How many would be needed with a number of its own for each pair of tokens?
#
# <details>
# <summary>Solution 3</summary>
#
# There are $(2 \cdot 7 - 1)^2 = 169$ offsets, so 169 rows and 507 numbers. With a number for each of the $49 \cdot 49 =
# 2{,}401$ pairs there would be 7,203, and nothing learned for one pair would apply to another.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
shape = nn.RelativePositionBias((7, 7), 3, seed=0).relative_position_bias_table.shape
print(f"table {shape}, {shape[0] * shape[1]} numbers; one for each pair: {3 * 49 * 49:,}")
assert shape == (169, 3) and len(np.unique(F.relative_position_index(7))) == 169

# %% [markdown]
# Next: [8b. Shifted windows](08b_shifted_windows.py), which connect the windows.
