# %% [markdown]
# # 9. Backpropagation through the whole network
#
# A network is trained by its gradient: how the loss changes with each of the parameters. This page follows the gradient
# of one image from the loss back to a single pixel, every step by hand. You will be able to read `y, back = layer(x)`
# anywhere in this library, and to check that a gradient is right.
#
# **Run time.** The code of this page takes about 4 s on one core of a server processor.
#
# **Words used here.** The *loss* is one number that says how wrong an answer is. Training makes it small. The
# *parameters* are the numbers that a network learns. The *gradient* of the loss with respect to an array has the shape
# of that array. It says for each number how much the loss grows if this number grows a little. We write `dname` for
# dLoss/dname. [Lesson 6](06_vit_in_numbers.py) introduces the network.

# %%
import os
import time

import numpy as np

import minivit
from minivit import data, explain, functional as F
from minivit.draw import figures, trace as trace_pictures
from minivit.nn.kept_memory import Kept
from minivit.protocol import compose, once

SHORT = os.environ.get("MINIVIT_LESSONS") == "short"

# %% [markdown]
# ## One number: the slope
#
# Take $y = x^2$. If $x$ grows by a little, $y$ grows by $2x$ times as much. Now suppose that a loss is computed from
# $y$. Let $dy$ say how the loss changes with $y$. Then the loss changes with $x$ as
#
# $$
# dx = dy \cdot 2x
# $$
#
# The forward pass gets $x$ and returns $y$. The backward pass gets $dy$ and returns $dx$, but it also needs the $x$ of
# the forward pass. So let the forward pass return two things: its result, and a function that keeps $x$.


# %%
def square(x):
    y = x * x

    def back(dy):
        return dy * 2 * x  # x is kept from the forward pass

    return y, back


y, back = square(3.0)
print("y =", y)
print("dx =", back(1.0), "for dy = 1")

# %% [markdown]
# A function that keeps variables of the scope where it was defined is a *closure*. Nothing else is needed: no record of
# operations, no state in the layer. Two calls have two independent closures:

# %%
y3, back3 = square(3.0)
y5, back5 = square(5.0)
assert (back3(1.0), back5(1.0)) == (6.0, 10.0)
print("dx at 3:", back3(1.0), "and at 5:", back5(1.0))

# %% [markdown]
# ## The chain rule: closures in reverse order
#
# Now take three functions, one after the other: $y = \exp(\sin(x^2))$. The chain rule says: multiply the slopes. With
# closures this means: call the backward functions, the last one first, and give each the result of the call before.


# %%
def sine(x):
    def back(dy):
        return dy * np.cos(x)

    return np.sin(x), back


def exponential(x):
    y = np.exp(x)

    def back(dy):
        return dy * y  # the slope of exp is exp itself, so this one keeps its result

    return y, back


x = 1.3
a, back_square = square(x)
b, back_sine = sine(a)
y, back_exponential = exponential(b)

dy = 1.0
db = back_exponential(dy)
da = back_sine(db)
dx = back_square(da)
print(f"forward:  x = {x} -> a = {a:.4f} -> b = {b:.4f} -> y = {y:.4f}")
print(f"backward: dy = {dy} -> db = {db:.4f} -> da = {da:.4f} -> dx = {dx:.4f}")

h = 1e-6
difference = (np.exp(np.sin((x + h) ** 2)) - np.exp(np.sin((x - h) ** 2))) / (2 * h)
print(f"from two values of y close to each other: {difference:.4f}")
assert abs(dx - difference) < 1e-8

# %% [markdown]
# `compose` in [minivit/protocol.py](../../minivit/protocol.py) does just this, for any number of steps. It collects the
# backward functions in a list and, in the backward pass, calls them from its end:

# %%
y, back = compose(x, square, sine, exponential)
assert back(1.0) == dx
print("compose gives the same dx:", f"{dx:.4f}")

