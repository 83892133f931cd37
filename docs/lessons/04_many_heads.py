# %% [markdown]
# # 4. Many heads
#
# Attention layers usually have several *heads*: small attentions in parallel, each with its own queries, keys and
# values. This page shows a task that is hard for one head and easy for two. It builds multi-head attention in two ways,
# and measures what heads cost.
#
# **Run time.** The code of this page takes about 15 s on one core of a server processor, and about 4 s with
# `MINIVIT_LESSONS=short` in the environment.
#
# **Words used here.** [Lesson 3](03_self_attention.py) explains queries, keys, values and weights. Notation: B
# sequences, N tokens, D channels (the numbers in a token), H heads, $d = D / H$ channels of one head.

# %%
import os
import time

import numpy as np

import minivit
from minivit import functional as F, nn, optim
from minivit.draw import figures
from minivit.nn import Parameter
from minivit.protocol import once

SHORT = os.environ.get("MINIVIT_LESSONS") == "short"
rng = np.random.default_rng(0)

# %% [markdown]
# ## What is hard for one head
#
# A head gives each token one row of weights, which sum to 1, and returns one weighted mean of the values. If a token
# needs two values, one head can only return their mixture. The sum of two values does not show which was which.
#
# Here is such a task. The input is a sequence of eight symbols, each one of sixteen. The last token has to name the
# symbol at position 1 *and* the one at position 5, counted from 0. The network adds a learned vector for each symbol
# and one for each position. Then come one layer of attention and a linear map to two times sixteen scores. The layer
# has one head or two, and the same number of parameters in both cases.
#
# **Predict first.** How often will each network name both symbols correctly? Guessing both is right in one of 256
# cases.

# %%
SYMBOLS, LENGTH, DIM = 16, 8, 32
ASKED = (1, 5)


class Recall(nn.Layer):
    """Symbols (B, N), integers -> scores (B, asked, 16): for the symbols at some positions, read at the last token."""

    def __init__(self, heads, seed, asked=ASKED, dim=DIM, kind=nn.Attention):
        rng = np.random.default_rng(seed)
        self.asked = asked
        self.embed = nn.Embedding(SYMBOLS, dim, seed=rng)
        self.positions = Parameter(rng.standard_normal((LENGTH, dim)).astype(np.float32))
        self.attention = kind(dim, heads, seed=rng)
        self.head = nn.Linear(dim, len(asked) * SYMBOLS, seed=rng)
        for param in (self.embed.weight, self.attention.qkv.weight, self.attention.proj.weight):
            param.data = rng.standard_normal(param.shape) * (1 if param is self.embed.weight else dim**-0.5)

    def check_dtype(self, x):
        """Allow integers, which layers otherwise refuse."""

    def forward(self, x, rng=None):
        vectors, back_embed = self.embed(x)  # (B, N, D)
        y, back_attention = self.attention(vectors + self.positions.data)
        scores, back_head = self.head(y[:, -1])  # (B, asked * 16)

        @once
        def back(dscores):
            dy = np.zeros_like(y)
            dy[:, -1] = back_head(dscores.reshape(scores.shape))
            dvectors = back_attention(dy)
            self.positions.accumulate(dvectors.sum(axis=0))
            back_embed(dvectors)

        return scores.reshape(-1, len(self.asked), SYMBOLS), back


def trained(model, seed, steps=400):
    """The model, and how often it names all symbols correctly in sequences that were not used in training."""
    rng = np.random.default_rng(seed)
    opt = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        symbols = rng.integers(SYMBOLS, size=(64, LENGTH))
        scores, back = model(symbols)
        loss, back_loss = F.softmax_cross_entropy(scores.reshape(-1, SYMBOLS), symbols[:, model.asked].reshape(-1))
        opt.zero_grad()
        back(back_loss().reshape(scores.shape))
        opt.step()
    symbols = np.random.default_rng(1000 + seed).integers(SYMBOLS, size=(1000, LENGTH))
    right = model(symbols)[0].argmax(axis=2) == symbols[:, model.asked]  # (1000, asked)
    return model, right.all(axis=1).mean()


seeds = [1] if SHORT else [0, 1, 2]
models = {heads: [trained(Recall(heads, seed), seed) for seed in seeds] for heads in (1, 2)}
for heads, results in models.items():
    count = optim.parameter_count(results[0][0].parameters())
    print(f"{heads} head(s), {count:,} parameters: both right in {', '.join(f'{right:.0%}' for _, right in results)}")

