# %% [markdown]
# # 11. What changed after ViT
#
# CLIP, SigLIP, DeiT III, DINOv2, DINOv3, BEiT and MAE are Vision Transformers (ViTs) that are trained in other ways.
# Most of them also change a few parts of the network. This page takes these changes one at a time. For each you will
# see the formula, the line of the library that computes it, and a measurement that says what it is for.
#
# **Run time.** The code of this page takes about 40 s on one core of a server processor, and about 10 s with
# `MINIVIT_LESSONS=short` in the environment.
#
# **Words used here.** A *block* adds two *branches* to the tokens, attention and an MLP, each behind a norm ([lesson
# 6](06_vit_in_numbers.py)). The tokens that run along the blocks are the *stream*. The *size* of an array is here the
# root of the mean of its squares (RMS). A *gain* is a learned factor for each channel. *Multiply-adds* are the unit of
# a network's arithmetic.

# %%
import inspect
import os

import numpy as np

import minivit
from minivit import data, functional as F, nn, optim
from minivit.draw import figures
from minivit.models import configs, embedding
from minivit.protocol import compose

SHORT = os.environ.get("MINIVIT_LESSONS") == "short"
rng = np.random.default_rng(0)


def code(function, beginning):
    """Print the lines of a function of the library that begin so."""
    lines = [line.strip() for line in inspect.getsource(function).splitlines()]
    found = [line for line in lines if line.startswith(beginning)]
    assert found, f"{beginning} is not in the library any more"
    print(f"{inspect.getmodule(function).__name__}.{function.__qualname__}:", *found, sep="\n    ")


def size(x):
    """The root of the mean square."""
    return float(np.sqrt((x * x).mean()))


# %% [markdown]
# ## What each family changes
#
# The library builds all of these networks with one class, `minivit.ViT`. A published name chooses its options. Some
# options are sizes: width, depth, heads, patches, images. The next cell prints the others.
#
# **Predict first.** CLIP learns from pairs of image and text, DINOv2 from images without labels, and MAE from images
# most of whose patches are hidden. Which of the three needs the most changes of the network, and which the fewest?