# %% [markdown]
# ## Many numbers
#
# In a network $x$ and $y$ are arrays. A linear map $y = x W^\top$ has a slope for each pair of an input and an output:
# the element of $W$ for this pair. An input changes the loss through every output, so its gradient is a sum over the
# outputs, $dx = dy\, W$. The weights get a gradient as well, $dW = dy^\top x$ ([derivation](../derivations/linear.md)).

# %%
values, weight = np.array([[1.0, -2.0, 0.5]]), np.array([[2.0, 0.0, 1.0], [-1.0, 3.0, 0.0]])  # (1, 3), (2, 3)
y, vjp = F.linear(values, weight)  # (1, 2)
dy = np.array([[1.0, 10.0]])
dvalues, dweight, _ = vjp(dy)
print("y =", y, " dx =", dvalues, "= 1 * first row of W + 10 * second row")
assert np.array_equal(dvalues, 1 * weight[:1] + 10 * weight[1:])
assert np.array_equal(dweight, dy.T @ values)

# %% [markdown]
# A *layer* owns such parameters. Its `back` returns `dx`, and adds each parameter's gradient to its `.grad`. So every
# layer of the library is used like this:
#
# ```
# y, back = layer(x)    # forward: the result, and the backward function
# dx = back(dy)         # backward: from the gradient dy of the output to the gradient dx of the input
# ```
#
# ## One digit, one network
#
# The network is a small ViT with 4 x 4 patches of 7 x 7 pixels, 16 numbers for each token, and two blocks. Its weights
# are random. The rules of this page hold for any weights. We compute in float64, so that rounding is negligible.

# %%
mnist = data.load_mnist(os.environ.get("MINIVIT_MNIST"), download=False, quiet=True)
first = int(np.flatnonzero(mnist.train_labels == 4)[0])  # the first 4
image = data.normalize(mnist.train_images[first : first + 1]).astype(np.float64)  # (1, 1, 28, 28)
label = mnist.train_labels[first : first + 1]  # (1,)

model = minivit.ViT(28, 7, 1, 10, embed_dim=16, depth=2, num_heads=2, dtype="float64", seed=0)
params = model.parameters()
print(f"image {image.shape}, label {label}, {sum(param.size for param in params.values()):,} parameters")

# %% [markdown]
# First comes the forward pass, stage by stage. Each call returns a result and a backward function:

# %%
tokens, back_embed = model.embed(image)  # (1, 17, 16): the class token and 16 patches
after0, back_block0 = model.blocks[0](tokens)  # (1, 17, 16)
after1, back_block1 = model.blocks[1](after0)  # (1, 1, 16): of the last block the head reads the class token alone
normed, back_norm = model.norm(after1)  # (1, 1, 16)
pooled, back_pool = model.pool(normed)  # (1, 16)
logits, back_head = model.head(pooled)  # (1, 10)
loss, back_loss = F.softmax_cross_entropy(logits, label)
print(f"logits {np.round(logits[0], 3)}")
print(f"loss {loss:.4f}; with equal probabilities for all ten classes it is log 10 = {np.log(10):.4f}")

# %% [markdown]
# ## The backward pass, step by step
#
# **The loss.** Its `back` starts with dLoss/dLoss = 1. The result is simple: the probabilities, minus 1 at the right
# class ([derivation](../derivations/cross_entropy.md)). The gradient of the right logit is negative: the loss falls if
# this logit grows. The gradients of all other logits are positive.

# %%
dlogits = back_loss()  # (1, 10)
probabilities, _ = F.softmax(logits)
assert np.allclose(dlogits, probabilities - np.eye(10)[label])
print("dlogits", np.round(dlogits[0], 3))

# %% [markdown]
# **The head** is a linear map. As above, $dx = dy\,W$. Its weights got their gradient in the same call.

# %%
dpooled = back_head(dlogits)  # (1, 16)
assert np.allclose(dpooled, dlogits @ params["head.weight"].data)
assert np.allclose(params["head.weight"].grad, dlogits.T @ pooled)
print("dpooled", np.round(dpooled[0, :4], 4), "...")