assert max(right for _, right in models[1]) < 0.95
assert min(right for _, right in models[2]) > 0.97

# %% [markdown]
# Each percentage belongs to one seed. Two heads solve the task. One head is wrong more often, but it is more accurate
# than the argument above suggests. It can learn to give a position more or less weight depending on the symbol there.
# The proportions of the mixture then carry some of the answer. Such an encoding is hard to learn and incomplete. Two
# heads do not need it.
#
# What do the heads attend to? Their weights can be recomputed from the layer's parameters. Each panel below shows the
# last token's weights for seed 1, as a mean over 200 sequences.
#
# **Predict first.** Nothing in the training says which head is for which position. Will each head attend to one
# position, or both heads to both?


# %%
def weights_of_last(model, symbols):
    """The weight that the last token gives to each position, for each head: (H, N), mean over sequences."""
    attention = model.attention
    vectors, _ = model.embed(symbols)
    qkv, _ = attention.qkv(vectors + model.positions.data)  # (B, N, 3D)
    (q, k, _), _ = F.split_qkv(qkv, attention.num_heads)  # each (B, H, N, d)
    weights, _ = F.softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)  # (B, H, N, N)
    return weights[:, :, -1].mean(axis=0)


symbols, shown = rng.integers(SYMBOLS, size=(200, LENGTH)), seeds.index(1)
rows = [("one head", weights_of_last(models[1][shown][0], symbols)[0])]
rows += [(f"two heads: head {h + 1}", row) for h, row in enumerate(weights_of_last(models[2][shown][0], symbols))]

figure, panels = figures.new(1, 3, width=9.0, height=2.6, sharey=True)
for panel, (title, row) in zip(panels, rows):
    panel.bar(range(LENGTH), row, color=[figures.COLORS[position in ASKED] for position in range(LENGTH)])
    panel.set(title=title, xlabel="position", ylim=(0, 1))
    panel.set_xticks(range(LENGTH))
panels[0].set_ylabel("weight of the last token")
figures.show(
    figure,
    "04_heads",
    alt="Bars of the last token's weights for eight positions. One head divides its weight between positions 1 and 5; "
    "of two heads each gives nearly all to one of the two.",
)

by_head = np.array([row for _, row in rows[1:]])[:, ASKED]  # (2 heads, 2 positions)
assert by_head.sum(axis=1).min() > 0.9, "the other positions get little weight"
assert by_head.max(axis=0).min() > 0.5, "for each position there is a head that mostly attends to it"

# %% [markdown]
# Here each of the two heads attends to one position. It is not always so clear: with seed 2 both heads attend to both
# positions, in proportions that depend on the symbols. Together they encode the answer just as well.
#
# ## Two ways to make heads
#
# The projections give $q$, $k$ and $v$ for each token, with D channels. How do they become H heads of $d = D / H$
# channels? There are two ways:
#
# 1. **Even split.** The first $d$ channels belong to the first head, the next $d$ to the second, and so on. Nothing is
#    computed. Published models do this.
# 2. **A linear map for each head.** Head $h$ takes all D channels and has three matrices of its own, $(D, d)$: $q_h =
#    q\, M^q_h$, likewise $k_h$ and $v_h$.
#
# First the even split. The cell computes one head after the other, and compares the result with the layer, which
# computes all heads together:

# %%
B, N, D, H = 2, 6, 12, 3
d = D // H
x = rng.standard_normal((B, N, D))
split = nn.Attention(D, H, dtype="float64", seed=1)

qkv, _ = split.qkv(x)  # (B, N, 3D)
q, k, v = np.split(qkv, 3, axis=2)  # each (B, N, D)
outputs = []
for h in range(H):
    mine = slice(h * d, (h + 1) * d)  # the channels of this head
    seen, _ = F.scaled_dot_product_attention(q[:, :, mine], k[:, :, mine], v[:, :, mine])  # (B, N, d)
    outputs.append(seen)
joined = np.concatenate(outputs, axis=2)  # (B, N, D): the heads side by side again
by_heads, _ = split.proj(joined)  # Wo mixes them

y, _ = split(x)
print(f"head by head and all together differ by {np.abs(by_heads - y).max():.0e}")
assert np.allclose(by_heads, y, rtol=1e-10, atol=1e-13)

