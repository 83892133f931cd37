# %% [markdown]
# # 6. ViT in numbers
#
# This page passes one image through ViT-B/16, from pixels to 1,000 classes, and prints every shape. You will be able to
# compute each step by hand, and to account for each of its 86,567,656 parameters.
#
# **Run time.** The code of this page takes about 6 s on one core of a server processor.
#
# **Words used here.** A *token* is a vector that stands for one piece of the input. A *linear map* multiplies by a
# matrix of *weights* and adds a *bias*. *Attention* mixes information between tokens ([lesson 3](03_self_attention.py),
# [lesson 4](04_many_heads.py)). *Position embeddings* tell each token its position ([lesson 5](05_order.py)). The
# *parameters* of a model are all the numbers that it learns.

# %%
import time

import numpy as np

import minivit
from minivit import functional as F, nn
from minivit.draw import figures

# %% [markdown]
# The weights are random here: shapes, counts and the arithmetic do not depend on what a model has learned. In the name,
# "B" stands for the size *base*, and 16 is the side of a patch in pixels (Dosovitskiy et al. 2021, table 1).

# %%
model = minivit.create_model("vit_base_patch16_224")
params = model.parameters()
print(f"{sum(param.size for param in params.values()):,} numbers in {len(params)} arrays")

# %% [markdown]
# ## The image
#
# An image has 3 channels (red, green, blue) of 224 x 224 pixels. The next cell draws one, a sun over hills. The first
# axis of its array is the batch: the number of images that are computed together. Here it is one.

# %%
y, x = np.mgrid[0:224, 0:224] / 224  # (224, 224) each: 0 at the top and at the left
painting = np.stack((0.3 + 0.5 * y, 0.55 + 0.3 * y, 0.95 - 0.1 * y))  # (3, 224, 224), values from 0 to 1
sun = (y - 0.3) ** 2 + (x - 0.68) ** 2 < 0.012
hills = y > 0.72 - 0.1 * np.sin(7 * x)
painting[:, sun] = [[1.0], [0.85], [0.3]]
painting[:, hills] = np.array([[0.25], [0.5], [0.2]]) * (1.3 - y[hills])
image = ((painting - 0.5) / 0.5).astype(np.float32)[None]  # (1, 3, 224, 224), from -1 to 1 as this model expects
print("image", image.shape, image.dtype)

# %% [markdown]
# ## A kernel of 16 x 16, a grid of 14 x 14
#
# The image is cut into patches of 16 x 16 pixels. There are 224 / 16 = 14 of them on each side, so 14 x 14 = 196.
#
# Two numbers are easily confused here. Short notes on ViT often write "14*14" at this step. That is the **grid**, the
# number of patches. The **kernel**, which reads one patch, is 16 x 16. So is the **stride**, the step from one patch to
# the next. A kernel of 14 belongs to another model, ViT-H/14, whose grid is 16 x 16.

# %%
row, column = 4, 8  # one patch at the edge of the sun
top, left = 16 * row, 16 * column

figure, axes = figures.new(1, 2, width=8, height=4.0)
shown = painting.transpose(1, 2, 0)  # (224, 224, 3): matplotlib wants the channels last
axes[0].imshow(shown)
axes[0].set_xticks(np.arange(0, 225, 16) - 0.5, np.arange(0, 225, 16), fontsize=7, rotation=90)
axes[0].set_yticks(np.arange(0, 225, 16) - 0.5, np.arange(0, 225, 16), fontsize=7)
axes[0].grid(color="white", linewidth=0.7, linestyle="-")
sides = ([left, left + 16, left + 16, left, left], [top, top, top + 16, top + 16, top])
axes[0].plot(*sides, color="black", linewidth=2.5, linestyle="-", marker="")
axes[0].set_title("grid: 14 x 14 patches", loc="left")
axes[1].imshow(shown[top : top + 16, left : left + 16])
axes[1].set_xticks(np.arange(17) - 0.5, np.arange(17), fontsize=7)
axes[1].set_yticks(np.arange(17) - 0.5, np.arange(17), fontsize=7)
axes[1].grid(color="white", linewidth=0.7, linestyle="-")
axes[1].set_title(f"kernel: 16 x 16 pixels (row {row}, column {column})", loc="left")
for each in axes:
    each.set(xlabel="pixels", ylabel="pixels")