# %%
published = dict(configs.published())
SIZES = {"embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "img_size"}


def changes(name):
    """The options of a published name that are no sizes."""
    return {option: value for option, value in published[name].items() if option not in SIZES}


families = {
    "MAE": "vit_base_patch16_224",
    "CLIP": "vit_base_patch16_clip_quickgelu_224",
    "SigLIP": "vit_base_patch16_siglip_224",
    "DeiT III": "deit3_base_patch16_224",
    "DINOv2": "vit_giant_patch14_reg4_dinov2",
    "DINOv3": "vit_base_patch16_dinov3",
    "BEiT": "beit_base_patch16_224",
    "AIMv2": "aimv2_large_patch14_224",
}
for family, name in families.items():
    print(f"{family:9s} {changes(name) or 'nothing'}")

vits = [name for name in published if configs.class_of(name) == "ViT"]
plain = [name for name in vits if not changes(name)]
print(f"{len(plain)} of {len(vits)} names are plain ViTs of some size, {len(vits) - len(plain)} change something")
assert not changes(families["MAE"]) and len(changes(families["DINOv2"])) == 4
assert len(plain) < len(vits) / 6

# %% [markdown]
# MAE changes nothing (He et al. 2021). Its trick is in the training: the blocks read only the patches that are not
# hidden, a quarter of them. A ViT can do this without any change, because attention accepts any number of tokens:

# %%
small = minivit.ViT(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=48, depth=2, num_heads=4)
tokens, _ = small.embed(rng.standard_normal((1, 1, 28, 28), dtype=np.float32))  # (1, 17, 48): class token, 16 patches
shown = [0, *sorted(1 + rng.permutation(16)[:4])]  # the class token and a quarter of the patches
hidden, _ = compose(tokens[:, shown], *small.blocks[:-1])
print("tokens", tokens.shape, "-> shown", hidden.shape)

block = nn.Block(nn.LayerNorm(768), nn.Attention(768, 12, seed=0), nn.LayerNorm(768), nn.Mlp(768, 3072, seed=0))
costs = {n: nn.multiply_adds(block, (1, n, 768)) for n in (197, 50)}
print("a block of ViT-B/16, millions of multiply-adds:", {n: round(cost / 1e6) for n, cost in costs.items()})
assert hidden.shape == (1, 5, 48) and 0.24 < costs[50] / costs[197] < 0.25

# %% [markdown]
# So a step of MAE's encoder costs less than a quarter of a usual one. All other families change parts of the network.
#
# ## LayerScale: blocks that start as the identity
#
# DeiT III and DINOv2 multiply each branch by a learned gain (Touvron et al. 2021, CaiT):
#
# $$
# y = x + \gamma \odot f(x) , \qquad dx = dy + J_f^\top (\gamma \odot dy) , \qquad d\gamma = \sum f(x) \odot dy .
# $$
#
# Here $J_f$ is the derivative of the branch, and the sum runs over all tokens. All $\gamma$ start at a small number,
# $10^{-5}$ in DINOv2. Then the output of the block is nearly its input, and the gradient behind the block is nearly the
# gradient in front of it. The next cell passes a random gradient back through 24 blocks.
#
# **Predict first.** Without LayerScale, how much does the gradient grow on its way through 24 blocks? How much with
# $\gamma = 10^{-5}$?

# %%
code(F.layer_scale.plain, "return x * gamma")


def tower(**options):
    """24 blocks, initialized as in the paper of ViT."""
    model = minivit.ViT(
        img_size=28, patch_size=7, in_chans=1, embed_dim=64, depth=24, num_heads=4, weight_init="jax", dtype="float64",
        skip_unused_tokens=False, **options,
    )  # fmt: skip
    return model.blocks


x, dy = rng.standard_normal((2, 2, 17, 64))
gains, towers = {}, {start: tower(init_values=start) for start in (None, 0.1, 1e-5)}
for start, blocks in towers.items():
    y, back = compose(x, *blocks)
    dx = back(dy)
    gains[start] = size(dx) / size(dy)
    moved = size(dx - dy) / size(dy)
    print(f"gamma {start!s:5s}: stream changed by {size(y - x) / size(x):.1e} of its size, gradient by {moved:.1e}; "
          f"it arrives {gains[start]:.5f} times as large")  # fmt: skip
assert gains[None] > 2 and abs(gains[0.1] - 1) < 0.1 and moved < 5e-5

# %% [markdown]
# Without LayerScale the gradient grows by a factor of 3. With $\gamma = 10^{-5}$ it changes by 0.003%. But what do the
# blocks learn from it? The gradient of a weight within the branch has the factor $\gamma$. The gradient of $\gamma$
# itself has not.

# %%
first = towers[1e-5][0]
within, of_gamma = size(first.mlp.fc2.weight.grad), size(first.ls2.gamma.grad)
print(f"gradients of the first block's MLP: its last weight {within:.1e}, its gamma {of_gamma:.1e}")
assert of_gamma > 1e4 * within

params = nn.Sequential(*towers[1e-5]).parameters()
optim.AdamW(params, lr=1e-3, weight_decay=0.0).step()
after = np.abs(first.ls2.gamma.data)
print(f"gamma after one step of AdamW with learning rate 0.001: {after.min():.6f} to {after.max():.6f}")
assert after.min() > 90 * 1e-5

# %% [markdown]
# AdamW divides a gradient by its own size, so its first step moves each number by the learning rate, whatever the
# gradient is. One step of $10^{-3}$ makes $\gamma$ a hundred times as large. LayerScale does not keep a block near the
# identity. It lets the block *start* there, and all blocks leave together, at the rate that the warm-up allows.
#
# ## A norm behind the branch
#
# Swin v2 puts the norm at the end of the branch (Liu et al. 2022), so it is called residual-post-norm:
#
# $$
# y = x + \operatorname{LN}(f(x)) .
# $$
#
# (The post-norm of [lesson 10](10_break_it.py) is $\operatorname{LN}(x + f(x))$. It norms the stream itself.) A branch
# with a norm at its end has an output of size 1 times the gain, whatever its weights are.
#
# **Predict first.** Take the same 24 blocks and multiply the last weight of each branch by 100. How large is the stream
# after all blocks, with the norm in front of the branch and with the norm behind it?

# %%
code(nn.Block._branch, "return compose")
sizes = {}
for post_norm in (False, True):
    for factor in (1, 100):
        blocks = tower(post_norm=post_norm)
        for each in blocks:
            for norm in (each.norm1, each.norm2):
                norm.weight.data[:] = 1.0  # the gains of a norm behind a branch start at 0: again the identity
            for linear in (each.attn.proj, each.mlp.fc2):
                linear.weight.data *= factor
        y, _ = compose(x, *blocks)
        sizes[post_norm, factor] = size(y)
        print(f"norm {'behind' if post_norm else 'in front'}, weights times {factor:3d}: stream {size(y):.2f}")
assert sizes[False, 100] > 50 * sizes[False, 1]
assert abs(sizes[True, 100] / sizes[True, 1] - 1) < 1e-4 and sizes[True, 1] < 1.2 * 49**0.5

# %% [markdown]
# The stream is the sum of the input and 48 branches of size 1. If they had nothing to do with each other, its size
# would be $\sqrt{49} = 7$, and it is close to that. The size of the last weight no longer matters: a norm divides it
# out. This keeps large models bounded.
#
# ## A norm before the blocks
#
# CLIP norms the tokens once, before the first block, and its patches have no bias (Radford et al. 2021):
#
# $$
# z_0 = \operatorname{LN}([\text{class token}; \text{patches}] + \text{positions}) .
# $$
#
# Each branch has its own norm, so what is this one for? Branches read normed tokens, but they are added to the stream
# as it is. If the tokens of an image are large, what the blocks add is small against them.
#
# **Predict first.** Multiply all pixels of some digits by 100. Compare the size of what the blocks receive with the
# size of what they add. Which share do they add, without this norm and with it?

# %%
code(minivit.ViT.forward, "self.norm_pre")
mnist = data.load_mnist(os.environ.get("MINIVIT_MNIST"), quiet=True)
digits = data.normalize(mnist.test_images[:8])
shares = {}
for pre_norm in (False, True):
    model = minivit.ViT(
        img_size=28, patch_size=7, in_chans=1, embed_dim=64, depth=6, num_heads=4, weight_init="jax", pre_norm=pre_norm,
        skip_unused_tokens=False,
    )  # fmt: skip
    for contrast in (1, 10, 100):
        before, _ = compose(digits * np.float32(contrast), model.embed, model.norm_pre)  # (8, 17, 64)
        after, _ = compose(before, *model.blocks)
        given, added = size(before[:, 1:]), size((after - before)[:, 1:])  # of the patches
        shares[pre_norm, contrast] = added / (given + added)
        print(f"pre_norm={pre_norm!s:5s} contrast {contrast:3d}: blocks add {shares[pre_norm, contrast]:.0%}")
assert 0.5 < shares[False, 1] < 0.7 and shares[False, 100] < 0.03
assert np.ptp([shares[True, contrast] for contrast in (1, 10, 100)]) < 0.02

# %% [markdown]
# Without the norm the share falls from about 60% to 1%: for an image of high contrast the blocks hardly matter. With
# it, the share stays above 60%, because the size of the tokens is divided out before the blocks. The patches need no
# bias, because the positions that are added to them can take its part.
#
# The opposite change is to leave out the last norm (`final_norm=False`, in RADIO and InternViT).
#
# **Predict first.** How much larger are the features of the same images then, if all pixels are multiplied by 100?

# %%
for final_norm in (True, False):
    model = minivit.ViT(
        img_size=28, patch_size=7, in_chans=1, num_classes=0, embed_dim=64, depth=6, num_heads=4, weight_init="jax",
        class_token=False, global_pool="avg", final_norm=final_norm,
    )  # fmt: skip
    feature_sizes = [size(model.features(digits * np.float32(contrast))) for contrast in (1, 100)]
    print(f"final_norm={final_norm!s:5s} size of the features {feature_sizes[0]:.2f}, and {feature_sizes[1]:.2f}")
    assert final_norm == (abs(feature_sizes[1] / feature_sizes[0] - 1) < 1e-3)
assert 10 < feature_sizes[1] / feature_sizes[0] < 30

# %% [markdown]
# By a factor of about 20. With the last norm, features have the size of its gains, whatever the image is. Without it
# their size says something about the image, and everything that reads them must expect it.
#
# ## RMSNorm: is the mean needed?
#
# LayerNorm subtracts the mean of a token and divides by its standard deviation. RMSNorm only divides (Zhang and
# Sennrich 2019). AIMv2 has it everywhere:
#
# $$
# \operatorname{RMSNorm}(x) = \frac{x}{\sqrt{\operatorname{mean}(x^2) + \epsilon}} \odot w .
# $$
#
# To see what is lost, take a ViT that was trained with LayerNorm. The next cell trains one on digits for a short time.

# %%
code(F.rms_norm.plain, ("rrms =", "xhat ="))
COUNT, EPOCHS = (1000, 2) if SHORT else (2000, 5)
images, labels = mnist.train_images[:COUNT], mnist.train_labels[:COUNT]
test_images, test_labels = data.normalize(mnist.test_images[:1000]), mnist.test_labels[:1000]


def fresh(seed=0, **options):
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0}
    return minivit.ViT(img_size=28, patch_size=7, in_chans=1, num_classes=10, seed=seed, **{**shape, **options})


