# %% [markdown]
# # 5. Order: position embeddings
#
# Attention does not depend on the order of its tokens. This page shows exactly what that means, and how position
# embeddings tell a Vision Transformer (ViT) where each patch is. You will measure how much they improve accuracy, and
# see what learned position embeddings look like.
#
# **Run time.** The code of this page takes about 60 s on one core of a server processor, and about 10 s with
# `MINIVIT_LESSONS=short` in the environment.
#
# **Words used here.** [Lesson 3](03_self_attention.py) explains attention, and [lesson 2](02_embedding.py) tables of
# learned vectors. A ViT cuts an image into square *patches* and makes a token of each. It puts one more token in front,
# the *class token*, from which the answer is read. A *permutation* is a change of order. Here `order` is a list such as
# `[2, 0, 1]`: the first element is now the one that was at position 2.

# %%
import os

import numpy as np

import minivit
from minivit import data, explain, functional as F, nn, optim
from minivit.draw import figures

SHORT = os.environ.get("MINIVIT_LESSONS") == "short"
rng = np.random.default_rng(0)

# %% [markdown]
# ## Permuted in, permuted out
#
# Give attention its tokens in another order. Each token has the same query as before. It compares the query with the
# same keys, and gets the same mean of the same values. So its output is the same, at the token's new position:
#
# $$
# \operatorname{attention}(x[\text{order}]) = \operatorname{attention}(x)[\text{order}] .
# $$
#
# The gradient is permuted in the same way. The next cell computes both sides of this equation, in 32 and in 64 bits.
#
# **Predict first.** Will the two sides be equal to the last bit?

# %%
for dtype in ("float32", "float64"):
    layer = nn.Attention(24, num_heads=3, dtype=dtype, seed=0)
    layer.qkv.weight.data = rng.standard_normal((72, 24)) / 24**0.5
    x, dy = rng.standard_normal((2, 4, 50, 24)).astype(dtype)  # 4 sequences of 50 tokens, twice
    order = rng.permutation(50)
    y, back = layer(x)
    y_moved, back_moved = layer(x[:, order])
    dx, dx_moved = back(dy), back_moved(dy[:, order])
    error = np.abs(y_moved - y[:, order]).max() / np.abs(y).max()
    error_back = np.abs(dx_moved - dx[:, order]).max() / np.abs(dx).max()
    print(f"{dtype}: outputs differ by {error:.0e} of the largest, gradients by {error_back:.0e}")
    assert max(error, error_back) < 100 * np.finfo(dtype).eps
    assert np.abs(y_moved - y).max() > 0.1 * np.abs(y).max()  # without undoing the permutation they are different

# %% [markdown]
# No, they differ in the last digits. The sums over the tokens are taken in another order, and in floating point each
# partial sum is rounded. The difference shrinks with the precision, from about $10^{-7}$ with 32 bits to $10^{-16}$
# with 64 bits. So it is only rounding.

# %%
print(f"(0.1 + 0.2) + 0.3 - (0.1 + (0.2 + 0.3)) = {(0.1 + 0.2) + 0.3 - (0.1 + (0.2 + 0.3)):.1e}")
assert (0.1 + 0.2) + 0.3 != 0.1 + (0.2 + 0.3)

# %% [markdown]
# ## A ViT without positions sees an unordered set of patches
#
# All other parts of a ViT process each token independently. So if the patches of an image are shuffled, all tokens of
# the model are permuted in the same way. The class token is not moved, and its output is unchanged. The answer cannot
# depend on the positions of the patches.
#
# The next cell takes digits from MNIST, a data set of handwritten digits with 28 x 28 gray pixels each. It compares two
# untrained models: one without positions, and one with the learned positions of the ViT paper (Dosovitskiy et al.
# 2021). A model gives ten *logits* for an image, one score for each digit.

# %%
mnist = data.load_mnist(os.environ.get("MINIVIT_MNIST"), quiet=True)
PATCH, GRID = 7, (4, 4)  # 28 x 28 pixels in 4 x 4 patches
order = np.random.default_rng(1).permutation(16)


def shuffled(images):
    """Images (n, 28, 28) with their patches in another order, the same for each image."""
    rows, _ = F.patchify(images[:, None], PATCH)  # (n, 16, 49): a row of pixels for each patch
    moved, _ = F.unpatchify(rows[:, order], PATCH, GRID)  # (n, 1, 28, 28)
    return moved[:, 0]


def fresh(kind, seed, patch=PATCH, dim=48):
    return minivit.ViT(
        img_size=28,
        patch_size=patch,
        in_chans=1,
        num_classes=10,
        embed_dim=dim,
        depth=2,
        num_heads=4,
        mlp_ratio=2.0,
        pos_embed=kind,
        seed=seed,
    )