figures.show(
    figure,
    "06_patches",
    alt="Left: a painted sun over hills under a grid of 14 by 14 squares, one of them framed. Right: the framed square "
    "alone, 16 by 16 pixels at the edge of the sun.",
)

# %% [markdown]
# ## Patch embedding, as a convolution
#
# Each patch becomes a token of D = 768 numbers. One of them, number $o$ of the patch in row $u$ and column $w$, is a
# weighted sum of all 16 x 16 x 3 = 768 pixel values of the patch, plus a bias:
#
# $$
# y_{o,u,w} = b_o + \sum_{c=1}^{3} \sum_{i=0}^{15} \sum_{j=0}^{15} W_{o,c,i,j}\; x_{c,\,16u+i,\,16w+j}
# $$
#
# This is a *convolution*: the same weights, the kernel, are applied at each step over the image. (That a patch has 768
# pixel values and a token 768 channels is a coincidence of this model.) Here it is in loops, for any kernel and stride,
# on a small image:


# %%
def convolution(x, weight, bias, stride):
    """x (C, H, W), weight (D, C, P, P) -> (D, gh, gw), in loops."""
    outputs, channels, patch, _ = weight.shape
    gh, gw = (x.shape[1] - patch) // stride + 1, (x.shape[2] - patch) // stride + 1
    y = np.zeros((outputs, gh, gw))
    for o in range(outputs):
        for u in range(gh):
            for w in range(gw):
                y[o, u, w] = bias[o]
                for c in range(channels):
                    for i in range(patch):
                        for j in range(patch):
                            y[o, u, w] += weight[o, c, i, j] * x[c, stride * u + i, stride * w + j]
    return y


rng = np.random.default_rng(0)
small = rng.standard_normal((2, 8, 12))  # C = 2 channels of 8 x 12
kernel, shift = rng.standard_normal((5, 2, 4, 4)), rng.standard_normal(5)  # D = 5, P = 4
by_loops = convolution(small, kernel, shift, stride=4)  # (5, 2, 3)
tokens, _ = F.patch_embed(small[None], kernel, shift)  # (1, 6, 5): the grid in reading order, channels last

error = np.abs(by_loops.reshape(5, 6).T - tokens[0]).max()
assert error < 1e-13
print(f"grid {by_loops.shape[1:]}, tokens {tokens.shape}; the largest difference is {error:.0e}")

# %% [markdown]
# ## Patch embedding, as a linear map
#
# Kernel and stride are equal, so every pixel is read exactly once. The convolution then amounts to this: cut the image
# into patches, write each patch as a row of 768 numbers, and multiply all rows by one matrix. The backward pass is that
# of a linear map ([derivation](../derivations/patch_embed.md)).

# %%
weight, bias = params["patch_embed.proj.weight"].data, params["patch_embed.proj.bias"].data
rows, _ = F.patchify(image, 16)  # (1, 196, 768)
by_matrix = rows @ weight.reshape(768, 3 * 16 * 16).T + bias  # (1, 196, 768)
print("kernel ", weight.shape, "-> as a matrix", weight.reshape(768, -1).shape)
print("patches", rows.shape, "-> tokens", by_matrix.shape)

number = 14 * row + column  # of our patch, in reading order
window = image[0, :, top : top + 16, left : left + 16]  # (3, 16, 16)
one = (weight[7] * window).sum() + bias[7]  # channel 7 of its token, straight from the formula
print(f"patch {number}, channel 7: {one:.5f} by the formula, {by_matrix[0, number, 7]:.5f} by the matrix")
assert abs(one - by_matrix[0, number, 7]) < 1e-4

patches, _ = model.embed.patch_embed(image)  # the model's own layer
assert patches.shape == (1, 196, 768) and np.abs(patches - by_matrix).max() < 1e-4

# %% [markdown]
# ### With and without a norm
#
# Some models normalize each token right after this map, with a LayerNorm ([derivation](../derivations/layer_norm.md)).
# A LayerNorm subtracts the token's mean, divides by its standard deviation, and applies a learned gain and offset. Swin
# does so, ViT does not. `nn.PatchEmbed` supports both.