# %% [markdown]
# **Pooling** selected the class token, so the gradient goes to the class token. The **last norm** divides its input by
# the standard deviation of the input.
#
# **Predict first.** The input of this norm has a small standard deviation, about 0.02. Is the gradient larger or
# smaller after the backward pass of the norm than before it?

# %%
dnormed = back_pool(dpooled)  # (1, 1, 16)
dafter1 = back_norm(dnormed)  # (1, 1, 16)
print(f"the norm's input has a standard deviation of {after1.std():.3f}")
print(f"|dnormed| = {np.linalg.norm(dnormed):.4f} -> |dafter1| = {np.linalg.norm(dafter1):.4f}")
assert np.linalg.norm(dafter1) > 10 * np.linalg.norm(dnormed) and round(after1.std(), 2) == 0.02

# %% [markdown]
# It is larger. Division by a small number makes a small change of the input a large change of the output.
#
# **The last block.** Up to here only the class token had a gradient. In the block it attended to the patches, so now
# they get gradients, too. We follow the patch in row 1 and column 2 of the grid, counted from 0. Its token has the
# number 1 + 4 + 2 = 7, because the class token is number 0.

# %%
dafter0 = back_block1(dafter1)  # (1, 17, 16)
dtokens = back_block0(dafter0)  # (1, 17, 16)
n = 1 + 4 * 1 + 2
steps = {"after the last block": dafter1, "before it": dafter0, "before the first": dtokens}
for name, gradient in steps.items():
    patch_norm = np.linalg.norm(gradient[0, n]) if gradient.shape[1] > 1 else 0.0
    print(f"{name:21s} |d class token| = {np.linalg.norm(gradient[0, 0]):.4f}   |d patch| = {patch_norm:.6f}")
assert np.linalg.norm(dafter0[0, n]) > 0

# %% [markdown]
# The patch's gradient is small compared with the class token's. It comes through attention, whose weights in a new
# network are nearly the same for all tokens. The class token's gradient hardly changes, because it also passes through
# the residual connections of both blocks, $y = x + f(x)$, whose gradient is $dx = dy + \ldots$
#
# **The embedding.** Before the blocks, token 7 was the sum of its embedded patch and its position vector. A sum passes
# its gradient to both terms, so both get exactly this gradient. Each pixel contributes to all 16 numbers of the token,
# with one weight of the kernel for each. So the pixel's gradient is a sum of 16 products:

# %%
dimage = back_embed(dtokens)  # (1, 1, 28, 28)
assert np.array_equal(params["pos_embed"].grad[0, n], dtokens[0, n])

i, j = 3, 2  # a pixel within the patch
row, column = 7 * 1 + i, 7 * 2 + j  # the same in the image
kernel = params["patch_embed.proj.weight"].data[:, 0, i, j]  # (16,): from this pixel to the token's numbers
dpixel = (dtokens[0, n] * kernel).sum()
print(f"pixel ({row}, {column}): dpixel = {dpixel:.10f}, in the gradient of the image {dimage[0, 0, row, column]:.10f}")
assert np.isclose(dpixel, dimage[0, 0, row, column], rtol=1e-12)

figure, axes = figures.new(1, 2, width=8, height=3.8)
largest = np.abs(dimage).max()
axes[0].imshow(image[0, 0], cmap="gray")
picture = axes[1].imshow(dimage[0, 0], cmap=figures.SIGNED, vmin=-largest, vmax=largest)
figure.colorbar(picture, ax=axes[1], label="dpixel", shrink=0.8)
for each, title in zip(axes, ("the image", "the gradient of the loss, pixel by pixel")):
    each.set_xticks(np.arange(0, 29, 7) - 0.5, np.arange(0, 29, 7))
    each.set_yticks(np.arange(0, 29, 7) - 0.5, np.arange(0, 29, 7))
    each.grid(color="tab:gray", linewidth=0.7, linestyle="-")
    each.plot(column, row, "s", color="none", markeredgecolor="tab:orange", markersize=9, markeredgewidth=2)
    each.set(xlabel="column", ylabel="row")
    each.set_title(title, loc="left")