digits = mnist.test_images[:8]
for kind in ("none", "learned_1d"):
    model = fresh(kind, seed=0)
    logits = model.predict(data.normalize(digits))  # (8, 10)
    difference = np.abs(model.predict(data.normalize(shuffled(digits))) - logits).max() / np.abs(logits).max()
    print(f"positions {kind:10s}: shuffling the patches changes the answers by {difference:.0e} of the largest")
    assert difference < 1e-4 if kind == "none" else difference > 1e-3

# %%
figure, panels = figures.new(2, 5, width=7.5, height=3.4)
for column in range(5):
    for row, pictures in enumerate((digits, shuffled(digits))):
        panels[row, column].imshow(pictures[column], cmap="gray_r")
        panels[row, column].set(xticks=[], yticks=[])
panels[0, 0].set_ylabel("original")
panels[1, 0].set_ylabel("shuffled")
figures.show(
    figure,
    "05_shuffled",
    alt="Five handwritten digits, and below them the same digits cut into 16 squares that lie in another order. To a "
    "ViT without positions both rows are the same.",
)

# %% [markdown]
# ## Kinds of position embeddings
#
# The remedy is simple: add to each token a vector that depends on its position. Then two equal patches at two positions
# are different tokens. There are several kinds. In this library the argument `pos_embed` chooses between them:

# %%
kinds = {
    "none": "no positions",
    "learned_1d": "a learned vector for each token, numbered in reading order",
    "learned_2d": "a learned half for each row, and one for each column",
    "sincos_1d": "fixed sines and cosines of the number in reading order",
    "sincos_2d": "fixed sines and cosines, half for the row and half for the column",
    "relative": "a learned number added to the score, for each offset from token to token",
}
plain = fresh("none", 0).parameters()
for kind, meaning in kinds.items():
    extra = {name: param for name, param in fresh(kind, 0).parameters().items() if name not in plain}
    print(f"{kind:10s}: {meaning}; {sum(param.size for param in extra.values()):,} numbers to learn")

# %% [markdown]
# Before training, a learned table is random. It distinguishes the positions, but contains no information on rows,
# columns and neighbors. This has to be learned.
#
# ## The effect on accuracy
#
# Here is a small experiment. Models with and without positions are trained on a few thousand digits, for the same
# number of *epochs*. (An epoch is one pass over all training images.) Each model is then tested twice: on the test
# images, and on the same images with shuffled patches.
#
# **Predict first.** Without positions the model sees the 16 patches of a digit in no order. Which accuracy will it
# reach? Guessing gives 10%.

# %%
COUNT, SEEDS = (2000, [0]) if SHORT else (4000, [0, 1, 2])
test_images, test_labels = mnist.test_images[:2000], mnist.test_labels[:2000]


def train(model, images, labels, epochs, seed, batch=32):
    """The plain loop: batches, loss, gradients, step. The learning rate rises for one epoch and then falls."""
    opt = optim.AdamW(model.parameters(), 4e-3, weight_decay=0.05, no_decay=optim.no_decay(model))
    steps = data.num_batches(len(images), batch)
    for epoch in range(epochs):
        for position, (x, y) in enumerate(data.batches(images, labels, batch, seed=seed, epoch=epoch)):
            opt.lr = optim.warmup_cosine(epoch * steps + position, epochs * steps, peak=4e-3, warmup=steps)
            opt.zero_grad()
            logits, back = model(x)
            loss, back_loss = F.softmax_cross_entropy(logits, y)
            back(back_loss())
            optim.clip_grad_norm(opt.params, 1.0)
            opt.step()


def accuracy(model, images):
    return float((model.predict(data.normalize(images)).argmax(axis=1) == test_labels).mean())


images, labels = mnist.train_images[:COUNT], mnist.train_labels[:COUNT]
scores = {}  # kind -> (seeds, 2): accuracy on the test images, and on shuffled ones
for kind in ("none", "learned_1d"):
    rows = []
    for seed in SEEDS:
        model = fresh(kind, seed)
        train(model, images, labels, 10, seed)
        rows.append((accuracy(model, test_images), accuracy(model, shuffled(test_images))))
    scores[kind] = np.array(rows)
    means, spread = scores[kind].mean(axis=0), np.ptp(scores[kind][:, 0])
    print(f"{kind:10s}: accuracy {means[0]:.1%} (seeds within {spread:.1%}), on shuffled test images {means[1]:.1%}")