# %%
plain = nn.PatchEmbed((16, 16), 3, 768, seed=0)
normed = nn.PatchEmbed((16, 16), 3, 768, norm_eps=1e-6, seed=0)
for name, layer in (("without norm", plain), ("with norm", normed)):
    token = layer(image)[0][0, number]  # (768,)
    count = sum(param.size for param in layer.parameters().values())
    print(f"{name:12s} {count:,} parameters; our token: mean {token.mean():+.4f}, standard deviation {token.std():.4f}")

without, within = plain(image)[0], normed(image)[0]
assert np.abs(within.mean(axis=2)).max() < 1e-5 and np.abs(within.std(axis=2) - 1).max() < 1e-2
assert np.allclose(F.layer_norm(without, np.ones(768, "f4"), np.zeros(768, "f4"), 1e-6)[0], within, atol=1e-5)

# %% [markdown]
# ## The class token and the positions
#
# One more token is put in front: the *class token*, 768 learned numbers that are the same for every image. It belongs
# to no patch. It passes through all blocks with the other tokens and attends to them. In the end the classifier reads
# only this token. So 196 tokens become 197.
#
# Then the positions are added: a learned table with 197 rows, one for each token. Adding changes no shape.

# %%
cls_token, pos_embed = params["cls_token"].data, params["pos_embed"].data  # (1, 1, 768), (1, 197, 768)
joined = np.concatenate((cls_token, patches), axis=1)
placed = joined + pos_embed
for name, array in (("class token", cls_token), ("patches", patches), ("joined", joined), ("positions", pos_embed)):
    print(f"{name:12s} {array.shape}")
print(f"{'placed':12s} {placed.shape}")

stream, _ = model.embed(image)  # all of this in one call
assert stream.shape == (1, 197, 768) and np.array_equal(stream, placed)

# %% [markdown]
# ## A block
#
# Twelve blocks follow. Each adds two things to the stream of tokens:
#
# $$
# m = x + \mathrm{attention}(\mathrm{norm}_1(x)), \qquad y = m + \mathrm{mlp}(\mathrm{norm}_2(m))
# $$
#
# The sums are *residual connections*: the input is kept, and the layers only add to it. First comes the attention, with
# H = 12 heads of d = 768 / 12 = 64 channels:

# %%
block = model.blocks[0]
normed1, _ = block.norm1(stream)  # (1, 197, 768)
qkv, _ = block.attn.qkv(normed1)  # (1, 197, 2304): 3 x 768, queries, keys and values side by side
(q, k, v), _ = F.split_qkv(qkv, 12)  # each (1, 12, 197, 64)
scores = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(64))  # (1, 12, 197, 197): each query with each key
weights, _ = F.softmax(scores)  # (1, 12, 197, 197): rows sum to 1
mixed = weights @ v  # (1, 12, 197, 64): sums of values
side_by_side, _ = F.merge_heads(mixed)  # (1, 197, 768)
attended, _ = block.attn.proj(side_by_side)  # (1, 197, 768)
middle = stream + attended  # the first residual connection

for name, array in (
    ("norm 1", normed1),
    ("q, k, v", qkv),
    ("q in heads", q),
    ("scores", scores),
    ("weights", weights),
    ("mixed", mixed),
    ("joined", side_by_side),
    ("projected", attended),
    ("x + ...", middle),
):
    print(f"{name:12s} {array.shape}")
assert np.abs(weights.sum(axis=-1) - 1).max() < 1e-5

# %% [markdown]
# Then comes the *MLP* (multilayer perceptron). It maps each token to 4 x 768 = 3,072 numbers, applies the nonlinearity
# [GELU](../derivations/gelu.md) to each number, and maps the result back to 768. Tokens do not interact here.

# %%
normed2, _ = block.norm2(middle)  # (1, 197, 768)
fc1 = block.mlp.fc1
wide, _ = F.linear(normed2, fc1.weight.data, fc1.bias.data)  # (1, 197, 3072)
activated, _ = F.gelu(wide)  # (1, 197, 3072)
narrow, _ = block.mlp.fc2(activated)  # (1, 197, 768)
by_hand = middle + narrow  # the second residual connection
for name, array in (("norm 2", normed2), ("fc1", wide), ("gelu", activated), ("fc2", narrow), ("m + ...", by_hand)):
    print(f"{name:12s} {array.shape}")

by_model, _ = block(stream)
error = np.abs(by_hand - by_model).max() / np.abs(by_model).max()
assert error < 1e-5
print(f"the block by hand and the model's block differ by {error:.0e} of the largest number (float32 rounds at 6e-8)")