figures.show(
    figure,
    "09_pixel",
    alt="Left: a handwritten 4 under a grid of 4 by 4 patches, our pixel framed. Right: the gradient of each pixel, "
    "the same one framed: one pattern in all patches, strong where the patch is empty, weak where there is ink.",
)

# %% [markdown]
# Each patch shows a similar pattern, because all patches share one kernel. The pattern is stronger where the patch is
# empty. The channels of such a token hardly vary, and the norm at the start of a block divides by their standard
# deviation. The smaller this is, the larger the gradient.

# %%
spread = tokens[0, 1:].std(axis=1)  # (16,), of each patch's token
sizes = np.linalg.norm(dtokens[0, 1:], axis=1)  # (16,), of its gradient
ink = mnist.train_images[first].reshape(4, 7, 4, 7).max(axis=(1, 3)).reshape(16) > 0
print(
    f"{(~ink).sum()} empty patches: standard deviation {spread[~ink].mean():.2f}, |gradient| {sizes[~ink].mean():.4f}"
)
print(f"{ink.sum()} with ink:       standard deviation {spread[ink].mean():.2f}, |gradient| {sizes[ink].mean():.4f}")
agreement = np.corrcoef(np.log(spread), np.log(sizes))[0, 1]
print(f"correlation of their logarithms: {agreement:.3f} (-1 would be exactly one divided by the other)")
assert agreement < -0.9

# %% [markdown]
# This is the whole path from the loss to a pixel. The model's own `back` does exactly this in one call:


# %%
def step():
    """Loss, gradient of the image, and of all parameters, by the model's own back."""
    for param in params.values():
        param.grad = None
    logits, back = model(image)
    loss, back_loss = F.softmax_cross_entropy(logits, label)
    dimage = back(back_loss())
    return loss, dimage, {name: param.grad.copy() for name, param in params.items()}


by_hand = {name: param.grad.copy() for name, param in params.items()}
own_loss, own_dimage, own = step()
assert own_loss == loss and np.array_equal(own_dimage, dimage)
assert all(np.array_equal(own[name], by_hand[name]) for name in own)
print(f"by hand and by the model: the same loss, image gradient and {len(own)} parameter gradients, bit for bit")

# %% [markdown]
# ## Inside a block
#
# A block is itself a small network, and its `back` calls the backward functions of its parts. A value that was used
# twice, by the residual connection and by the branch, gets the sum of two gradients:

# %%
block = model.blocks[1]
normed1, back_norm1 = block.norm1(after0)  # (1, 17, 16)
attended, back_attn = block.attn(normed1)  # (1, 1, 16)
middle = after0[:, :1] + attended  # used twice: below, and in the sum after it
normed2, back_norm2 = block.norm2(middle)
after_mlp, back_mlp = block.mlp(normed2)
assert np.allclose(middle + after_mlp, after1)

dmiddle = dafter1 + back_norm2(back_mlp(dafter1))  # by the residual connection, and through the MLP
through_attention = back_norm1(back_attn(dmiddle))  # (1, 17, 16)
dx = through_attention.copy()
dx[:, :1] += dmiddle  # by the residual connection
assert np.allclose(dx, dafter0, rtol=1e-12)
print(
    f"class token: |by the residual| = {np.linalg.norm(dmiddle):.4f}, |through attention| = "
    f"{np.linalg.norm(through_attention[0, 0]):.4f}"
)
print(f"our patch:   |by the residual| = 0, |through attention| = {np.linalg.norm(through_attention[0, n]):.6f}")