def train(model, seed=0, batch=32):
    """The plain loop of lesson 5."""
    opt = optim.AdamW(model.parameters(), 4e-3, weight_decay=0.05, no_decay=optim.no_decay(model))
    steps = data.num_batches(len(images), batch)
    for epoch in range(EPOCHS):
        for position, (x, y) in enumerate(data.batches(images, labels, batch, seed=seed, epoch=epoch)):
            opt.lr = optim.warmup_cosine(epoch * steps + position, EPOCHS * steps, peak=4e-3, warmup=steps)
            opt.zero_grad()
            logits, back = model(x)
            _, back_loss = F.softmax_cross_entropy(logits, y)
            back(back_loss())
            optim.clip_grad_norm(opt.params, 1.0)
            opt.step()
    return model


def accuracy(model):
    return float((model.predict(test_images).argmax(axis=1) == test_labels).mean())


trained = train(fresh())
print(f"{COUNT} images of {mnist.source}, {EPOCHS} epochs: accuracy {accuracy(trained):.1%}")

# %% [markdown]
# LayerNorm ignores the mean of a token. So nothing changes if everything that writes into the stream writes vectors of
# mean 0: patches, positions, the class token, and the last map of each branch. Subtract the mean over the output
# channels from their weights. Then every token has mean 0, and LayerNorm has no mean to subtract. Only its bias
# remains, and the linear map behind it can take that over.
#
# **Predict first.** The next cell does this and replaces every LayerNorm by RMSNorm, without further training. How many
# of the 1,000 answers change?