# %% [markdown]
# ## The whole model
#
# A model is a chain of stages. Here they run one after the other, and each output shape is printed:

# %%
out = image
for name, stage in model.leaves():
    out, _ = stage(out)
    print(f"{name:10s} {type(stage).__name__:10s} {out.shape}")
logits = out  # (1, 1000)

# %% [markdown]
# The last block returns one token and not 197. The head reads only the class token, so the outputs of the other tokens
# in the last block are not used. Only their keys and values are needed, and minivit does not compute the rest. This
# changes no number that is used:

# %%
before_last = stream
for each in model.blocks[:-1]:
    before_last, _ = each(before_last)
last = model.blocks[-1]
short, _ = last(before_last)  # (1, 1, 768)
last.attn.queries = None  # queries of all tokens
full, _ = last(before_last)  # (1, 197, 768)
last.attn.queries = 1
difference = np.abs(full[:, :1] - short).max() / np.abs(short).max()
print(f"short {short.shape}, full {full.shape}; the class tokens differ by {difference:.0e}")
assert difference < 1e-5

# %% [markdown]
# Three small steps follow: a last norm, the selection of the class token, and a linear map to K = 1,000 *logits*, one
# for each class of ImageNet. A softmax turns logits into probabilities. With random weights all probabilities are
# small.

# %%
class_token = model.norm(short)[0][:, 0]  # (1, 768)
by_hand = class_token @ params["head.weight"].data.T + params["head.bias"].data  # (1, 1000)
assert np.abs(by_hand - logits).max() < 1e-4

start = time.perf_counter()
predicted = model.predict(image)  # the same, without keeping activations
seconds = time.perf_counter() - start
probabilities, _ = F.softmax(predicted)
print(f"predict: {predicted.shape} in {seconds:.2f} s; the largest probability is {probabilities.max():.4f}")
assert np.abs(predicted - logits).max() < 1e-4 and abs(probabilities.sum() - 1) < 1e-4 and probabilities.max() < 0.1

# %% [markdown]
# ## 86,567,656 parameters, term by term
#
# Nearly all parameters are in the matrices of linear maps. The next cell counts them, with D = 768 channels and M =
# 3,072 numbers inside the MLP.
#
# **Predict first.** Which part has most of the parameters: the patch embedding, the attentions, the MLPs or the head?
# And which share?

# %%
D, M, N, K, P, C, L = 768, 3072, 196, 1000, 16, 3, 12  # C colors, L blocks


def parameter_terms(D, M, N):
    norm = D + D  # gain and offset
    attention = (3 * D * D + 3 * D) + (D * D + D)  # to q, k and v; out of the heads
    mlp = (D * M + M) + (M * D + D)  # fc1, fc2
    return {
        "patch embedding": P * P * C * D + D,
        "class token": D,
        "positions": (N + 1) * D,
        "blocks: norms": L * 2 * norm,
        "blocks: attention": L * attention,
        "blocks: MLP": L * mlp,
        "last norm": norm,
        "head": D * K + K,
    }


terms = parameter_terms(D, M, N)
for name, count in terms.items():
    print(f"{name:18s} {count:>11,}  {count / sum(terms.values()):6.2%}")
print(f"{'together':18s} {sum(terms.values()):>11,}")
assert sum(terms.values()) == sum(param.size for param in params.values()) == 86_567_656
one_block = sum(terms[f"blocks: {part}"] for part in ("norms", "attention", "MLP")) // L
assert sum(param.size for param in block.parameters().values()) == one_block
assert 0.65 < terms["blocks: MLP"] / sum(terms.values()) < 0.66

# %% [markdown]
# The MLPs have nearly two thirds of all parameters, and the attentions nearly one third.
#
# ## 17.6 billion multiply-adds
#
# A product of matrices (n, a) and (a, b) takes n a b multiplications, each with an addition. One such pair is a *MAC*
# (multiply and accumulate) or *multiply-add*. Most of a network's time is spent on them. The next cell counts them with
# T = 197 tokens.
#
# **Predict first.** Only the scores and the weighted sums grow with the square of the number of tokens. Which share of
# all multiply-adds is theirs: 4%, 20% or 50%?