# %% [markdown]
# ## Every part, every gradient
#
# `explain.trace` runs such a step and records the inputs and outputs of each part, forward and backward ([how it
# works](../trace.md)). `|dy|` is the size of the gradient that a part's `back` receives, `|dx|` of the one that it
# returns. Sizes are Euclidean norms: the root of the sum of squares.

# %%
trace = explain.trace(model, image, label)
print(trace.table(depth=2))
assert np.isclose(trace["head"].norm_dy, np.linalg.norm(dlogits)) and np.array_equal(trace.dx, dimage)
assert np.isclose(trace["blocks.1"].norm_dx, np.linalg.norm(dafter0))

# %% [markdown]
# The next figure shows the same numbers. The upper chart has the gradient at each stage, and the lower chart the
# gradient of each parameter. None has vanished and none has exploded, thanks to the residual connections.

# %%
figure, _ = trace_pictures.draw_gradient_flow(trace)
figures.show(
    figure,
    "09_flow",
    alt="Two charts with logarithmic axes. Above: the gradient grows at the last norm and then keeps its size through "
    "both blocks down to the embedding. Below: the gradients of single parameters, within about three powers of ten.",
)
flow = [trace[name].norm_dy for name in ("embed", "blocks.0", "blocks.1")]
assert max(flow) / min(flow) < 10
assert all(np.isfinite(gradient).all() and gradient.any() for gradient in trace.gradients.values())

# %% [markdown]
# ## What is kept, and when it is released
#
# Each `back` keeps the arrays that it needs. The results of the layers, the *activations*, are held only by these
# closures between the two passes. In the backward pass each closure is dropped once it has run. The next cell runs 32
# images, stage by stage, and counts the memory that is held by the backward functions.
#
# **Predict first.** When is most memory held: during the forward pass, between the passes, or during the backward pass?
# How much is left at the end?

# %%
batch = data.normalize(mnist.train_images[:32]).astype(np.float64)  # (32, 1, 28, 28)
labels = mnist.train_labels[:32]
own_arrays = [param.data for param in params.values()]  # parameters are there anyway, and not counted

x, backs, names, kept = batch, [], ["start"], [0]
for name, stage in [*model.leaves(), ("loss", lambda logits: F.softmax_cross_entropy(logits, labels))]:
    x, back = stage(x)
    backs.append(back)
    names.append(name)
    kept.append(Kept(own_arrays).add(backs))
gradient = 1.0
while backs:
    gradient = backs.pop()(gradient)
    names.append("back of " + names[len(backs) + 1])
    kept.append(Kept(own_arrays).add(backs))

half = len(kept) // 2
assert (
    kept[-1] == 0 and kept[: half + 1] == sorted(kept[: half + 1]) and kept[half:] == sorted(kept[half:], reverse=True)
)
print(f"the most is held between the passes: {max(kept) / 1024:,.0f} KiB for 32 images; at the end {kept[-1]}")

figure, axes = figures.new(width=8, height=3.6)
axes.bar(range(len(kept)), np.array(kept) / 1024, color=[figures.COLORS[0]] * (half + 1) + [figures.COLORS[1]] * half)
axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
axes.set(ylabel="held by backward functions (KiB)")
axes.set_title("Memory rises in the forward pass and falls in the backward pass", loc="left")
figures.show(
    figure,
    "09_memory",
    alt="Bars that rise in steps from stage to stage of the forward pass, most at the blocks, and fall in the same "
    "steps of the backward pass, to 0.",
)

# %% [markdown]
# Most memory is held between the passes, and nothing is left at the end. Released arrays cannot be used again. So a
# `back` runs once, and a second call raises an error instead of returning a wrong gradient:

# %%
y, back = model(image)
dlogits = F.softmax_cross_entropy(y, label)[1]()
back(dlogits)
try:
    back(dlogits)
    raise AssertionError("a second run must be refused")
except RuntimeError as error:
    print(error)

# %% [markdown]
# In your own code the decorator `once` makes any backward function behave like this. When the function is called,
# `once` releases what it kept:

# %%
y, back = 9.0, once(lambda dy: 6.0 * dy)
assert back(1.0) == 6.0 and back.spent and back.kept == []

# %% [markdown]
# ## Check the gradient by changing the pixel
#
# The gradient predicts: if this pixel grows by $h$, the loss grows by $h$ times `dpixel`. To test this, compute the
# loss twice, with the pixel a little brighter and a little darker. Then compare the slope with the gradient.
#
# **Predict first.** Is the comparison more accurate, the smaller $h$ is?


# %%
def loss_with(change):
    changed = image.copy()
    changed[0, 0, row, column] += change
    return F.softmax_cross_entropy(model(changed)[0], label)[0]


sizes = 10.0 ** np.arange(-1, -11 if SHORT else -13, -1)
errors = []
for h in sizes:
    slope = (loss_with(h) - loss_with(-h)) / (2 * h)
    errors.append(abs(slope - dpixel) / abs(dpixel))
    print(f"h = {h:.0e}: slope {slope:+.10e}, relative error {errors[-1]:.0e}")
print(f"backward pass: {dpixel:+.10e}")
assert min(errors) < 1e-6 and errors[-1] > min(errors) * 10

# %% [markdown]
# The slope and the gradient agree to many digits, but not for every $h$. With a large $h$ the curvature of the loss
# adds an error. With a small $h$, two nearly equal numbers are subtracted, and mostly rounding is left. The backward
# pass has neither error.

# %%
figure, axes = figures.new(width=7, height=3.2)
axes.plot(sizes, errors)
axes.set(xscale="log", yscale="log", xlabel="h, the change of the pixel", ylabel="relative error")
axes.set_title("How far the slope from two losses is from the gradient", loc="left")
figures.show(
    figure,
    "09_differences",
    alt="A curve like a V on logarithmic axes: the error falls as h shrinks, down to a least near the middle, and then "
    "rises again from rounding.",
)

# %% [markdown]
# The backward pass is also much faster. One forward and one backward pass give all gradients together. With differences
# each number takes two forward passes:

# %%
numbers = image.size + sum(param.size for param in params.values())
start = time.perf_counter()
step()
one_step = time.perf_counter() - start
start = time.perf_counter()
loss_with(1e-3)
one_forward = time.perf_counter() - start
print(f"all {numbers:,} gradients by backpropagation: {1e3 * one_step:.1f} ms")
print(f"by differences: {2 * numbers:,} forward passes, about {2 * numbers * one_forward:.0f} s here")
assert 2 * numbers > 10_000

# %% [markdown]
# ## Gradient checks for all parameters
#
# The library's checks work in a similar, more accurate way ([how](../gradcheck.md)). `check_vjp` moves all pixels and
# all parameters together along a random direction, and compares the slope with the gradients. `check_complex_step`
# finds each slope with a complex step, which needs no subtraction and is exact up to rounding. Both return the error,
# and raise an exception if it is too large:

# %%
two, two_labels = batch[:2], labels[:2]


def network_and_loss(images):
    return compose(images, model, lambda logits: F.softmax_cross_entropy(logits, two_labels))


error = minivit.check_vjp(network_and_loss, two)
print(f"network and loss, along a random direction of the images: {error:.0e}")
assert error < 1e-6
error = minivit.check_vjp(model, two)
print(f"the network, images and all parameters:                   {error:.0e}")
assert error < 1e-6
error = minivit.check_complex_step(block, np.random.default_rng(0).standard_normal((2, 3, 16)))
print(f"a block, every element of its input and its parameters:   {error:.0e}")
assert error < 1e-12