# %%
arrays = {name: array.copy() for name, array in trained.state_dict().items()}
for name, array in arrays.items():
    if name in ("cls_token", "pos_embed"):
        array -= array.mean(axis=-1, keepdims=True)
    elif name.startswith("patch_embed.proj") or ".proj." in name or ".fc2." in name:
        array -= array.mean(axis=0)  # over the output channels
behind = {"norm": "head"}
for i in range(2):
    behind |= {f"blocks.{i}.norm1": f"blocks.{i}.attn.qkv", f"blocks.{i}.norm2": f"blocks.{i}.mlp.fc1"}
for norm, linear in behind.items():
    arrays[f"{linear}.bias"] += arrays[f"{linear}.weight"] @ arrays.pop(f"{norm}.bias")

without_mean = fresh(norm_layer="rmsnorm")
without_mean.load_state_dict(arrays)
before, after = trained.predict(test_images), without_mean.predict(test_images)
changed = int((before.argmax(axis=1) != after.argmax(axis=1)).sum())
error = np.abs(after - before).max() / np.abs(before).max()
print(f"{changed} of 1000 answers change, logits by {error:.0e} of the largest")
assert changed == 0 and error < 1e-4

# %% [markdown]
# None: the logits differ only by rounding (Jiang et al. 2023 prove it). Every such ViT with LayerNorm is a ViT with
# RMSNorm and other weights. Nothing is lost without the mean, and RMSNorm saves a pass over the tokens. The converse is
# false: a ViT with RMSNorm can use the means of its tokens, and LayerNorm removes them.
#
# ## Norms of queries and keys
#
# The score of a query and a key is $q^\top k / \sqrt d$. Nothing bounds it: in training the weights of q and k can grow
# until each query attends to one key alone, and then softmax has no gradient left. The training of a ViT with 8 billion
# parameters diverged for this reason (Dehghani et al. 2023). Norms of queries and keys are the remedy:
#
# $$
# \operatorname{softmax}\left(\operatorname{LN}(q) \operatorname{LN}(k)^\top / \sqrt d\right) v .
# $$
#
# A normed vector of $d$ numbers has at most the length $\sqrt d$. So a score is at most $d / \sqrt d = \sqrt d$, which
# is 8 for the usual heads of 64 channels.
#
# **Predict first.** Let q and k grow by a factor of 10. How large do scores become, with these norms and without? How
# much gradient reaches the scores of a typical query?

# %%
code(nn.Heads.split, ("q, back_q =", "k, back_k ="))
q, k = rng.standard_normal((2, 197, 64))  # of one head: 197 tokens, d = 64
dweights = rng.standard_normal((197, 197))
norm, largest, reaching = nn.LayerNorm(64, dtype="float64"), {}, {}
for qk_norm in (False, True):
    for factor in (1, 10):
        queries, keys = (norm(factor * each)[0] if qk_norm else factor * each for each in (q, k))
        scores = queries @ keys.T / 64**0.5  # (197, 197)
        weights, back = F.softmax(scores)
        largest[qk_norm, factor] = float(np.abs(scores).max())
        reaching[qk_norm, factor] = float(np.median([size(row) for row in back(dweights)]))  # over the queries
        print(f"qk_norm={qk_norm!s:5s} q and k times {factor:2d}: largest score {largest[qk_norm, factor]:5.1f}, "
              f"mean of a query's largest weight {weights.max(axis=1).mean():.2f}, "
              f"gradient {reaching[qk_norm, factor]:.0e}")  # fmt: skip
assert largest[False, 10] > 99 * largest[False, 1] > 100 and largest[True, 10] <= 8
assert reaching[False, 10] < reaching[False, 1] / 1000
assert abs(reaching[True, 10] / reaching[True, 1] - 1) < 1e-3

# %% [markdown]
# Without norms the scores are 100 times as large. A typical query attends to one key alone, and almost no gradient
# reaches its scores. With norms the factor has no effect at all. The gains of the norms can raise the limit of 8, but
# the weights of q and k cannot.
#
# ## A bias that does nothing
#
# BEiT has no bias of k, and DINOv3 sets it to 0. Look at the scores of one query with all keys: a bias $b$ of k adds
# $q^\top b$ to each of them, the same number. Softmax does not see it.
#
# **Predict first.** ViT-B/16 has a bias of k in each of its 12 blocks, 768 numbers each. All biases start at 0. What is
# the gradient of these numbers, and where are they after training?

# %%
code(nn.ComposedAttention.__init__, ("self.q_bias =", "self.v_bias ="))
attention = nn.Attention(48, 4, dtype="float64", seed=0)
attention.qkv.weight.data = rng.standard_normal((144, 48)) / 48**0.5
x, dy = rng.standard_normal((2, 3, 17, 48))
y, back = attention(x)
back(dy)
of_q, of_k, of_v = (size(part) for part in np.split(attention.qkv.bias.grad, 3))
print(f"gradient of the bias of q {of_q:.1e}, of k {of_k:.1e}, of v {of_v:.1e}")
attention.qkv.bias.data[48:96] = 10 * rng.standard_normal(48)
moved, _ = attention(x)
print(f"with a large random bias of k the output changes by {np.abs(moved - y).max():.0e}")
assert of_k < 1e-12 * of_q and np.abs(moved - y).max() < 1e-10