# %%
def mac_terms(D, M, N):
    T = N + 1
    return {
        "patch embedding": N * P * P * C * D,
        "blocks: q, k, v and out": L * T * 4 * D * D,
        "blocks: scores, weights v": L * 2 * T * T * D,  # the only term that grows with the square of the tokens
        "blocks: MLP": L * T * 2 * D * M,
        "head": D * K,
    }


macs = mac_terms(D, M, N)
total = sum(macs.values())
for name, count in macs.items():
    print(f"{name:26s} {count / 1e9:6.2f} G  {count / total:6.2%}")
print(f"{'together':26s} {total / 1e9:6.2f} G")
assert total == nn.multiply_adds(model, image.shape) and round(total / 1e9, 2) == 17.56

done = sum(stage.macs for stage in minivit.summary(model, quiet=True).rows)
print(f"minivit itself does {done / 1e9:.2f} G, because it skips the unused outputs of the last block")
assert 16.1e9 < done < 16.5e9

# %% [markdown]
# The scores and the weighted sums take 4%. Papers and tools count differently. Some leave out these two, because they
# have no weights of their own. Then the total is 16.85 G. And "GFLOPs" often means MACs.

# %%
print(f"without scores and weighted sums: {(total - macs['blocks: scores, weights v']) / 1e9:.2f} G")

figure, axes = figures.new(1, 2, width=8, height=2.9, sharey=True)
groups = ["head", "MLP", "attention", "embedding, positions"]
counts = [
    terms["head"],
    terms["blocks: MLP"],
    terms["blocks: attention"],
    terms["patch embedding"] + terms["class token"] + terms["positions"],
]
work = [
    macs["head"],
    macs["blocks: MLP"],
    macs["blocks: q, k, v and out"] + macs["blocks: scores, weights v"],
    macs["patch embedding"],
]
for each, values, title in ((axes[0], counts, "parameters, millions"), (axes[1], work, "MACs, billions")):
    scaled = np.array(values) / (1e6 if "millions" in title else 1e9)
    bars = each.barh(groups, scaled, color=figures.COLORS[0])
    each.bar_label(bars, [f"{value:.2f}" for value in scaled], padding=3, fontsize=9)
    each.set_xlim(0, max(scaled) * 1.2)
    each.set_xlabel(title)
figures.show(
    figure,
    "06_where",
    alt="Bars: the MLPs hold 57 million parameters and 11 billion multiply-adds, attention 28 million and 6 billion, "
    "embedding and head less than a million each and hardly any multiply-adds.",
)

# %% [markdown]
# ## Two heads
#
# The head of this model is one linear map. For pretraining the paper used a larger one: a linear map, a tanh, and then
# the classifier. The argument `representation_size` adds it. The head for a new task (fine-tuning) is again a single
# linear map. A model with a single block shows the difference:

# %%
short_model = minivit.ViT(depth=1, num_classes=1000)
pretrain = minivit.ViT(depth=1, num_classes=1000, representation_size=768)
more = {name: param.shape for name, param in pretrain.parameters().items() if name not in short_model.parameters()}
print("what the larger head adds:", more)

features = pretrain.norm(pretrain.blocks[0](pretrain.embed(image)[0])[0])[0][:, 0]  # (1, 768), the class token
own = pretrain.parameters()
hidden = np.tanh(features @ own["pre_logits.fc.weight"].data.T + own["pre_logits.fc.bias"].data)  # (1, 768)
by_hand = hidden @ own["head.weight"].data.T + own["head.bias"].data  # (1, 1000)
assert np.abs(by_hand - pretrain.predict(image)).max() < 1e-5

extra = sum(param.size for param in own.values()) - sum(param.size for param in short_model.parameters().values())
print(f"{extra:,} parameters more: 768 x 768 weights and 768 biases; the hidden numbers lie within -1 and 1")
assert extra == 768 * 768 + 768 and np.abs(hidden).max() < 1

# %% [markdown]
# ## Patches of a feature map
#
# The paper has another way to make tokens, the *hybrid*. A small convolutional network processes the image first, and
# the patches are cut from its output, the feature map. The rest of the model is unchanged. In the smallest published
# hybrid a convolution and a max-pooling each halve the sides, and patches of 8 x 8 are cut from a map with 64 channels:

# %%
hybrid = minivit.create_model("vit_tiny_r_s16_p8_224")
x = image
for name, layer in hybrid.embed.patch_embed.leaves():
    x, _ = layer(x)
    print(f"{name:13s} {type(layer).__name__:16s} {x.shape}")
