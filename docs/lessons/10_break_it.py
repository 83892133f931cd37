# %% [markdown]
# # 10. Break it: an ablation
#
# What do the scale in attention, the residual connection, the norm and the mask contribute? This page is an *ablation*:
# it removes one part at a time, trains the rest, and reports the loss, the size of the gradients, and the result of the
# gradient check. You will be able to distinguish a wrong model from a wrong gradient. This helps when a network of your
# own does not learn.
#
# **Run time.** The code of this page takes about 100 s on one core of a server processor, and about 15 s with
# `MINIVIT_LESSONS=short` in the environment.
#
# **Words used here.** A *gradient check* compares the gradient of a backward pass with the effect of small changes of
# the inputs ([how](../gradcheck.md)). A *LayerNorm* brings a token's channels to mean 0 and standard deviation 1
# ([derivation](../derivations/layer_norm.md)). An *MLP* is two linear maps with a nonlinearity between them, here
# [GELU](../derivations/gelu.md). A *block* is [attention](../derivations/attention.md) and an MLP, each after a
# LayerNorm. The result of each is added to the stream of tokens. This addition, $x + f(x)$, is the *residual
# connection*.

# %%
import inspect
import os
import sys
from pathlib import Path

import numpy as np

import minivit
from minivit import data, functional as F, nn
from minivit.draw import figures
from minivit.protocol import once

SHORT = os.environ.get("MINIVIT_LESSONS") == "short"

# the switches are in a program of their own, examples/break_it.py; a downloaded notebook writes it beside itself
sys.path[:0] = [os.getcwd(), str(Path(minivit.__file__).resolve().parents[1] / "examples")]
import break_it  # noqa: E402

# %% [markdown]
# ## The switches
#
# The whole model is a small ViT: 16 patches of 7 x 7 pixels, six blocks of width 32, and a linear classifier that reads
# the mean of all tokens. A *switch* changes one line of this model. The next cell prints one of them, a subclass of the
# library's attention. Its forward pass has `scale=1.0`, where the library would divide the scores by the square root of
# the head's size. Then it lists all switches.

# %%
print(inspect.getsource(break_it.NoScale))
for name, switch in break_it.SWITCHES.items():
    print(f"{name:19s} {switch.says}")

# %% [markdown]
# You can also run them from the command line, `python examples/break_it.py --switch no_residual`, and read the whole
# [program](../../examples/break_it.py).
#
# ## A wrong model has a right gradient
#
# First comes the gradient check alone, on a small copy of each model in double precision. Three switches are mistakes
# in a backward pass. All others change the function that is computed, and their backward pass is the gradient of the
# changed function.
#
# **Predict first.** Which switches will the check find?

# %%
verdicts = {name: break_it.check(name) for name in break_it.SWITCHES}
for name, verdict in verdicts.items():
    print(f"{name:19s} {'passes' if verdict == 'passes' else 'FAILS'}")

wrong_gradients = ["softmax_over_batch", "gain_outside", "residual_forgotten"]
assert [name for name in verdicts if verdicts[name] != "passes"] == wrong_gradients

# %% [markdown]
# It finds the three wrong gradients and nothing else. A model without residual connections passes, and so does a Swin
# without its mask. The check asks "is this the derivative of that function?" and not "is this a good function?". So a
# passing check does not show that a model is right. But it narrows the search: if it passes, the backward passes are
# not the problem.
#
# ## Training each of them
#
# Now all of them are trained on the same images, with the same initial weights, in the same order, and for the same
# short time. After a short training even the whole model is far from its best accuracy, so that differences are easy to
# see. Swin's switches have a separate task, which is explained below.
#
# **Predict first.** Which of the changes will hurt most? Which will make no difference? Which of the three wrong
# gradients will you see in the loss?

# %%
mnist = data.load_mnist(os.environ.get("MINIVIT_MNIST"), quiet=True)
count, epochs = (600, 2) if SHORT else (4000, 4)
digits = break_it.digits(mnist, count)
dots = break_it.dots()
print(f"{count} images of {mnist.source}, {epochs} epochs")
print(break_it.HEAD)