learned_q, learned_k, _ = np.split(trained.blocks[0].attn.qkv.bias.data, 3)
print(f"in the trained digits model: bias of q {size(learned_q):.4f}, of k {size(learned_k):.4f}")
assert 1e-5 < size(learned_k) < size(learned_q) / 2
without_k = trained.state_dict()
for i in range(2):
    without_k[f"blocks.{i}.attn.qkv.bias"][48:96] = 0.0
same = fresh()
same.load_state_dict(without_k)
print(f"set to 0, logits change by {np.abs(same.predict(test_images) - trained.predict(test_images)).max():.0e}")
assert np.abs(same.predict(test_images) - trained.predict(test_images)).max() < 1e-4

# %% [markdown]
# The gradient is 0 except for rounding. But after training in 32 bits these numbers are not 0: AdamW divides a gradient
# by its own size, so rounding errors moved them. ViT-B/16 has 12 x 768 = 9,216 such numbers, which mean nothing. A file
# of BEiT has only `q_bias` and `v_bias`.
#
# ## Rotary positions: scores that know only offsets
#
# A ViT adds a learned table of positions to its tokens once ([lesson 5](05_order.py)). DINOv3 has no table. It rotates
# each query and each key, in every block (Su et al. 2021; for two axes Heo et al. 2024). The channels are taken in
# pairs, and the pair number $m$ of the token at position $i$ is rotated by an angle $i \omega_m$. Two such rotations,
# one transposed, make one rotation by the difference:
#
# $$
# (R_i q)^\top (R_j k) = q^\top R_i^\top R_j\, k = q^\top R_{j-i}\, k .
# $$
#
# Half of the pairs turn with the row and half with the column. (BEiT learns a bias of the score for each offset
# instead; lesson 5 has it as `relative`.) The next cell gives all 49 patches of a grid of 7 x 7 the same query and the
# same key. So what differs between scores is due to positions alone. It takes all pairs of patches with the same
# offset, and measures how far their scores lie apart.

# %%
code(F.rotary.plain, ("turned =", "return x * cos"))
rotate = nn.RotaryPositions((7, 7), 16, prefix_tokens=1)
q, k = rng.standard_normal((2, 16))
table = 0.5 * rng.standard_normal((50, 16))  # learned positions, for comparison
same_q, same_k = (np.tile(each, (1, 1, 50, 1)) for each in (q, k))  # (1, 1, 50, 16): class token, then 49 patches
tables = {
    "rotary": (rotate(same_q)[0] @ rotate(same_k)[0].swapaxes(-1, -2))[0, 0],
    "learned": (q + table) @ (k + table).T,
}  # (50, 50) each
rows, columns = np.divmod(np.arange(49), 7)
offsets = 100 * (rows[None] - rows[:, None]) + columns[None] - columns[:, None]  # (49, 49), one number for each
spread = {}
for kind, scores in tables.items():
    patches = scores[1:, 1:]
    spread[kind] = max(np.ptp(patches[offsets == offset]) for offset in np.unique(offsets))
    print(f"{kind:7s}: scores between {patches.min():.1f} and {patches.max():.1f}; "
          f"with the same offset they differ by up to {spread[kind]:.0e}")  # fmt: skip
assert spread["rotary"] < 1e-12 < 1 < spread["learned"]

# %% [markdown]
# With rotary positions all pairs of patches with the same offset have the same score. With a table they do not: such a
# network has to learn an offset for each pair of positions separately.
#
# The class token is not a patch. It is not rotated, that is, rotated by an angle of 0.
#
# **Predict first.** Coordinates run from -1 to 1 along each side of the image. Which patch has the same scores as the
# class token, if their queries are the same?

# %%
scores = tables["rotary"]
distance = np.abs(scores[:1] - scores[1:]).max(axis=1)  # from each patch's row of scores to the class token's
nearest = int(distance.argmin())
print(f"patch {nearest} at row {nearest // 7}, column {nearest % 7}: scores differ by {distance[nearest]:.0e}; "
      f"those of other patches by at least {np.sort(distance)[1]:.1f}")  # fmt: skip
assert nearest == 24 and distance[24] < 1e-12

# %%
figure, axes = figures.new(1, 3, width=9, height=3.2)
queries = {"class token": 0, "patch in the center": 25, "patch at the top left": 1}
for panel, (title, query) in zip(axes, queries.items()):
    panel.imshow(scores[query, 1:].reshape(7, 7), cmap=figures.HEAT, vmin=scores.min(), vmax=scores.max())
    panel.set(title=title, xlabel="column", ylabel="row", xticks=range(7), yticks=range(7))
figures.show(
    figure,
    "11_rotary",
    alt="Maps of the scores of three queries with 7 by 7 patches: the class token's equals that of the patch in the "
    "center, and the map of the patch at the top left is the same pattern moved to the corner.",
)