assert x.shape == (1, 49, 192)  # a grid of 7 x 7: each token stands for 32 x 32 pixels
assert hybrid.embed(image)[0].shape == (1, 50, 192)

# %% [markdown]
# Larger hybrids add the blocks of a ResNet (see [the hybrid](../hybrid.md)).
#
# ## What you have seen
#
# - The kernel is 16 x 16 with a stride of 16; the grid is 14 x 14; 196 patches become 196 tokens of 768 numbers.
# - That convolution is the same as one linear map of the cut patches. A norm after it is optional: Swin has it, ViT
#   does not.
# - A class token in front makes 197 tokens. Positions are added and change no shape. Blocks change no shape either,
#   except minivit's last, which computes only the token that the head reads.
# - Nearly two thirds of all parameters and of all multiply-adds are in the MLPs. Attention's scores and weighted sums
#   are 4% of the multiply-adds, and the only part that grows with the square of the number of tokens.
# - The head is one linear map. In pretraining it is a linear map, a tanh and another linear map.
#
# ## Try it
#
# **Exercise 1.** Call `convolution` with `stride=2` and a kernel of 4. How large is the grid now, and how often is an
# inner pixel read? Why can `F.patch_embed` not do this?
#
# <details>
# <summary>Solution 1</summary>
#
# An image of 8 x 12 gives a grid of 3 x 5, because (8 - 4) / 2 + 1 = 3 and (12 - 4) / 2 + 1 = 5. An inner pixel is read
# four times: by two kernel positions in each direction. `F.patch_embed` cuts the image into patches that do not
# overlap, and reads each pixel once. For overlapping patches there is `F.conv2d`.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
overlapping = convolution(small, kernel, shift, stride=2)
general, _ = F.conv2d(small[None], kernel, shift, stride=2)  # (1, 5, 3, 5)
assert overlapping.shape == (5, 3, 5) and np.allclose(overlapping, general[0])

reads = np.zeros((8, 12), int)
for u in range(3):
    for w in range(5):
        reads[2 * u : 2 * u + 4, 2 * w : 2 * w + 4] += 1
print("how often each pixel is read:")
print(reads)
assert reads[0, 0] == 1 and (reads[2:-2, 2:-2] == 4).all()

# %% [markdown]
# **Exercise 2.** Count the parameters and the multiply-adds of `vit_small_patch16_224` (D = 384, M = 1,536) with the
# terms above. Check the result by `model.parameters()` and `nn.multiply_adds(model, (1, 3, 224, 224))`.
#
# <details>
# <summary>Solution 2</summary>
#
# It has 22,050,664 parameters and takes 4.60 G multiply-adds, about a quarter of those of ViT-B/16. Half the channels
# make a quarter of each matrix.
#
# </details>

# %% tags=["hide-cell"]
# Solution 2
small_vit = minivit.create_model("vit_small_patch16_224")
count, work_of_small = sum(parameter_terms(384, 1536, N).values()), sum(mac_terms(384, 1536, N).values())
print(f"{count:,} parameters, {work_of_small / 1e9:.2f} G multiply-adds")
assert count == sum(param.size for param in small_vit.parameters().values()) == 22_050_664
assert work_of_small == nn.multiply_adds(small_vit, (1, 3, 224, 224)) and round(work_of_small / 1e9, 2) == 4.60

# %% [markdown]
# **Exercise 3.** Take an image of 384 x 384 pixels. How many tokens are there? Which share of the multiply-adds is now
# spent on the scores and the weighted sums?
#
# <details>
# <summary>Solution 3</summary>
#
# The grid is 24 x 24, so there are 576 patches and 577 tokens. The scores and the weighted sums take 11% of 55.5 G
# multiply-adds, compared with 4% at 224 pixels.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
large = mac_terms(D, M, (384 // 16) ** 2)
share = large["blocks: scores, weights v"] / sum(large.values())
print(f"{(384 // 16) ** 2 + 1} tokens, {sum(large.values()) / 1e9:.1f} G multiply-adds, {share:.0%} for the scores")
assert round(share, 2) == 0.11 and round(sum(large.values()) / 1e9, 1) == 55.5

# %% [markdown]
# Next: [7. Pretraining](07_pretraining.py)
