# %% [markdown]
# # 2. Embedding: a table and a linear map
#
# A network computes with vectors, but words, symbols and positions are not vectors. This page shows how they become
# vectors: by a table look-up, which is a linear map of a one-hot input. You will be able to show that the two are
# equal, in the forward pass and in the backward pass, and to say which of them to compute.
#
# **Run time.** The code of this page takes about 5 s on one core of a server processor, and about 3 s with
# `MINIVIT_LESSONS=short` in the environment.
#
# **Words used here.** A *linear map* multiplies a vector by a matrix of *weights*. The *gradient* of the loss with
# respect to an array says how the loss changes with each of its numbers. `dname` stands for this gradient, dLoss/dname.
# [Lesson 1](01_from_rnn_to_attention.py) introduces these words and the rule `y, back = layer(x)`.

# %%
import os
import time

import numpy as np

import minivit
from minivit import functional as F, nn, optim
from minivit.draw import figures

SHORT = os.environ.get("MINIVIT_LESSONS") == "short"
rng = np.random.default_rng(0)

# %% [markdown]
# ## One-hot: a number becomes a vector
#
# Take a vocabulary of $R$ words, numbered from 0. The number itself is a bad input. It would imply that word 7 is seven
# times word 1, and that words 6 and 7 are similar. A *one-hot* vector says only which word it is. It has $R$ entries,
# all 0 except one, which is 1:

# %%
words = ["a", "cat", "dog", "sees", "the"]
index = np.array([4, 1, 3, 0, 2, 3])  # the cat sees a dog sees: N = 6 numbers
one_hot = np.eye(len(words), dtype=np.float32)[index]  # (N, R)
for number, row in zip(index, one_hot):
    print(f"{words[number]:5s} is number {number} and row {row.astype(int)}")

# %% [markdown]
# ## From $x$ to $a$
#
# Each one-hot vector $x$ is mapped to a short, dense vector $a$ with a matrix $T$ of shape $(R, D)$:
#
# $$
# a = x\,T, \qquad a_d = \sum_{r=0}^{R-1} x_r\, T_{rd} .
# $$
#
# In this sum all $x_r$ are 0 except one, which is 1. So $a$ *is* a row of $T$, and nothing has to be multiplied: the
# product is a table look-up. The rows are learned like all weights. Such a table is called an *embedding*.

# %%
table = rng.standard_normal((len(words), 3), dtype=np.float32)  # T: (R, D), D = 3
by_product = one_hot @ table  # (N, R)(R, D) -> (N, D)
looked_up, vjp_look_up = F.embedding(index, table)  # (N, D)

assert np.array_equal(by_product, looked_up)  # equal to the last bit: x * 0 + ... + y * 1 rounds nothing
print(f"the product and the look-up differ by {np.abs(by_product - looked_up).max()}")

# %% [markdown]
# In other words: an embedding is a fully connected layer without bias whose input is one-hot. `nn.Linear` stores its
# weight as (outputs, inputs), which is the transposed table:

# %%
layer = nn.Linear(len(words), 3, bias=False, seed=0)
layer.weight.data = table.T
from_layer, back_layer = layer(one_hot)
assert np.array_equal(from_layer, looked_up)
print("a linear layer without bias gives the same vectors")

# %% [markdown]
# ## Backward: gradients accumulate in the rows
#
# If a row was looked up twice, the loss depends on it in two ways, and the two gradients are added. The rule for the
# product gives the same result: $dT = x^\top da$ ([derivation](../derivations/linear.md)). Row $r$ of $x^\top$ has a 1
# at each occurrence of word $r$, so the product adds those rows of $da$. Doing only these additions is called
# *scatter-add*.
#
# Here $da$ consists of integers. Then no sum is rounded, and both results must be exactly equal.

# %%
da = rng.integers(-9, 10, size=looked_up.shape).astype(np.float32)  # (N, D)
dtable = vjp_look_up(da)  # (R, D)
back_layer(da)

assert np.array_equal(dtable, one_hot.T @ da)
assert np.array_equal(dtable, layer.weight.grad.T)
assert np.array_equal(dtable[3], da[2] + da[5])  # "sees" is at positions 2 and 5
print("gradient of the table, by word:")
for word, row in zip(words, dtable):
    print(f"  {word:5s} {row}")