# %% [markdown]
# The class token of DINOv3 reads the image as if it were at its center. The third map is the same pattern, moved to the
# corner. There is nothing to learn, and nothing to resample for an image of another size.
#
# ## Register tokens
#
# Large ViTs turn a few patches of plain background into vectors of very large size, which serve as memory for the whole
# image and spoil the maps of patches. *Registers* give the model tokens for that (Darcet et al. 2024):
#
# $$
# z_0 = [\text{class token}; r_1, \dots, r_4; \text{patches}] .
# $$
#
# They are learned, like the class token, and no head reads them. In DINOv2 with registers, and in DeiT III, only
# patches have positions, since the other tokens are nowhere (`no_embed_class`). The effect needs a large model and long
# training: [features](../features.md) draws such maps.
#
# One use of a register can be computed by hand. Softmax weights sum to 1, so a head that finds nothing in an image must
# still put its weight somewhere. Take 196 patches, all with the same score $s$, and a register with the score 0 whose
# value is 0. The weight on the register is the share by which the head reduces its output.
#
# **Predict first.** All patches have the score -5, so each of them gets $e^{-5} = 0.7$ % of the register's weight. How
# much of its weight does the head put on the register?

# %%
code(embedding.Tokens.__init__, "self.reg_token =")
on_register = {}
for s in (0, -5, -10):
    weights, _ = F.softmax(np.array([0.0] + 196 * [float(s)]))
    on_register[s] = float(weights[0])
    print(f"patches with the score {s:3d}: weight on the register {weights[0]:.1%}")
assert 0.42 < on_register[-5] < 0.44 and on_register[-10] > 0.99

# %% [markdown]
# Less than half: 196 small numbers have a large sum. To put 99% there, the scores must be 10 apart.
#
# No head reads the registers. The next cell measures their gradient in models with 0, 1 and 2 blocks.
#
# **Predict first.** In which of these models do the registers get a gradient?

# %%
reached = {}
for depth in (0, 1, 2):
    model = fresh(depth=depth, reg_tokens=4, dtype="float64")
    logits, back = model(digits.astype("float64"))
    back(rng.standard_normal(logits.shape))
    reached[depth] = size(model.parameters()["reg_token"].grad)
    print(f"{depth} blocks: gradient of the registers {reached[depth]:.1e}")
assert reached[0] == 0 < min(reached[1], reached[2])
more = nn.multiply_adds(block, (1, 201, 768)) / nn.multiply_adds(block, (1, 197, 768)) - 1
print(f"cost of 4 registers in a block of ViT-B/16: {more:.1%}, and {4 * 768:,} parameters")
assert more < 0.025

# %% [markdown]
# In all that have a block: the class token attends to the registers, to their keys and values. Only what the last block
# computes for the registers themselves is never used.
#
# ## Attention pooling
#
# How does a vector for the whole image come out of the tokens? ViT has a class token. SigLIP has none: one learned
# query attends to all patches, once, after the last block (Zhai et al. 2022):
#
# $$
# p = W_o \operatorname{softmax}(q k^\top / \sqrt d)\, v , \qquad y = p + \operatorname{MLP}(\operatorname{LN}(p)) .
# $$
#
# The class token does the same in the last block, where only its own query is needed. But its query depends on the
# image, while the learned query is the same for all images.
#
# **Predict first.** What does an attention pooling compute before it is trained?

# %%
code(nn.AttentionPool.forward, ("latent =", "heads, back_attention ="))
norm = nn.LayerNorm(768)
pool = nn.AttentionPool(768, 12, norm, nn.Mlp(768, 3072, seed=0), seed=0)
patches = rng.standard_normal((1, 196, 768), dtype=np.float32)
query, _ = compose(pool.latent.data, pool.q, lambda a: F.split_heads(a, 12))  # (1, 12, 1, 64)
(keys, _), _ = F.split_qkv(pool.kv(patches)[0], 12, 2)  # (1, 12, 196, 64)
weights, _ = F.softmax(query @ keys.swapaxes(-1, -2) / 8)  # (1, 12, 1, 196)
print(f"weights between {weights.min():.5f} and {weights.max():.5f}; 1/196 = {1 / 196:.5f}")
assert np.abs(196 * weights - 1).max() < 0.05

whole = 12 * nn.multiply_adds(block, (1, 197, 768))
one_token = whole - 12 * nn.multiply_adds(block, (1, 196, 768))
pooling = nn.multiply_adds(pool, (1, 196, 768))
print(f"multiply-adds: class token in 12 blocks {one_token / 1e6:.0f} million, attention pooling {pooling / 1e6:.0f}")
print(f"of the blocks of ViT-B/16: {one_token / whole:.1%} and {pooling / whole:.1%}")
assert 2 * one_token < pooling < 0.02 * whole