# %% [markdown]
# ## What you have seen
#
# - `y, back = layer(x)` returns the result, and a closure that keeps what the backward pass needs.
# - By the chain rule the backward functions are called in reverse order. A value that was used twice gets the sum of
#   two gradients.
# - The gradient passed from the loss to the class token, through attention to a patch, and through the kernel to a
#   pixel.
# - Memory rises in the forward pass and falls in the backward pass. A backward function runs once.
# - Differences agree with the gradient to many digits, and cost two forward passes for each number.
#
# ## Try it
#
# **Exercise 1.** Follow another path: from the loss to one number of `blocks.0.mlp.fc1.weight`. Check it by
# differences.
#
# <details>
# <summary>Solution 1</summary>
#
# The gradient that enters block 0 is `dafter0`. The block ends with `middle + mlp(norm2(middle))`, so this gradient
# also enters `back_mlp`. Inside the MLP it passes through the linear map `fc2` and through GELU. The weights of `fc1`
# then get $dW = dh^\top x$, where $x$ is the input of the MLP and $dh$ the gradient in front of GELU.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
block0 = model.blocks[0]
middle0 = tokens + block0.attn(block0.norm1(tokens)[0])[0]  # (1, 17, 16)
x = block0.norm2(middle0)[0]  # (1, 17, 16), the input of the MLP
hidden, _ = F.linear(x, block0.mlp.fc1.weight.data, block0.mlp.fc1.bias.data)  # (1, 17, 32 or more)
_, vjp_gelu = F.gelu(hidden)
dhidden = vjp_gelu(dafter0 @ block0.mlp.fc2.weight.data)  # the same shape
dweight = np.einsum("bnh,bnd->hd", dhidden, x)
assert np.allclose(dweight, by_hand["blocks.0.mlp.fc1.weight"], rtol=1e-10, atol=1e-15)


def loss_with_weight(change):
    weight = block0.mlp.fc1.weight
    weight.data[3, 5] += change
    result = F.softmax_cross_entropy(model(image)[0], label)[0]
    weight.data[3, 5] -= change
    return result


slope = (loss_with_weight(1e-4) - loss_with_weight(-1e-4)) / 2e-4
print(f"number [3, 5]: gradient {dweight[3, 5]:+.10e}, from two losses {slope:+.10e}")
assert np.isclose(slope, dweight[3, 5], rtol=1e-5)

# %% [markdown]
# **Exercise 2.** Compute $x^4$ in two ways: as `square(square(x))`, and as $a \cdot a$ with $a = x^2$ and a backward
# function for the product of two numbers. Both must give $4x^3$.
#
# <details>
# <summary>Solution 2</summary>
#
# In the second way $a$ is used twice, so its gradient is the sum of the two gradients of the product. Each of them is
# $dy \cdot a$, so $da = 2a \cdot dy = 2x^2 \cdot dy$. Then `square` multiplies by $2x$, which gives $4x^3$.
#
# </details>


# %% tags=["hide-cell"]
# Solution 2
def product(a, b):
    return a * b, lambda dy: (dy * b, dy * a)


_, back = compose(1.5, square, square)
a, back_a = square(1.5)
_, back_product = product(a, a)
da = sum(back_product(1.0))  # a was used twice
print(back(1.0), back_a(da), 4 * 1.5**3)
assert back_a(da) == 4 * 1.5**3

# %% [markdown]
# **Exercise 3.** Trace a network with `depth=12`. How much does the gradient change from the last block to the first?
#
# <details>
# <summary>Solution 3</summary>
#
# It grows by a factor of 1.5 over the twelve blocks, so it neither vanishes nor explodes. The residual connections pass
# it on, and each block adds a little.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
deep = minivit.ViT(28, 7, 1, 10, embed_dim=16, depth=12, num_heads=2, dtype="float64", seed=0)
deep_trace = explain.trace(deep, image, label)
ends = deep_trace["blocks.11"].norm_dy, deep_trace["blocks.0"].norm_dx
print(f"|dy| of the last block {ends[0]:.4f}, |dx| of the first {ends[1]:.4f}: a factor {ends[1] / ends[0]:.2f}")
assert round(ends[1] / ends[0], 1) == 1.5

# %% [markdown]
# Next: [10. Break it](10_break_it.py)