# %% [markdown]
# With other numbers the order of the additions matters: each sum is rounded. So the two results may differ in the last
# digits.

# %%
many = rng.integers(len(words), size=1000)
da = rng.standard_normal((1000, 3), dtype=np.float32)
dtable = F.embedding(many, table)[1](da)
difference = np.abs(dtable - np.eye(len(words), dtype=np.float32)[many].T @ da).max()
print(f"1,000 look-ups: the gradients differ by at most {difference:.1e}, their size is {np.abs(dtable).max():.0f}")
assert difference < 1e-4

# %% [markdown]
# There is a common mistake. In NumPy `dtable[index] += da` looks right, but it writes each row only once, however often
# its number occurs in `index`. All but one of the gradients are lost, which affects frequent words most.
#
# **Predict first.** There are 1,000 look-ups in a table of 5 rows. How many of the 1,000 gradients does `+=` keep?

# %%
wrong = np.zeros_like(table)
wrong[many] += da
right = np.zeros_like(table)
np.add.at(right, many, da)  # this one adds every occurrence
print(f"with `+=` there is an error of {np.abs(wrong - dtable).max():.0f}, with `np.add.at` of at most 1e-4")
assert np.abs(right - dtable).max() < 1e-4 < np.abs(wrong - dtable).max()
assert all((da == row).all(axis=1).sum() == 1 for row in wrong), "each row has kept one gradient"

# %% [markdown]
# It keeps five, one for each row: the gradient of the last look-up of that row.
#
# Now the library's gradient checks, with a table in which one row is used twice and one not at all:

# %%
indices = np.array([[0, 2], [2, 3]])
wide_table = rng.standard_normal((4, 3))
error = minivit.check_vjp(lambda table: F.embedding(indices, table), wide_table)
element = minivit.check_complex_step(lambda table: F.embedding(indices, table), wide_table)
print(f"error along a random direction {error:.1e}, of the worst element {element:.1e}")

# %% [markdown]
# ## The cost of each
#
# The product takes $R \cdot D$ multiplications for each word. The look-up takes none: it copies $D$ numbers. With a
# vocabulary of 30,000 words, 29,999 of every 30,000 multiplications are with 0. The next cell measures how the time
# grows with the vocabulary, for 256 words and $D = 64$, forward and backward.
#
# **Predict first.** The time of the product grows in proportion to $R$. Does the time of the look-up depend on $R$,
# too?

# %%
sizes = [100, 1000] if SHORT else [100, 300, 1000, 3000, 10000]
N, D = 256, 64


def milliseconds(run, *args):
    """The fastest of five."""
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        run(*args)
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


def product(one_hot, table, da):
    a, vjp = F.linear(one_hot, table.T)
    return a, vjp(da)[1]


def look_up(index, table, da):
    a, vjp = F.embedding(index, table)
    return a, vjp(da)


spent = {"product with one-hot": [], "look-up and scatter-add": []}
for R in sizes:
    index, table = rng.integers(R, size=N), rng.standard_normal((R, D), dtype=np.float32)
    one_hot, da = np.zeros((N, R), np.float32), rng.standard_normal((N, D), dtype=np.float32)
    one_hot[np.arange(N), index] = 1
    by_product, by_look_up = milliseconds(product, one_hot, table, da), milliseconds(look_up, index, table, da)
    spent["product with one-hot"].append(by_product)
    spent["look-up and scatter-add"].append(by_look_up)
    size = one_hot.nbytes / 1e6
    print(f"R = {R:6,}: product {by_product:7.3f} ms, look-up {by_look_up:6.3f} ms; one-hot vectors {size:4.1f} MB")

assert spent["look-up and scatter-add"][-1] < spent["product with one-hot"][-1]

# %%
figure, axes = figures.new(width=7.0, height=3.2)
for name, values in spent.items():
    axes.plot(sizes, values, label=name)