# %% [markdown]
# Its weights start within 5% of 1/196, so it starts as the mean over the patches (of a linear map of them), and can
# learn something better. It costs more than twice as much as a class token in all 12 blocks, because it computes keys
# and values of all patches once more. Both are small against the blocks.
#
# ## QuickGELU: a difference that hides
#
# OpenAI's CLIP has another nonlinearity in its MLPs (Hendrycks and Gimpel 2016):
#
# $$
# \operatorname{QuickGELU}(x) = x\,\sigma(1.702\,x) , \qquad \sigma(x) = 1 / (1 + e^{-x}) .
# $$
#
# It is close to GELU. Neither has parameters, so a file of weights looks the same with both. The next cell gives the
# trained digits model the wrong one.
#
# **Predict first.** How far do the functions differ, how far the logits, and how far the accuracy?

# %%
code(F.quick_gelu.plain, "return")
grid = np.linspace(-6, 6, 12001)
gap = np.abs(F.quick_gelu(grid)[0] - F.gelu(grid)[0])
print(f"GELU and QuickGELU differ by up to {gap.max():.4f}, at x = {grid[gap.argmax()]:.2f}")
wrong = fresh(gelu="quick")
wrong.load_state_dict(trained.state_dict())
right_logits, wrong_logits = trained.predict(test_images), wrong.predict(test_images)
error = np.abs(wrong_logits - right_logits).max() / np.abs(right_logits).max()
print(f"logits differ by up to {error:.1%} of the largest, accuracy {accuracy(trained):.1%} and {accuracy(wrong):.1%}")
assert 0.0202 < gap.max() < 0.0204 and 0.005 < error < 0.1
assert abs(accuracy(trained) - accuracy(wrong)) < 0.02

# %% [markdown]
# The logits are off by a few percent, and the accuracy does not show it. So `from_pretrained` does not guess: where a
# file does not say it, an error requests `gelu=` ([families](../families.md#files)).
#
# ## SwiGLU: an MLP that multiplies
#
# The MLPs of AIMv2 and of the largest DINOs are *gated* (Shazeer 2020). One linear map computes a gate and a second one
# a value, and their product goes on:
#
# $$
# y = W_2 \left(\operatorname{silu}(W_g x) \odot W_x x\right) , \qquad \operatorname{silu}(x) = x\,\sigma(x) .
# $$
#
# A usual MLP applies a function to each number of a linear map, and adds. It has to imitate a product of two inputs by
# many such functions. The next cell tries this: a GELU layer with random first weights and the best possible second
# ones, from least squares. Inputs lie between -2 and 2.
#
# **Predict first.** How many hidden channels does the GELU layer need to compute $x_1 x_2$ to 1%? How many does a
# SwiGLU need?

# %%
code(F.swiglu.plain, ("opened,", "return opened"))
inputs = rng.uniform(-2, 2, (4000, 2))
product = inputs[:, 0] * inputs[:, 1]
errors = {}
for count in (2, 8, 32, 64, 128):
    hidden, _ = F.linear_gelu(inputs, 2 * rng.standard_normal((count, 2)), rng.standard_normal(count))  # (4000, count)
    features = np.c_[hidden, np.ones(4000)]
    best, *_ = np.linalg.lstsq(features, product, rcond=None)
    errors[count] = size(features @ best - product) / size(product)
    print(f"GELU with {count:3d} hidden channels: error {errors[count]:.2%}")
assert errors[32] > 0.01 > errors[128]

gated = nn.SwiGLU(2, 2, dtype="float64", seed=0)
gated.fc1_g.weight.data = np.array([[1.0, 0.0], [-1.0, 0.0]])  # gates x1 and -x1
gated.fc1_x.weight.data = np.array([[0.0, 1.0], [0.0, -1.0]])  # values x2 and -x2
gated.fc2.weight.data = np.array([[1.0, 1.0], [0.0, 0.0]])
exact = np.abs(gated(inputs)[0][:, 0] - product).max()
print(f"SwiGLU with 2 hidden channels: error {exact:.0e}")
assert exact < 1e-14

# %% [markdown]
# Two channels are enough, and the product is exact, because $\sigma(x) + \sigma(-x) = 1$:
#
# $$
# \operatorname{silu}(x_1)\,x_2 + \operatorname{silu}(-x_1)\,(-x_2) = x_1 x_2\,(\sigma(x_1) + \sigma(-x_1)) = x_1 x_2 .
# $$
#
# ## All together
#
# The last measurement trains five more models for as many steps as the plain one. Four of them have one of the changes,
# and the last has all four. The hidden layer of a SwiGLU has 2/3 as many channels as that of the plain MLP, because it
# has three matrices instead of two.
#
# **Predict first.** Which change helps most in this short training? What does the model with all four reach?

# %%
variants = {
    "RMSNorm": {"norm_layer": "rmsnorm"},
    "SwiGLU": {"mlp_layer": "swiglu", "mlp_ratio": 4 / 3},
    "norms of q and k": {"qk_norm": True},
    "rotary positions": {"pos_embed": "rotary"},
}
variants["all four"] = {option: value for options in variants.values() for option, value in options.items()}
models = {"plain": trained, "plain, other seed": train(fresh(seed=1), seed=1)}
models |= {name: train(fresh(**options)) for name, options in variants.items() if not SHORT or name == "all four"}
scores = {name: accuracy(model) for name, model in models.items()}
for name, score in scores.items():
    print(f"{name:18s} {optim.parameter_count(models[name].parameters()):,} parameters, accuracy {score:.1%}")