gain = scores["learned_1d"][:, 0] - scores["none"][:, 0]
print(f"gain from learned positions: {', '.join(f'{100 * value:+.1f}' for value in gain)} points")
assert gain.mean() > 0.02
assert np.abs(scores["none"][:, 0] - scores["none"][:, 1]).max() < 0.005  # shuffling changes nothing for this model
assert (scores["learned_1d"][:, 0] - scores["learned_1d"][:, 1]).min() > 0.04  # for this one it does

# %% [markdown]
# There are two results. Without positions most digits are still recognized. The strokes in sixteen patches and their
# directions are informative even without their positions. With positions the accuracy is clearly higher, but only if
# the patches are at the positions that they had in training.
#
# [Does a ViT need positions?](../positions.md) is the same experiment on a larger scale. It compares all six kinds on
# all of MNIST with three seeds, and has a control in which the patches were shuffled before training. There the
# accuracy is 94% without positions, and 97 to 98% with any of the five kinds. The kind matters little, so many ViTs
# use the simplest one, a learned vector for each token.
#
# ## What learned position embeddings look like
#
# The table was not given rows or columns. Did it learn them? Compare the vectors of two positions by the *cosine* of
# the angle between them: 1 for the same direction, 0 for orthogonal vectors, -1 for opposite directions. The class
# token is left out, because it belongs to no position of the image. For a finer grid this model has patches of 4
# pixels, which makes 7 x 7 positions.

# %%
SIDE = 7


def similarity(model):
    """The cosine between the position vectors of all pairs of positions: (49, 49)."""
    vectors = model.parameters()["pos_embed"].data[0, 1:]  # (49, D): row 0 is the class token's
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


small_model = fresh("learned_1d", seed=0, patch=4, dim=32)
before = similarity(small_model)
train(small_model, mnist.train_images[:4000], mnist.train_labels[:4000], 3 if SHORT else 12, seed=0, batch=64)
after = similarity(small_model)
print(f"accuracy on the test images: {accuracy(small_model, test_images):.1%}")

# %% [markdown]
# The mean over pairs of positions shows whether neighbors are similar. MNIST's digits are centered, so some positions
# at the border hardly ever contain ink. These are averaged separately.
#
# **Predict first.** Before training all cosines are near 0. Which pairs will be most similar after training?

# %%
row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
steps = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)  # (49, 49): steps from position to position
ink = (mnist.train_images[:4000] / 255).reshape(-1, SIDE, 4, SIDE, 4).mean(axis=(0, 2, 4)).reshape(-1) > 0.02  # (49,)
with_ink, blank = ink[:, None] & ink, ~ink[:, None] & ~ink  # (49, 49): pairs of such positions

groups = {
    "neighbors, with ink": with_ink & (steps == 1),
    "2 or 3 steps apart, with ink": with_ink & (steps > 1) & (steps < 4),
    "4 steps and more, with ink": with_ink & (steps > 3),
    "blank positions, any distance": blank & (steps > 0),
}
found = {}
for name, pairs in groups.items():
    found[name] = after[pairs].mean()
    print(f"{name:30s}: before training {before[pairs].mean():+.2f}, after {found[name]:+.2f}")
    assert abs(before[pairs].mean()) < 0.1, "at first, no two positions are similar"

assert found["neighbors, with ink"] > found["2 or 3 steps apart, with ink"] + 0.08
assert found["blank positions, any distance"] > 0.2


# %%
def tiled(similarity):
    """(49, 49) -> one figure: a tile of 7 x 7 for each position, arranged like the image, with gaps."""
    picture = np.full((SIDE * (SIDE + 1) - 1,) * 2, np.nan)
    for position, tile in enumerate(similarity.reshape(-1, SIDE, SIDE)):
        top, left = (SIDE + 1) * row[position], (SIDE + 1) * column[position]
        picture[top : top + SIDE, left : left + SIDE] = tile
    return picture


figure, panels = figures.new(1, 2, width=9.0, height=4.2)
for panel, (title, values) in zip(panels, (("before training", before), ("after training", after))):
    image = panel.imshow(tiled(values), cmap=figures.HEAT, vmin=-0.5, vmax=1)
    ticks = np.arange(SIDE) * (SIDE + 1) + SIDE // 2
    panel.set_xticks(ticks, range(SIDE))
    panel.set_yticks(ticks, range(SIDE))
    panel.set(title=title, xlabel="column of the position", ylabel="row of the position")
figure.colorbar(image, ax=panels, label="cosine similarity")
figures.show(
    figure,
    "05_similarity",
    alt="49 tiles, one for each position, arranged like the image; each shows how similar all positions are to its "
    "own. Before training only the position itself is bright. After training some neighbors are, too, and above all "
    "the positions at the blank border are similar to one another.",
)