axes.set(xscale="log", yscale="log", xlabel="words in the vocabulary R", ylabel="forward and backward (ms)")
axes.set_xticks(sizes, [f"{R:,}" for R in sizes])
axes.yaxis.set_major_formatter("{x:g}")
axes.minorticks_off()
axes.legend()
figures.show(
    figure,
    "02_cost",
    alt="Time against the size of the vocabulary, both logarithmic: the product grows in proportion to it, the look-up "
    "is faster everywhere and grows less.",
)

# %% [markdown]
# The time of the look-up grows a little as well. Its forward pass does not depend on $R$, but its gradient has $R$
# rows. Most of them are 0, and they still have to be written.
#
# ## What the rows learn
#
# Here is a small example of what the rows learn. A friend tells you the month of a birthday, but may be wrong by one
# month: the true month is the stated one or one of its neighbors, each with probability 1/3. The network gets the
# number of the stated month, and has to name the true month. It has only two numbers for each month, and a linear map
# from them to twelve scores. The loss is the cross-entropy of [lesson 1](01_from_rnn_to_attention.py).
#
# **Predict first.** Each month is a point in the plane, given by its two numbers. The network knows the months only as
# the numbers 0 to 11. How will the twelve points lie after training?

# %%
months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def trained_table(seed, steps, kind=nn.Embedding, dim=2, errors=(-1, 0, 1)):
    """The learned table (12, dim), and the loss, as a mean over the last 100 steps."""
    rng = np.random.default_rng(seed)
    table, head = kind(12, dim, seed=rng), nn.Linear(dim, 12, seed=rng)
    params = {f"table.{k}": p for k, p in table.parameters().items()} | head.parameters()
    opt, losses = optim.AdamW(params, lr=0.02, weight_decay=0.0), []
    for _ in range(steps):
        said = rng.integers(12, size=128)
        true = (said + rng.choice(errors, size=128)) % 12
        vectors, back_table = table(said)  # (128, dim)
        scores, back_head = head(vectors)  # (128, 12)
        loss, back_loss = F.softmax_cross_entropy(scores, true)
        opt.zero_grad()
        back_table(back_head(back_loss()))
        opt.step()
        losses.append(float(loss))
    return table.weight.data, np.mean(losses[-100:])


STEPS = 600 if SHORT else 1500
rows, loss = trained_table(0, STEPS)
unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
similarity = unit @ unit.T  # (12, 12): 1 for the same direction, -1 for opposite ones
near = np.mean([similarity[m, (m + 1) % 12] for m in range(12)])
far = np.mean([similarity[m, (m + 6) % 12] for m in range(12)])
print(f"loss {loss:.2f} (guessing: {np.log(12):.2f}, the best possible: {np.log(3):.2f})")
print(f"similarity of neighbors {near:.2f}, of opposite months {far:.2f}")
assert near > 0.5 and far < -0.5

# %%
figure, axes = figures.new(width=4.6, height=4.4)
ring = np.append(np.arange(12), 0)
axes.plot(*rows[ring].T, color=figures.QUIET, lw=0.8, ls="-", marker="o")
for name, (across, up) in zip(months, rows + 0.9 * unit):  # outside of its point
    axes.text(across, up, name, ha="center", va="center")
axes.set(xlabel="first number of the row", ylabel="second number of the row", aspect="equal")
axes.margins(0.15)
figures.show(
    figure,
    "02_months",
    alt="The twelve rows of the learned table as points in a plane: going round, they follow in the order of the year.",
)

# %% [markdown]
# The months form a ring in the order of the year, although the network was not given this order. Neighboring months
# have similar answers, so their rows get similar gradients, and point in similar directions after training. [Lesson
# 5](05_order.py) shows the same for the positions in an image.
#
# ## Embeddings in a Vision Transformer
#
# A *Vision Transformer* (ViT) cuts an image into square *patches* and uses both forms. The *positions* of the patches
# are numbers from a fixed set, so each has a learned row in a table, `pos_embed`. All positions occur in every image,
# so the look-up takes the whole table, and its gradient is the sum over the images. The *patches* are not from a fixed
# set: no two patches of a photograph are equal. Instead of a table look-up they need a linear map of their pixels, $a =
# x W$ with an $x$ that is not one-hot:

# %%
vit = minivit.create_model("vit_base_patch16_224")
params = vit.parameters()
print("pos_embed", params["pos_embed"].shape, "- a row for the class token and for each of 14 x 14 positions")
print("patch_embed.proj.weight", params["patch_embed.proj.weight"].shape, "- 16 x 16 pixels of 3 colors -> 768 numbers")
assert params["pos_embed"].shape == (1, 1 + 14 * 14, 768)

# %% [markdown]
# ## What you have seen
#
# - An embedding is a linear map of a one-hot vector. The product and the look-up give bit-identical results.
# - Its gradient is a scatter-add: rows that were looked up several times accumulate several gradients.
# - The product takes $R \cdot D$ multiplications for each word, the look-up copies $D$ numbers. So the look-up is used.
# - The rows reflect their use: neighbors in the year became neighbors in the plane.
#
# ## Try it
#
# **Exercise 1.** Write a subclass of `nn.Embedding` whose backward pass uses the wrong `+=`, and train the months with
# it (`kind` in `trained_table`). Can you tell from the loss?
#
# <details>
# <summary>Solution 1</summary>
#
# You cannot. With two seeds the losses are 1.138 and 1.139 with the right gradient, and 1.128 and 1.145 with the wrong
# one. In each step the wrong gradient keeps one of about ten gradients for each row. It is a noisy estimate of the
# right gradient, up to a factor, and AdamW divides each gradient by its usual size. [Lesson 10](10_break_it.py) shows
# more wrong gradients that the loss does not reveal. `check_vjp` finds this one immediately.
#
# </details>


# %% tags=["hide-cell"]
# Solution 1
class WrongEmbedding(nn.Embedding):
    def forward(self, index, rng=None):
        def back(dy):
            dtable = np.zeros_like(self.weight.data)
            dtable[index] += dy  # keeps one gradient for each row
            self.weight.accumulate(dtable)

        return self.weight.data[index], back


for seed in (0, 1):
    right_loss, wrong_loss = (trained_table(seed, STEPS, kind)[1] for kind in (nn.Embedding, WrongEmbedding))
    print(f"seed {seed}: loss {right_loss:.3f} with the right gradient, {wrong_loss:.3f} with the wrong one")
    assert abs(right_loss - wrong_loss) < 0.05

# %% [markdown]
# **Exercise 2.** Give each month one number instead of two (`dim=1`). How much larger is the loss? Why can the ring not
# be drawn on a line?
#
# <details>
# <summary>Solution 2</summary>
#
# The loss is 1.72 instead of 1.14. A ring cannot be drawn on a line without a fold: December and January are neighbors
# in the year, but the ends of a line are far apart. The network folds the ring flat, as the printed order shows.
# Neighbors in the year are then about two apart, with another month between them.
#
# </details>

# %% tags=["hide-cell"]
# Solution 2
on_a_line, line_loss = trained_table(0, STEPS, dim=1)
print(f"loss {line_loss:.2f} with one number, {loss:.2f} with two")
assert 1.4 < line_loss < 2.0 and loss < 1.25
print("order on the line:", " ".join(months[m] for m in on_a_line[:, 0].argsort()))

# %% [markdown]
# **Exercise 3.** Let the friend always be wrong by exactly one month (`errors=(-1, 1)`). Which months become similar
# now? Why not the neighbors?
#
# <details>
# <summary>Solution 3</summary>
#
# Months that are two apart become similar: their similarity is +0.71, and that of neighbors -0.30. If the friend says
# "March", the true month is February or April. "May" can mean April or June, which has April in common with "March".
# "April" means March or May, and has nothing in common with "March". So the even and the odd months form two rings.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
other_rows, _ = trained_table(0, STEPS, errors=(-1, 1))
directions = other_rows / np.linalg.norm(other_rows, axis=1, keepdims=True)
cosines = directions @ directions.T
by_distance = [np.mean([cosines[m, (m + apart) % 12] for m in range(12)]) for apart in range(7)]
print("similarity of months 1 ... 6 apart:", " ".join(f"{value:+.2f}" for value in by_distance[1:]))
assert by_distance[2] > 0.4 and by_distance[1] < 0.2

# %% [markdown]
# Next: [3. Self-attention by hand](03_self_attention.py)