outcomes = {}
for name, switch in break_it.SWITCHES.items():
    outcomes[name] = break_it.learn(name, dots, 4) if switch.swin else break_it.learn(name, digits, epochs)
    print(break_it.row(name, outcomes[name], verdicts[name]))

# %% [markdown]
# How large are differences by chance? The next cell trains the whole model again, with other initial weights and
# another order of the images.

# %%
again = [outcomes["whole"]] + [
    break_it.learn("whole", digits, epochs, seed=seed) for seed in ((1,) if SHORT else (1, 2))
]
scores = [outcome.accuracy for outcome in again]
print("the whole model with different seeds:", ", ".join(f"{score:.1%}" for score in scores))
print(
    f"so a difference of {100 * (max(scores) - min(scores)):.1f} points between two rows, or a little more, is chance"
)

# %% [markdown]
# ## The losses
#
# Each curve is smoothed by a mean over neighboring steps. The thick gray curve is the whole model. The dotted line is
# the loss of guessing, $\log 10$ = 2.30. Losses above 3 are cut off: without norms the loss may be far higher.

# %%
groups = {
    "residual and norm": ["no_residual", "post_norm", "no_norm"],
    "other wrong models": ["no_scale", "no_position", "wrong_eps", "tanh_gelu"],
    "wrong gradients": wrong_gradients,
}


def smooth(losses, width=5 if SHORT else 25):
    """The mean of `width` steps around each."""
    return np.convolve(losses, np.ones(width) / width, mode="valid")