# %% [markdown]
# Then the linear maps. The library has no such layer, because the layer represents no additional functions, as shown
# below. `head_maps` contains all the maps, (3, H, D, d):


# %%
class LinearHeads(nn.Layer):
    """Attention whose heads each have a learned linear map of q, k and v, instead of a part of their channels."""

    def __init__(self, dim, heads, dtype="float32", seed=0):
        rng = np.random.default_rng(seed)
        self.qkv = nn.Linear(dim, 3 * dim, dtype=dtype, seed=rng)
        self.proj = nn.Linear(dim, dim, dtype=dtype, seed=rng)
        maps = dim**-0.5 * rng.standard_normal((3, heads, dim, dim // heads))  # keeps the variance of q, k and v
        self.head_maps = Parameter(maps.astype(dtype))

    def forward(self, x, rng=None):
        qkv, back_qkv = self.qkv(x)  # (B, N, 3D)
        parts, maps = qkv.reshape(*x.shape[:2], 3, -1), self.head_maps.data
        q, k, v = np.einsum("bnsc,shcd->sbhnd", parts, maps)  # each (B, H, N, d)
        heads, back_attention = F.scaled_dot_product_attention(q, k, v)
        joined, back_merge = F.merge_heads(heads)  # (B, N, D)
        y, back_proj = self.proj(joined)

        @once
        def back(dy):
            dq, dk, dv, _ = back_attention(back_merge(back_proj(dy)))
            dheads = np.stack((dq, dk, dv))  # (3, B, H, N, d)
            self.head_maps.accumulate(np.einsum("bnsc,sbhnd->shcd", parts, dheads))
            dparts = np.einsum("sbhnd,shcd->bnsc", dheads, maps)
            return back_qkv(dparts.reshape(qkv.shape))

        return y, back


linear = LinearHeads(D, H, "float64", seed=2)
maps = linear.head_maps.data
qkv, _ = linear.qkv(x)
q, k, v = np.split(qkv, 3, axis=2)
outputs = []
for h in range(H):
    seen, _ = F.scaled_dot_product_attention(q @ maps[0, h], k @ maps[1, h], v @ maps[2, h])  # (B, N, d)
    outputs.append(seen)
by_heads, _ = linear.proj(np.concatenate(outputs, axis=2))

y, _ = linear(x)
print(f"with linear maps: head by head and all together differ by {np.abs(by_heads - y).max():.0e}")
assert np.allclose(by_heads, y, rtol=1e-10, atol=1e-13)
print(f"errors: split {minivit.check_complex_step(split, x):.0e}, linear {minivit.check_complex_step(linear, x):.0e}")

# %% [markdown]
# The even split is a special case: with maps that select channels, the second way is the first.
#
# The converse also holds. A linear map of a linear map is a linear map: $x W_q M_h$ is $x$ times one matrix. So for
# each layer with maps there is one with an even split that computes the same. Its matrix is the product of the
# projection and the map. So the maps do not enlarge the set of functions that the layer can represent. They only cost
# more.

# %%
same = nn.Attention(D, H, dtype="float64", seed=3)
projections = linear.qkv.weight.data.reshape(3, D, D)  # (q | k | v, outputs, inputs)
biases = linear.qkv.bias.data.reshape(3, 1, D)
for param, values in (
    (same.qkv.weight, [maps[part, h].T @ projections[part] for part in range(3) for h in range(H)]),  # each (d, D)
    (same.qkv.bias, [(biases[part] @ maps[part, h])[0] for part in range(3) for h in range(H)]),
    (same.proj.weight, [linear.proj.weight.data]),
    (same.proj.bias, [linear.proj.bias.data]),
):
    param.data = np.concatenate(values)

print(f"linear maps folded into an even split: difference {np.abs(same(x)[0] - y).max():.0e}")
adds = nn.multiply_adds(split, x.shape)
more = 3 * x.size * D  # q, k and v of each token times the maps of all heads: (D) times (D, H d)
print(f"multiply-adds: split {adds:,}, linear {adds + more:,}")
assert np.allclose(same(x)[0], y, rtol=1e-9, atol=1e-12)

# %% [markdown]
# ## Combining the heads: $W_o$
#
# Up to this point the heads are independent. Their outputs are concatenated and multiplied by $W_o$, (D, D). Split
# $W_o$ into H blocks of rows, one for each head. Then the product becomes a sum: each head adds its own contribution to
# every channel.
#
# $$
# [\,b_1 \; b_2 \; \cdots \; b_H\,]\, W_o = \sum_{h=1}^{H} b_h\, W_o^{(h)} .
# $$

# %%
w_o = split.proj.weight.data.T  # (D, D): inputs, outputs
parts = [joined[:, :, h * d : (h + 1) * d] @ w_o[h * d : (h + 1) * d] for h in range(H)]  # each (B, N, D)
assert np.allclose(sum(parts), joined @ w_o, rtol=1e-10, atol=1e-13)
print("side by side times Wo = sum over the heads: the same to rounding")

# %% [markdown]
# ## Heads as a grouped convolution
#
# This section is for readers who know convolutions. A 1 x 1 convolution applies one matrix to the channels of each
# position, so it is a linear map of tokens. A *grouped* one splits the channels into groups with a small matrix each:
# group $h$ sees only its own channels. Heads are such groups: between the split and $W_o$ the channels of different
# heads are not mixed.
#
# Take a small map for each head, $(d, d)$, applied to its own channels. Written as one matrix, it has blocks along the
# diagonal and zeros elsewhere:


# %%
def grouped_1x1(x, weights):
    """x (B, N, D), one matrix (d, d) for each of H groups -> (B, N, D), and the backward function."""
    H, d, _ = weights.shape
    groups = x.reshape(*x.shape[:2], H, d)  # (B, N, H, d)
    y = np.einsum("bnhc,hce->bnhe", groups, weights)

    @once
    def back(dy):
        dgroups = dy.reshape(groups.shape)
        dx = np.einsum("bnhe,hce->bnhc", dgroups, weights).reshape(x.shape)
        return dx, np.einsum("bnhc,bnhe->hce", groups, dgroups)

    return y.reshape(x.shape), back


small = rng.standard_normal((H, d, d))
block_diagonal = np.zeros((D, D))
for h in range(H):
    block_diagonal[h * d : (h + 1) * d, h * d : (h + 1) * d] = small[h]

assert np.allclose(grouped_1x1(x, small)[0], x @ block_diagonal)
print(
    f"errors: {minivit.check_vjp(grouped_1x1, x, small):.0e}, {minivit.check_complex_step(grouped_1x1, x, small):.0e}"
)
print(f"numbers to learn: grouped {small.size}, full {block_diagonal.size}: one in {H}")

# %%
figure, panels = figures.new(1, 2, width=8.0, height=3.6)
limit = np.abs(block_diagonal).max()
pictures = (
    ("grouped: each head its own block", block_diagonal),
    ("$W_o$: every head to every channel", w_o / w_o.std()),
)
for panel, (title, matrix) in zip(panels, pictures):
    image = panel.imshow(matrix, cmap=figures.SIGNED, vmin=-limit, vmax=limit)
    panel.set(title=title, xlabel="output channel", ylabel="input channel")
    for edge in range(d, D, d):
        panel.axhline(edge - 0.5, color=figures.QUIET, lw=0.8, marker="")
        panel.axvline(edge - 0.5, color=figures.QUIET, lw=0.8, marker="")
figure.colorbar(image, ax=panels, label="weight")
figures.show(
    figure,
    "04_blocks",
    alt="Two matrices of 12 by 12. The grouped one has three blocks of 4 by 4 along the diagonal and zeros elsewhere; "
    "Wo is full.",
)

# %% [markdown]
# ## What heads cost
#
# More heads are narrower heads. The scores of one head take $N^2 d$ multiply-adds, and those of all heads $H N^2 d =
# N^2 D$, whatever H is. The same holds for the weighted sums. The projections do not depend on the number of heads
# either. So the number of multiply-adds does not change. What grows is the number of scores, $H N^2$. Each score needs
# an exponential, and has to be kept for the backward pass.
#
# **Predict first.** How does the time for the forward and the backward pass change from 1 head to 12 heads?

# %%
batch, tokens, width = 4, 197, 192  # a ViT-Ti at 224 pixels
x = rng.standard_normal((batch, tokens, width), dtype=np.float32)
counts = (1, 3, 12) if SHORT else (1, 2, 3, 6, 12, 24)
layers = [nn.Attention(width, heads, seed=0) for heads in counts]
runs = [[] for _ in counts]
for _ in range(3 if SHORT else 10):  # in turns, so that a slow moment of the machine affects all of them
    for layer, seconds in zip(layers, runs):
        begin = time.perf_counter()
        y, back = layer(x)
        back(y)
        seconds.append(time.perf_counter() - begin)
times = [1e3 * min(seconds) for seconds in runs]  # ms, the fastest of each

for heads, layer, spent in zip(counts, layers, times):
    million, scores = nn.multiply_adds(layer, x.shape) / 1e6, batch * heads * tokens**2 / 1e6
    print(f"{heads:2d} heads: {million:.1f} million multiply-adds, {scores:4.2f} million scores, {spent:5.1f} ms")

assert len({nn.multiply_adds(layer, x.shape) for layer in layers}) == 1

# %%
figure, axes = figures.new(width=6.0, height=3.0)
axes.plot(counts, times, label="forward and backward")
axes.set(xlabel="heads", ylabel="time (ms)", ylim=(0, None))
axes.set_xticks(counts)
figures.show(
    figure, "04_cost", alt="Time against the number of heads: it rises, although the multiply-adds stay the same."
)

# %% [markdown]
# More heads cost no multiply-adds, but they cost time. ViT-B/16 has 12 heads of 64 channels, and 64 is a common size.
# The page about [classifying an image](../classify_an_image.md) draws the attention maps of a model's heads.
#
# ## What you have seen
#
# - One head returns one mixture of values. Two heads, with the same number of parameters and the same training, learned
#   what one head did not.
# - Heads by even split: split the channels, attend, concatenate, mix with $W_o$. Computing them one by one or all at
#   once gives the same result.
# - Heads by linear maps compute nothing that an even split cannot, and cost more.
# - Between split and $W_o$ heads are groups, as in a grouped 1 x 1 convolution: a block-diagonal matrix.
# - Multiply-adds do not depend on the number of heads; the number of exponentials does.
#
# ## Try it
#
# **Exercise 1.** Ask for the symbols at three positions (`asked=(1, 3, 5)`). How many heads are needed? Their number
# must divide the number of channels: try 1, 2 and 4.
#
# <details>
# <summary>Solution 1</summary>
#
# Three heads would be enough, one for each position, but 3 does not divide 32. With four heads all three symbols are
# right in every case. With two heads this is so in 82%, 40% and 94% of the cases (three seeds), and with one head in
# 7%, 6% and 24%.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
three = {}
for heads in (4,) if SHORT else (1, 2, 4):
    three[heads] = [trained(Recall(heads, seed, asked=(1, 3, 5)), seed)[1] for seed in seeds]
    print(f"{heads} head(s): all three right in {', '.join(f'{right:.0%}' for right in three[heads])}")
assert min(three[4]) > 0.97
if not SHORT:
    assert max(three[1]) < min(three[4]) and min(three[2]) < 0.9

# %% [markdown]
# **Exercise 2.** Give the model with one head twice the channels (`dim=64`). Does that help?
#
# <details>
# <summary>Solution 2</summary>
#
# No. Both symbols are right in 36%, 5% and 85% of the cases, compared with 6%, 80% and 83% for 32 channels. A
# head with more channels still has one row of weights, and returns one mixture.
#
# </details>

# %% tags=["hide-cell"]
# Solution 2
wider = [trained(Recall(1, seed, dim=64), seed)[1] for seed in seeds]
print(f"one head of 64 channels: both right in {', '.join(f'{right:.0%}' for right in wider)}")
assert min(wider) < 0.95

# %% [markdown]
# **Exercise 3.** Replace the layer in `Recall` by `LinearHeads` with one head (`kind=LinearHeads`). Does it help?
# Should it?
#
# <details>
# <summary>Solution 3</summary>
#
# It should not help, because a linear map of a linear map is a linear map. The measurement agrees: both symbols are
# right in 92%, 6% and 82% of the cases. The results vary as much between seeds as those of one head without the
# maps.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
mapped = [trained(Recall(1, seed, kind=LinearHeads), seed)[1] for seed in seeds]
print(f"one head with linear maps: both right in {', '.join(f'{right:.0%}' for right in mapped)}")
assert min(mapped) < 0.95

# %% [markdown]
# Next: [5. Order](05_order.py)