assert optim.parameter_count(models["all four"].parameters()) < optim.parameter_count(trained.parameters())
if not SHORT:
    assert scores["all four"] > scores["rotary positions"] > scores["plain"] + 0.1
    assert scores["norms of q and k"] > scores["plain"] + 0.05
    assert abs(scores["RMSNorm"] - scores["plain"]) < 0.08

# %% [markdown]
# The model with all four reaches 91% with fewer parameters, and the plain one 61% and 65%. Rotary positions alone
# bring 82%: they know about offsets from the first step on, while a table must learn them from 2,000 images. Norms of
# queries and keys bring 77%. RMSNorm and SwiGLU alone make little difference.
#
# This is a short training on few images. It says which parts make learning *fast*. In a long training on many images
# the differences become far smaller: the kinds of positions of [lesson 5](05_order.py) end up close together.
#
# ## What you have seen
#
# - MAE changes nothing in the network; a ViT accepts any subset of its tokens.
# - LayerScale and a norm behind the branch make a new block the identity; a norm before the blocks, RMSNorm and norms
#   of queries and keys control sizes.
# - A bias of k has no effect, RMSNorm can compute all that LayerNorm computes, and two channels of a SwiGLU multiply.
# - Rotary positions make scores depend on offsets alone. The class token is then in the center of the image.
# - Registers take the weight that softmax has to put somewhere. They get gradients though no head reads them.
# - A wrong kind of GELU changes the logits and not the accuracy, so it has to be stated.
#
# ## Try it
#
# **Exercise 1.** Multiply the input of an MLP and of a SwiGLU by 100, both without biases. How much do their outputs
# grow? Why does a block norm the input of its MLP?
#
# <details>
# <summary>Solution 1</summary>
#
# The MLP's output grows by a factor of about 100, and the SwiGLU's by about 10,000: gate and value both grow. In half
# precision, whose largest number is 65,504, the second soon overflows. Behind a norm the input has always the size of
# the gains.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
x = 10 * rng.standard_normal((50, 32))
growth = {}
for kind in (nn.Mlp, nn.SwiGLU):
    layer = kind(32, 64, bias=False, dtype="float64", seed=0)
    for param in layer.parameters().values():
        param.data = rng.standard_normal(param.shape) / param.shape[1] ** 0.5
    growth[kind.__name__] = size(layer(100 * x)[0]) / size(layer(x)[0])
print({name: f"{factor:,.0f}" for name, factor in growth.items()})
assert 95 < growth["Mlp"] < 105 and 9_000 < growth["SwiGLU"] < 11_000

# %% [markdown]
# **Exercise 2.** A rotary model for a grid of 7 x 7 reads an image of twice the size, with a grid of 14 x 14. Which
# offset in the large grid has the same rotation as one step to the right in the small one?
#
# <details>
# <summary>Solution 2</summary>
#
# Two steps to the right. Coordinates run from -1 to 1 in both grids, so a step is half as long in the large one. The
# model sees the same image with finer patches, and no positions have to be resampled.
#
# </details>

# %% tags=["hide-cell"]
# Solution 2
q, k = rng.standard_normal((2, 16))
by_grid = {}
for side in (7, 14):
    rotate = nn.RotaryPositions((side, side), 16, prefix_tokens=0)
    rotated_q, rotated_k = (rotate(np.tile(each, (1, 1, side * side, 1)))[0][0, 0] for each in (q, k))
    by_grid[side] = rotated_q[0] @ rotated_k[:4].T  # the first patch with itself and those to the right of it
print("small grid, offset 1:", f"{by_grid[7][1]:.6f}", " large grid, offsets 1, 2, 3:", by_grid[14][1:].round(6))
assert abs(by_grid[7][1] - by_grid[14][2]) < 1e-12 < abs(by_grid[7][1] - by_grid[14][1])

# %% [markdown]
# **Exercise 3.** The giant DINOv2 has `mlp_ratio=5.33334` where other sizes have 4. Its packed SwiGLU counts gate and
# value together. Why this number?
#
# <details>
# <summary>Solution 3</summary>
#
# So that the MLP has as many weights as a usual one. With $D = 1536$ channels, gate and value together have
# $5.33 D = 8192$ channels, and the last map reads half of them: $1536 \cdot 8192 + 4096 \cdot 1536$ = 18,874,368
# weights. A usual MLP with ratio 4 has $2 \cdot 1536 \cdot 6144$, which is the same.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
giant = published["vit_giant_patch14_dinov2"]
width, ratio = giant["embed_dim"], giant["mlp_ratio"]
packed = nn.PackedSwiGLU(width, int(width * ratio), bias=False, seed=0)
usual = nn.Mlp(width, 4 * width, bias=False, seed=0)
counts = {layer: optim.parameter_count(layer.parameters()) for layer in (packed, usual)}
print(int(width * ratio), [f"{count:,}" for count in counts.values()])
assert set(counts.values()) == {18_874_368}