# %% [markdown]
# Each tile belongs to one position and shows how similar the 49 positions are to it. Before training, a position is
# similar only to itself. After training it is a little similar to its direct neighbors: the table has begun to learn
# which positions are adjacent.
#
# Another effect is stronger. The blank positions at the border are all similar, even those at opposite corners. They
# contain the same background in nearly every image, so they get nearly the same gradient in every step. A table learns
# only what is useful for its images. The figure in the ViT paper, of a large model trained on photographs, shows rows
# and columns. A small model with a few thousand digits does not.
#
# ## What you have seen
#
# - Attention without positions: permuted inputs give permuted outputs, up to rounding. The class token is unchanged.
# - A vector for each position, added to the tokens, gives attention the order. A learned one starts without any order.
# - On a few thousand digits position embeddings raised the accuracy by several points, and a model that has them
#   depends on them.
# - In a trained table neighbors are a little similar, and positions with the same content are very similar.
#
# ## Try it
#
# **Exercise 1.** Draw the similarity of `"sincos_2d"` positions, without any training. They are not a parameter, but
# `explain.position_similarity(model).reshape(49, 49)` compares them.
#
# <details>
# <summary>Solution 1</summary>
#
# The similarity falls with the distance: it is 0.97 for neighbors, 0.82 for positions 4 steps apart and 0.74 for 8
# steps. Positions in the same row or column are a little more similar than others at the same distance, which gives a
# faint cross in each tile. So this kind contains rows, columns and neighbors before any training.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
fixed = explain.position_similarity(fresh("sincos_2d", seed=0, patch=4, dim=32)).reshape(49, 49)
for distance in (1, 2, 4, 8):
    print(f"{distance} step(s) apart: {fixed[steps == distance].mean():+.2f}")
assert [round(float(fixed[steps == distance].mean()), 2) for distance in (1, 4, 8)] == [0.97, 0.82, 0.74]
same_line = (row[:, None] == row) | (column[:, None] == column)  # (49, 49)
print(f"4 steps apart: {fixed[same_line & (steps == 4)].mean():+.2f} in the same row or column, otherwise "
      f"{fixed[~same_line & (steps == 4)].mean():+.2f}")  # fmt: skip

figure, panel = figures.new(width=4.6, height=4.2)
image = panel.imshow(tiled(fixed), cmap=figures.HEAT, vmin=0.6, vmax=1)
panel.set_xticks(ticks, range(SIDE))
panel.set_yticks(ticks, range(SIDE))
panel.set(title="sines and cosines, not trained", xlabel="column of the position", ylabel="row of the position")
figure.colorbar(image, ax=panel, label="cosine similarity")
figures.show(
    figure,
    "05_sincos",
    alt="49 tiles as before, for fixed sines and cosines: around each position the similarity falls evenly with the "
    "distance, a little slower along its row and its column.",
)

# %% [markdown]
# **Exercise 2.** Shuffle the patches of all training images in the same way, train a model with learned positions on
# them, and test it on shuffled images. What accuracy do you expect?
#
# <details>
# <summary>Solution 2</summary>
#
# The same accuracy as on the original images: 87.0% in both cases. Before training, learned positions contain no
# information about neighbors, so any fixed order of the patches is as good as any other.
#
# </details>

# %% tags=["hide-cell"]
# Solution 2
model = fresh("learned_1d", seed=0)
train(model, shuffled(images), labels, 10, seed=0)
both = accuracy(model, shuffled(test_images))
print(f"trained and tested on shuffled images {both:.1%}, on original images {scores['learned_1d'][0, 0]:.1%}")
assert abs(both - scores["learned_1d"][0, 0]) < (0.1 if SHORT else 0.03)

# %% [markdown]
# **Exercise 3.** Compute the similarity with the class token left in. What does its row look like, and why?
#
# <details>
# <summary>Solution 3</summary>
#
# It shows no neighborhood: the cosines lie between -0.66 and +0.38, with a mean of 0.06. The class token's position
# vector is added to the class token in every image. So the two are in fact one learned vector, and nothing relates it
# to a position of the image.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
vectors = small_model.parameters()["pos_embed"].data[0]  # (50, 32), the class token's first
unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
class_row = unit[0] @ unit[1:].T  # (49,)
print(f"class token with the 49 positions: mean {class_row.mean():+.2f}, from {class_row.min():+.2f} to "
      f"{class_row.max():+.2f}; neighbors with ink {found['neighbors, with ink']:+.2f}")  # fmt: skip
assert abs(class_row.mean()) < 0.25

# %% [markdown]
# Next: [6. ViT in numbers](06_vit_in_numbers.py)