figure, axes = figures.new(1, 3, width=10, height=4.0, sharey=True)
for panel, (title, names) in zip(axes, groups.items()):
    panel.axhline(np.log(10), color="#666666", linewidth=1, linestyle=":", marker="")
    panel.plot(smooth(outcomes["whole"].losses), color="#999999", linestyle="-", linewidth=4, marker="", label="whole")
    for name in names:
        panel.plot(smooth(outcomes[name].losses), marker="", label=name)
    panel.set(title=title, xlabel="step", ylim=(0, 3))
    panel.legend(fontsize=8, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
axes[0].set_ylabel("training loss")
figures.show(
    figure,
    "10_losses",
    alt="Training loss against steps in three panels beside the whole model's: without residual or norm learning "
    "hardly begins, with post-norm it is slow; scale, position, eps and GELU change little; of the wrong gradients "
    "only the forgotten residual shows.",
)

# %% [markdown]
# ## The effect of each part
#
# **No residual.** The loss hardly falls below the level of guessing, because the gradient of the first block is close
# to 0. Without $x + f(x)$ the gradient has to pass through both branches of all six blocks, and each makes it smaller.
# With the residual connections there is a path around the branches, $dx = dy + \dots$, so the gradient of the output
# reaches the first block.

# %%
whole, none = outcomes["whole"], outcomes["no_residual"]
print(f"gradient of the first block: {whole.first:.1e} in the whole model, {none.first:.1e} without residuals")
print(f"gradient of the last block:  {whole.last:.1e} in the whole model, {none.last:.1e} without residuals")
assert none.first < whole.first / 20
assert min(smooth(none.losses)) > 1.8 and none.accuracy < 0.3  # far from learned, at every step

# %% [markdown]
# **No norm, and post-norm.** Without norms the activations and the gradients grow from block to block. Training is
# unstable or stalls, to a degree that depends on the seed. The first transformers used *post-norm* (Vaswani et al.
# 2017): the norm is applied to the residual stream itself. Then no path leads around the norms, and every gradient
# passes through all of them. Such models need small steps at the beginning (a *warm-up*), and they learn more slowly
# here. ViT and Swin put the norm into the branch.

# %%
for name in ("whole", "no_norm", "post_norm"):
    losses = outcomes[name].losses
    print(f"{name:9s} loss at the end {np.mean(losses[-20:]):.2f}, at worst {max(losses):.1f}")
if not SHORT:
    assert outcomes["whole"].accuracy > 0.6 > 0.3 > outcomes["no_residual"].accuracy
    assert outcomes["post_norm"].accuracy < outcomes["whole"].accuracy - 0.1

# %% [markdown]
# **No scale.** Here the difference is no larger than chance. The heads of this model have d = 16 channels, so the
# scores are 4 times as large as with the scale. For large heads the scale matters. A sum of d products of numbers with
# variance 1 has variance d. With large scores softmax gives nearly all weight to one token, and then the gradient of
# the scores is close to 0:

# %%
rng = np.random.default_rng(0)
print("  d   largest weight   gradient that reaches the scores (with scale -> without)")
for d in (16, 64, 256, 1024):
    scores = [rng.standard_normal((200, d)) @ rng.standard_normal((d, 16)) * scale for scale in (d**-0.5, 1.0)]
    weights, backs = zip(*(F.softmax(score) for score in scores))  # (200, 16) each
    dy = rng.standard_normal((200, 16))
    sizes = [np.abs(back(dy)).mean() for back in backs]
    print(f"{d:5d}  {weights[0].max(axis=1).mean():.2f} -> {weights[1].max(axis=1).mean():.2f}   "
          f"{sizes[0]:.3f} -> {sizes[1]:.4f}")  # fmt: skip
assert sizes[1] < sizes[0] / 3  # d = 1024: most of the gradient is lost

# %% [markdown]
# **No position.** Without positions a ViT sees an unordered set of patches: in any other order the answer is the same.
# Digits can be recognized fairly well by their strokes alone. So in this short training the loss of accuracy is small,
# about as large as the difference between seeds. The invariance to the order is exact, except for rounding:


# %%
def shuffled(images):
    """The 16 patches of each image in another, fixed order."""
    rows, back = F.patchify(images, 7)  # (B, 16, 49)
    return F.unpatchify(rows[:, np.random.default_rng(1).permutation(16)], 7, (4, 4))[0]


for name in ("whole", "no_position"):
    model = break_it.build(name)
    model.head.weight.data = np.random.default_rng(2).standard_normal(model.head.weight.shape)  # it starts at 0
    difference = np.abs(model.predict(digits.test[:50]) - model.predict(shuffled(digits.test[:50]))).max()
    print(f"{name:12s} logits differ by up to {difference:.1e} when the patches are shuffled")
    assert (difference < 1e-3) == (name == "no_position")

# %% [markdown]
# **A wrong eps.** LayerNorm divides by $\sqrt{\text{variance} + \varepsilon}$. ViT's $\varepsilon$ is 1e-6, and even
# 1e-3 makes no visible difference above. It matters only for tokens of small numbers. So published weights that are
# loaded with another $\varepsilon$ can give wrong results for a few tokens only.

# %%
row = rng.standard_normal(64)
row -= row.mean()
print("deviation of row    eps 1e-5 instead of 1e-6   eps 1e-3 instead of 1e-6")
for spread in (1.0, 0.1, 0.01, 0.001):
    x = (row / row.std() * spread)[None]
    exact, _ = F.layer_norm(x, None, None, 1e-6)
    change = [np.abs(F.layer_norm(x, None, None, eps)[0] - exact).max() for eps in (1e-5, 1e-3)]
    print(f"{spread:17} {change[0]:26.5f} {change[1]:26.5f}")
    if spread == 1.0:
        assert change[0] < 1e-4
    if spread == 0.01:
        assert change[0] > 0.1

# %% [markdown]
# **tanh for GELU.** The approximation of GELU by tanh differs from GELU by less than 0.0005, which has no visible
# effect on training. But the outputs of two programs that use different forms agree only to a few digits.

# %%
x = np.linspace(-6, 6, 2001)
apart = np.abs(F.gelu(x)[0] - F.gelu(x, "tanh")[0]).max()
print(f"largest difference between both GELUs: {apart:.5f}")
assert 4e-4 < apart < 5e-4

# %% [markdown]
# **Dropout left on.** *Dropout* sets random activations to zero in training. In the test it must be off. In this
# library randomness is an argument, so it cannot stay on by accident. In many other libraries it is a mode that must be
# switched. The rows `dropout` and `dropout_at_test` are the same training. The accuracy of the second is only a little
# lower, so it looks like an ordinary result. Predicting the same images twice reveals the mistake.

# %%
model = break_it.build("dropout")
model.head.weight.data = np.random.default_rng(2).standard_normal(model.head.weight.shape)
off = [model.predict(digits.test[:200]).argmax(axis=1) for _ in range(2)]
on = [model(digits.test[:200], np.random.default_rng(seed))[0].argmax(axis=1) for seed in (0, 1)]
print(
    f"answers that change when asked again: off {np.mean(off[0] != off[1]):.0%}, left on {np.mean(on[0] != on[1]):.0%}"
)
assert np.mean(off[0] != off[1]) == 0 and np.mean(on[0] != on[1]) > 0.02

# %% [markdown]
# ## No mask, no shift: a task that needs both
#
# Do mask and shift matter for digits? We found no effect. A small Swin (width 24, 2 + 2 blocks, windows of 4) was
# trained on 4,000 digits for four epochs. With seeds 0 and 1 its test accuracy was 87.9% and 87.7%. Without the mask
# it was 89.2% and 87.9%, and without the shift 87.5% and 86.9%. The likely reason is that the border of the images
# is empty, and that in the second stage one window covers the whole map.
#
# So here is a task for which they matter. Each image has a bright and a dark dot in one row. In class 1 they are
# neighbors, on both sides of a border between two windows. In class 0 they are at the two ends of the image. In both
# classes the two windows of that row hold one dot each, in the first or last column of the window.
#
# **Predict first.** What accuracy can a Swin reach without the shift? And without the mask?

# %%
figure, axes = figures.new(1, 4, width=9, height=2.7)
chosen = [n for label in (1, 0) for n in np.flatnonzero(dots.labels == label)[:2]]
for panel, n in zip(axes, chosen):
    panel.imshow(dots.learn[n, 0], cmap="Greys_r", vmin=-2, vmax=2)
    panel.axvline(3.5, color="#D55E00", linestyle="--", marker="")
    panel.axhline(3.5, color="#D55E00", linestyle="--", marker="")
    title = "neighbors" if dots.labels[n] else "the two ends"
    panel.set(title=f"class {dots.labels[n]}: {title}", xticks=range(8), yticks=range(8), xlabel="column")
axes[0].set_ylabel("row")
figures.show(
    figure,
    "10_dots",
    alt="Four images of 8 by 8 with a bright and a dark dot in one row, windows of 4 by 4 dashed: in two images the "
    "dots are neighbors across the border, in two they lie in the first and last column.",
)
for name in ("whole_swin", "no_mask", "no_shift"):
    print(f"{name:11s} accuracy {outcomes[name].accuracy:.1%}")
assert outcomes["whole_swin"].accuracy > 0.9
assert abs(outcomes["no_mask"].accuracy - 0.5) < 0.1 and abs(outcomes["no_shift"].accuracy - 0.5) < 0.1

# %% [markdown]
# Both only guess. Without the shift the two dots never share a window, whatever is learned. Without the mask they
# always do, because opposite ends of the image are adjacent after the roll. Rolled by a whole window, an image of one
# class is an image of the other class, and the model gives the same answer to both. Training cannot change this.
# ([Lesson 8b](08b_shifted_windows.py) measures both with a single token.)

# %%
images = dots.test[:100]
rolled = np.roll(images, 4, axis=3)  # by a window: neighbors come to lie at the two ends
for name in ("whole_swin", "no_mask", "no_shift"):
    model = break_it.build(name)
    difference = np.abs(model.predict(images) - model.predict(rolled)).max()
    print(f"{name:11s} logits of an image and of the rolled one differ by up to {difference:.1e}")
    assert (difference < 1e-5) == (name != "whole_swin")

# %% [markdown]
# ## A model with a wrong gradient may train well
#
# Now to the three wrong gradients in the table. The forgotten residual is easy to see: the first block has almost no
# gradient. The other two are the gradient of softmax divided by the batch size, and the gain of the norm applied at the
# wrong step. These models train nearly as well as the whole model, so the loss does not reveal them. AdamW even hides
# wrong magnitudes, because it divides each gradient by its usual size.

# %%
for name in wrong_gradients:
    print(f"{name:19s} {outcomes[name].accuracy:.1%}, the whole model {outcomes['whole'].accuracy:.1%}")
if not SHORT:
    assert outcomes["gain_outside"].accuracy > outcomes["whole"].accuracy - 0.12  # the loss does not reveal it
    assert outcomes["softmax_over_batch"].accuracy > outcomes["whole"].accuracy - 0.17
    assert outcomes["residual_forgotten"].accuracy < outcomes["whole"].accuracy - 0.12

# %% [markdown]
# The check needs no training, and it says where the error is:

# %%
x = np.random.default_rng(0).standard_normal((3, 5, 8))  # (B, N, D): 3 images, 5 tokens, 8 channels


def attention():
    return nn.Attention(8, 2, dtype="float64", seed=0)


def block():
    norms = [nn.LayerNorm(8, dtype="float64") for _ in range(2)]
    return nn.Block(norms[0], attention(), norms[1], nn.Mlp(8, 16, dtype="float64", seed=1))


wrong = {
    "softmax_over_batch": break_it.swap(break_it.SoftmaxOverBatch)(attention()),
    "gain_outside": break_it.swap(break_it.GainOutside)(nn.LayerNorm(8, dtype="float64")),
    "residual_forgotten": break_it.swap(break_it.ResidualForgotten)(block()),
}
for name, layer in wrong.items():
    try:
        minivit.check_vjp(layer, x)
        raise AssertionError(f"{name} must not pass")
    except minivit.GradientError as error:
        print(f"{name}:\n  {error}")
for right in (attention(), nn.LayerNorm(8, dtype="float64"), block()):
    assert minivit.check_vjp(right, x) < 1e-6  # and the library's own pass

# %% [markdown]
# ## Inputs that hide a mistake
#
# Some inputs hide mistakes from a check. Here is a careless check. Its central differences are accurate, but its inputs
# are left to the caller. The parameters keep their initial values, and `dy`, the upstream gradient, is an argument.
#
# **Predict first.** Which of the three mistakes is hidden if `dy` is all ones? If the parameters have their initial
# values? If the batch has a single image?


# %%
def careless_check(f, x, dy):
    """Whether the gradient of x is right along a random direction."""
    _, back = f(x)
    v = np.random.default_rng(5).standard_normal(x.shape)
    slope = ((f(x + 1e-6 * v)[0] - f(x - 1e-6 * v)[0]) * dy).sum() / 2e-6
    return abs((back(dy) * v).sum() - slope) < 1e-6


def softmax_over_batch(x):
    """Softmax alone, its gradient divided by the batch."""
    y, vjp = F.softmax(x)
    return y, lambda dy: vjp(dy) / len(dy)


general = break_it.GainOutside(8, dtype="float64")
general.weight.data = np.linspace(0.5, 2.0, 8)
bugs = {
    "softmax / batch": (softmax_over_batch, softmax_over_batch),
    "gain outside": (general, wrong["gain_outside"]),  # with a general gain, and with the initial one, 1
    "residual forgotten": (wrong["residual_forgotten"], wrong["residual_forgotten"]),
}
dy = np.random.default_rng(6).standard_normal(x.shape)
print("                     random dy   dy of ones   init. weights   batch of 1")
hidden = {}
for name, (f, fresh) in bugs.items():
    hidden[name] = [
        careless_check(f, x, dy),
        careless_check(f, x, np.ones_like(x)),
        careless_check(fresh, x, dy),
        careless_check(f, x[:1], dy[:1]),
    ]
    cells = ["HIDDEN" if each else "found" for each in hidden[name]]
    print(f"{name:20s} {cells[0]:>9s} {cells[1]:>12s} {cells[2]:>15s} {cells[3]:>12s}")

assert hidden["softmax / batch"] == [False, True, False, True]
assert hidden["gain outside"] == [False, False, True, False]
assert hidden["residual forgotten"] == [False] * 4

# %% [markdown]
# - **`dy` of ones** gives the gradient of the sum of all outputs. A row of softmax sums to 1 for any input, so the
#   right gradient is 0, and so is the wrong one.
# - **Initial weights**: a LayerNorm's gain starts at 1, and it does not matter at which step a factor of 1 is applied.
# - **A batch of 1**: dividing by 1 changes nothing.
#
# `minivit.check_vjp` draws `dy` at random, moves the parameters to random values during the check, and passes read-only
# arrays. You choose the batch: use at least two images.
#
# ## What you have seen
#
# - A wrong model has a right gradient. The check passes, and only the loss, or a task designed for it, shows the fault.
# - A wrong gradient is found by the check, and often not by the loss: two of three trained about as well as the whole
#   model.
# - The residual connection carries the gradient to the first block. Without it hardly anything was learned.
# - Several parts (scale, eps, the kind of GELU) make no difference in a short training of a small model. They matter in
#   other cases: large heads, rows of small numbers, comparisons to many digits.
# - Special inputs hide mistakes: `dy` of ones, initial weights, a batch of one.
#
# ## Try it
#
# **Exercise 1.** Add a switch of your own: ReLU (the maximum of 0 and the number) instead of GELU. Predict the outcome
# before you run it.
#
# <details>
# <summary>Solution 1</summary>
#
# The gradient check passes, because the backward pass fits the function. The accuracy is 72%, and 78% with GELU. This
# is no larger a difference than between seeds, so this experiment does not show that one is better than the other.
#
# </details>


# %% tags=["hide-cell"]
# Solution 1
class LinearReLU(nn.LinearGELU):
    """The first linear map of the MLP, with max(0, x) after it."""

    def forward(self, x, rng=None):
        h, vjp = F.linear(x, self.weight.data, self.bias.data)

        @once
        def back(dy):
            dx, dweight, dbias = vjp(dy * (h > 0))
            self.weight.accumulate(dweight)
            self.bias.accumulate(dbias)
            return dx

        return np.maximum(h, 0), back


break_it.SWITCHES["relu"] = break_it.Switch("ReLU, not GELU", break_it.swap(LinearReLU))
relu, verdict = break_it.learn("relu", digits, epochs), break_it.check("relu")
print(break_it.row("relu", relu, verdict))
print(break_it.row("whole", outcomes["whole"], verdicts["whole"]))
assert verdict == "passes"
if not SHORT:
    assert abs(relu.accuracy - outcomes["whole"].accuracy) < 0.15

# %% [markdown]
# **Exercise 2.** Introduce a mistake into the backward pass of a linear map: a forgotten transpose, or a wrong sign.
# Does the check find it? Let someone else find the line.
#
# <details>
# <summary>Solution 2</summary>
#
# The check finds both. For a square matrix a forgotten transpose gives an array of the right shape, so nothing else
# would reveal it. The message names the argument whose gradient is wrong, which leads to the line.
#
# </details>


# %% tags=["hide-cell"]
# Solution 2
def linear_map(x, weight, transpose=True, sign=1):
    def back(dy):
        dx = dy @ weight if transpose else dy @ weight.T
        return dx, sign * dy.T @ x

    return x @ weight.T, back


square_weight = np.random.default_rng(0).standard_normal((8, 8))
for mistake in ({}, {"transpose": False}, {"sign": -1}):
    try:
        error = minivit.check_vjp(lambda x, weight: linear_map(x, weight, **mistake), x[0], square_weight)  # noqa: B023
        print(f"{mistake}: passes, error {error:.0e}")
        assert not mistake
    except minivit.GradientError as error:
        print(f"{mistake}: {str(error)[:100]} ...")
        assert mistake

# %% [markdown]
# **Exercise 3.** Train `no_residual` with fewer blocks (`break_it.VIT["depth"]`). From how many blocks on does training
# fail?
#
# <details>
# <summary>Solution 3</summary>
#
# The accuracy is 67% with one block, 50% with two, 41% with three and 23% with four. The gradient of the first
# block has about the same size for up to three blocks, and is smaller by a factor of several thousand for four. So
# training fails from four blocks on.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
shallow = {}
for depth in (1, 6) if SHORT else (1, 2, 3, 4):
    break_it.VIT["depth"] = depth
    shallow[depth] = break_it.learn("no_residual", digits, epochs)
    print(f"{depth} block(s): accuracy {shallow[depth].accuracy:.1%}, first gradient {shallow[depth].first:.1e}")
break_it.VIT["depth"] = 6
if not SHORT:
    assert shallow[1].accuracy > shallow[2].accuracy > 0.35 > shallow[4].accuracy
    assert shallow[4].first < shallow[3].first / 100

# %% [markdown]
# Next: [11. What changed after ViT](11_after_vit.py), the parts that CLIP, DINOv2 and others replaced.
