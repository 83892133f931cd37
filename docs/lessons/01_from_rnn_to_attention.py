# %% [markdown]
# # 1. From RNN to attention
#
# This page compares two ways to process a sequence. A recurrent network reads one word after the other. Attention sees
# all words together. You will measure how far each can remember, and how its time grows with the length. You will then
# be able to say what attention improves, and what it costs.
#
# **Run time.** The code of this page takes about 30 s on one core of a server processor, and about 5 s with
# `MINIVIT_LESSONS=short` in the environment.
#
# **Words used here.** A *layer* is a function that contains numbers, its *parameters* or *weights*. A *network* is a
# sequence of layers. The *loss* is one number that says how wrong the network's answer is. The *gradient* of the loss
# with respect to an array has the same shape as the array. It says for each number how the loss changes if that number
# grows a little. *Training* changes the parameters in many small steps against their gradient, so that the loss falls.
#
# **The rule of this library.** Every layer returns two things, its output and its backward function: `y, back =
# layer(x)`. The *forward pass* is this call. The *backward pass* is the call `dx = back(dy)`. Here `dy` is the gradient
# of the loss with respect to `y`, and `dx` the gradient with respect to `x`. [Lesson 9](09_backpropagation.py) builds
# such functions from scratch, and the page on the [protocol](../protocol.md) has the details. If you know PyTorch:
# `back` is what `loss.backward()` would call for this layer. Here you call it yourself. There is no automatic
# differentiation, and no `train()` or `eval()`: a layer is random only if it gets a random generator `rng`.
#
# Five names in the code belong to this rule. `nn.Layer` is the base class: calling a layer calls its `forward`, whose
# argument `rng` is for random layers and is not used here. A `Parameter` is an array of weights, `.data`, with its
# gradient in `.grad`. `accumulate` adds to that gradient. `@once` allows a `back` to run only once, because the arrays
# that it kept are then released. The functions in `F` have no weights of their own. Their backward function is called
# `vjp` (vector-Jacobian product), and it returns a gradient for each argument.

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

# %% [markdown]
# ## A recurrent network
#
# A recurrent network (RNN) keeps a state $h$, a vector of numbers. It reads one input $x_t$ after the other, and each
# time computes a new state from the old one and the input:
#
# $$
# h_t = \tanh(u_t + W h_{t-1}), \qquad u_t = W_{\text{in}}\, x_t + b .
# $$
#
# The function $\tanh$ maps any number into $(-1, 1)$. All that the network remembers of the past has to fit into $h$.
# It passes through $W$ and $\tanh$ again at every step.
#
# **The backward pass.** Go through the steps from the last to the first. The state $h_t$ was used twice: as an output,
# and in the next step. So it gets two gradients, which are added. Write $a_t$ for the argument of $\tanh$. The
# derivative is $\tanh'(a) = 1 - \tanh^2(a)$. Then
#
# $$
# da_t = (dy_t + dh_t)\,(1 - h_t^2), \qquad dh_{t-1} = W^\top da_t, \qquad dW = \sum_t da_t\, h_{t-1}^\top .
# $$
#
# This is called *backpropagation through time*. The last two formulas are those of any linear map
# ([derivation](../derivations/linear.md)). The code below has both passes. Its letters are B for the number of
# sequences, N for the steps, D for the numbers in each input, and H for the numbers in the state. The states of all
# sequences are the rows of one array, so $W h$ becomes `h @ weight.T`, and $W^\top da$ becomes `da @ weight`. The
# library's layer `nn.Linear` computes all $u_t$ in one call:


# %%
class RNN(nn.Layer):
    """x (B, N, D) -> all states (B, N, H)."""

    def __init__(self, dim, hidden, seed, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.input = nn.Linear(dim, hidden, dtype=dtype, seed=rng)
        self.input.weight.data = rng.standard_normal((hidden, dim)) / dim**0.5  # the sums in u then have size 1
        self.recurrent = Parameter((rng.standard_normal((hidden, hidden)) / hidden**0.5).astype(dtype))

    def forward(self, x, rng=None):
        weight = self.recurrent.data
        u, back_input = self.input(x)  # (B, N, H), for all steps together
        states = [np.zeros_like(u[:, 0])]  # (B, H), before the first step
        for t in range(x.shape[1]):
            states.append(np.tanh(u[:, t] + states[t] @ weight.T))  # needs the step before: no two at a time

        @once
        def back(dy):
            du, dh, dweight = np.empty_like(u), np.zeros_like(states[0]), np.zeros_like(weight)
            for t in reversed(range(x.shape[1])):
                du[:, t] = (dy[:, t] + dh) * (1 - states[t + 1] ** 2)
                dweight += du[:, t].T @ states[t]
                dh = du[:, t] @ weight
            self.recurrent.accumulate(dweight)
            return back_input(du)

        return np.stack(states[1:], axis=1), back


# %% [markdown]
# A backward pass written by hand must be checked. `check_vjp` compares it with differences of the forward pass along
# random directions. `check_complex_step` compares every single element (see [gradient checks](../gradcheck.md)). Both
# errors are relative to the largest element of the gradient, and both raise an error if a gradient is wrong.

# %%
x = np.random.default_rng(0).standard_normal((2, 5, 3))  # 2 sequences of 5 vectors with 3 numbers
layer = RNN(3, 4, seed=0, dtype="float64")
print(f"error along random directions: {minivit.check_vjp(layer, x):.1e} (allowed 1e-6)")
print(f"error of the worst element:    {minivit.check_complex_step(layer, x):.1e} (allowed 1e-12)")

# %% [markdown]
# ## One layer of attention
#
# Attention has no state. Each position of the sequence computes weights for all positions, and returns the weighted sum
# of their vectors. The weights depend on the vectors themselves, and they are learned. [Lesson 3](03_self_attention.py)
# explains how. Here attention is a finished layer.
#
# Attention by itself does not depend on the order of its inputs ([lesson 5](05_order.py)). So a learned vector $p$ for
# each position is added to the input. The sum $x + p$ uses the same $p$ for every sequence, so the gradient of $p$ is
# the sum over the sequences.


# %%
class AttentionWithPositions(nn.Layer):
    """x (B, N, D) -> (B, N, D)."""

    def __init__(self, length, dim, seed, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.positions = Parameter(rng.standard_normal((length, dim)).astype(dtype))
        self.attention = nn.Attention(dim, num_heads=1, dtype=dtype, seed=rng)
        for param in (self.attention.qkv.weight, self.attention.proj.weight):
            param.data = rng.standard_normal(param.shape) / dim**0.5

    def forward(self, x, rng=None):
        y, back_attention = self.attention(x + self.positions.data)

        @once
        def back(dy):
            dx = back_attention(dy)  # (B, N, D)
            self.positions.accumulate(dx.sum(axis=0))
            return dx

        return y, back


x = np.random.default_rng(0).standard_normal((2, 5, 4))  # 2 sequences of 5 vectors with 4 numbers
error = minivit.check_complex_step(AttentionWithPositions(5, 4, seed=0, dtype="float64"), x)
print(f"attention with positions, error of the worst element: {error:.1e}")

# %% [markdown]
# ## The task: recall the first symbol
#
# The input is a sequence of random symbols, each one of eight. After the last one the network must name the *first*.
# The distance from the first to the last is $T$. The task tests only memory. Guessing is right one time in eight.
#
# The network around both layers is the same. Each symbol becomes a vector ([lesson 2](02_embedding.py)). Then comes the
# layer. From its output at the last position a linear map computes eight *scores*, one for each symbol. The symbol with
# the largest score is the answer.

# %%
SYMBOLS, DIM = 8, 32


class Recall(nn.Layer):
    """Symbols (B, N), integers -> a score for each of the 8 symbols (B, 8), read at the last position."""

    def __init__(self, core, width, seed):
        self.embed = nn.Embedding(SYMBOLS, DIM, seed=seed)
        self.embed.weight.data = np.random.default_rng(seed).standard_normal((SYMBOLS, DIM))
        self.core = core
        self.head = nn.Linear(width, SYMBOLS, seed=seed)  # width: numbers in the core's output

    def check_dtype(self, x):
        """Allow integers, which layers otherwise refuse."""

    def forward(self, x, rng=None):
        vectors, back_embed = self.embed(x)  # (B, N, D)
        y, back_core = self.core(vectors)  # (B, N, D)
        scores, back_head = self.head(y[:, -1])  # (B, 8)

        @once
        def back(dscores):
            dy = np.zeros_like(y)
            dy[:, -1] = back_head(dscores)  # the head reads no other position, so their gradient is 0
            dvectors = back_core(dy)
            back_embed(dvectors)
            return dvectors

        return scores, back


def model_of(kind, distance, seed, hidden=DIM):
    if kind == "RNN":
        return Recall(RNN(DIM, hidden, seed), hidden, seed)
    return Recall(AttentionWithPositions(distance + 1, DIM, seed), DIM, seed)


# %% [markdown]
# Training is the same for both, too.
#
# - The loss is the *cross-entropy*: minus the logarithm of the probability that the network gives to the right symbol
#   ([derivation](../derivations/cross_entropy.md)).
# - `AdamW` is an *optimizer*: it chooses the size of each parameter's step. The *learning rate* `lr` scales all steps.
# - Each step uses 64 sequences, a *batch*. `zero_grad` first clears the gradients of the step before.
# - A *seed* fixes all random numbers. Another seed gives other initial weights and other sequences.
#
# *Accuracy* is the share of right answers, here for 1,000 sequences that were not used in training.
#
# **Predict first.** Training takes 400 steps. Up to which distance will the RNN name the first symbol reliably: 5, 20
# or 40? And attention?


# %%
def accuracy_after_training(model, distance, seed, steps=400, batch=64):
    rng = np.random.default_rng(seed)
    opt = optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        symbols = rng.integers(SYMBOLS, size=(batch, distance + 1))
        scores, back = model(symbols)
        loss, back_loss = F.softmax_cross_entropy(scores, symbols[:, 0])
        opt.zero_grad()
        back(back_loss())
        optim.clip_grad_norm(opt.params, 1.0)  # RNNs sometimes have huge gradients; this cuts them
        opt.step()
    symbols = np.random.default_rng(1000 + seed).integers(SYMBOLS, size=(1000, distance + 1))  # not seen in training
    return float((model(symbols)[0].argmax(axis=1) == symbols[:, 0]).mean())


distances = [1, 5, 20] if SHORT else [1, 2, 5, 10, 15, 20, 40]
seeds = [0] if SHORT else [0, 1]
found = {
    kind: np.array(
        [[accuracy_after_training(model_of(kind, T, seed), T, seed) for T in distances] for seed in seeds]
    )  # (seeds, distances)
    for kind in ("RNN", "attention")
}
print(f"distance:  {'  '.join(f'{T:6d}' for T in distances)}")
for kind, scores in found.items():
    print(f"{kind:10s} {'  '.join(f'{score:6.1%}' for score in scores.mean(axis=0))}   mean of {len(seeds)} seed(s)")

assert found["RNN"][:, :2].min() > 0.9, "over a short distance the RNN remembers"
assert found["RNN"][:, -1].max() < 0.4, "over a long one it hardly does better than guessing"
assert found["attention"].min() > 0.6, "for attention the distance does not matter"

# %%
figure, axes = figures.new(width=7.0, height=3.4)
for kind, scores in found.items():
    axes.plot(distances, 100 * scores.mean(axis=0), label=kind)
axes.axhline(100 / SYMBOLS, color=figures.QUIET, lw=1, ls=":")
axes.text(distances[0], 100 / SYMBOLS + 2, "guessing", color=figures.QUIET)
axes.set(xscale="log", ylim=(0, 105), xlabel="distance to the symbol (steps)", ylabel="accuracy (%)")
axes.set_xticks(distances, [str(T) for T in distances])
axes.minorticks_off()
axes.legend(loc="center left")
figures.show(
    figure,
    "01_recall",
    alt="Accuracy against the distance: attention stays near 100 per cent, the RNN falls to guessing between about 10 "
    "and 20 steps.",
)

# %% [markdown]
# The RNN remembers over a few steps. Beyond some 10 to 20 steps it is about as accurate as guessing. For attention the
# distance does not matter.
#
# ## Why the RNN forgets
#
# To learn that the first symbol matters, the network needs a gradient: the gradient of the loss with respect to the
# first vector must not vanish. In the backward pass the gradient is multiplied at each step by $W^\top$ and by $1 -
# h^2$. The second factor is at most 1, and mostly below it. So after many steps little is left.
#
# This can be measured on untrained networks. The size of the gradient is computed at each position, with the positions
# counted from the end. ("Size" is the Euclidean norm: the square root of the sum of squares.)
#
# **Predict first.** By which factor is the RNN's gradient smaller at distance 40 than at distance 10: about 10, about
# 1,000, or more than 100,000?

# %%
LENGTH = 60


def gradient_by_distance(model, seed):
    """The norm of dLoss/dvector at each position, mean over sequences: (N,), the last position first."""
    symbols = np.random.default_rng(seed).integers(SYMBOLS, size=(64, LENGTH))
    scores, back = model(symbols)
    _, back_loss = F.softmax_cross_entropy(scores, symbols[:, 0])
    dvectors = back(back_loss())  # (B, N, D)
    return np.sqrt((dvectors**2).sum(axis=2)).mean(axis=0)[::-1]


sizes = {
    kind: np.mean([gradient_by_distance(model_of(kind, LENGTH - 1, seed), seed) for seed in range(5)], axis=0)
    for kind in found
}
for kind, size in sizes.items():
    per_step = (size[40] / size[10]) ** (1 / 30)
    print(
        f"{kind}: gradient at distance 40 / gradient at 10 = {size[40] / size[10]:.1e}, a factor {per_step:.2f} a step"
    )

assert 1e-6 < sizes["RNN"][40] / sizes["RNN"][10] < 1e-5
assert sizes["attention"][40] > 0.1 * sizes["attention"][10]

# %%
figure, axes = figures.new(width=7.0, height=3.4)
for kind, size in sizes.items():
    axes.plot(range(LENGTH), size, label=kind, markevery=5)
axes.set(yscale="log", xlabel="distance from the last position (steps)", ylabel="size of the gradient")
axes.legend(loc="lower left")
figures.show(
    figure,
    "01_gradient",
    alt="Size of the gradient against the distance, on a logarithmic scale: a falling straight line for the RNN, which "
    "means that it shrinks by the same factor at each step, and a level line for attention.",
)

# %% [markdown]
# The RNN's gradient at distance 40 is some 300,000 times smaller than at distance 10. On this logarithmic scale the
# RNN's line is straight: the gradient decays by the same factor at each step, which is exponential decay. It is called
# the *vanishing gradient*. Attention connects any two positions in a single step, so its gradient does not depend on
# the distance.
#
# This is the plain RNN. The gates of the LSTM (Hochreiter and Schmidhuber 1997) were invented against this decay. An
# LSTM remembers much longer, but it too computes one step after the other, which is the subject of the next section.
#
# ## What can be computed in parallel
#
# Step $t$ of an RNN needs the state of step $t - 1$. So $N$ steps are $N$ small products, one after the other, however
# many cores the machine has. Attention has no such order: it consists of a few large products over all positions. But
# it computes a weight for each pair of positions, which makes $N^2$ of them.
#
# Count the *multiply-adds* (a multiplication with its addition) for one sequence of vectors with $D$ numbers. The RNN
# has two products of a $D \times D$ matrix with a vector in each step: $2 N D^2$. Attention has four such products. It
# also computes the weights and the weighted sums: in total $4 N D^2 + 2 N^2 D$. The backward pass needs about twice as
# many, in both.
#
# The next cell measures the time of both passes for one sequence, and how many million multiply-adds the machine does
# in a millisecond.
#
# **Predict first.** For $D = 32$ and a sequence of 64, attention needs four times as many multiply-adds as the RNN.
# Does it also need four times as long?

# %%
lengths = [16, 64, 256] if SHORT else [16, 32, 64, 128, 256, 512, 1024]


def milliseconds(layer, x):
    """The fastest of seven, forward and backward."""
    times = []
    for _ in range(7):
        begin = time.perf_counter()
        y, back = layer(x)
        back(y)
        times.append(time.perf_counter() - begin)
    return 1e3 * min(times)


spent, rate = {"RNN": [], "attention": []}, {"RNN": [], "attention": []}
for N in lengths:
    x = np.random.default_rng(0).standard_normal((1, N, DIM), dtype=np.float32)
    layers = {"RNN": RNN(DIM, DIM, seed=0), "attention": AttentionWithPositions(N, DIM, seed=0)}
    macs = {"RNN": 2 * N * DIM**2, "attention": nn.multiply_adds(nn.Attention(DIM, 1), x.shape)}
    assert macs["attention"] == 4 * N * DIM**2 + 2 * N**2 * DIM
    for kind, layer in layers.items():
        spent[kind].append(milliseconds(layer, x))
        rate[kind].append(3 * macs[kind] / 1e6 / spent[kind][-1])
    for kind in layers:
        million = 3 * macs[kind] / 1e6
        print(f"N = {N:4d}, {kind:9s}: {spent[kind][-1]:7.2f} ms, {million:7.2f} million, {rate[kind][-1]:5.1f} a ms")
    if N == 64:
        assert macs["attention"] == 4 * macs["RNN"], "the number in the question above"

assert max(rate["attention"]) > 2 * max(rate["RNN"]), "large products keep the machine busy, small steps do not"

# %%
figure, axes = figures.new(width=7.0, height=3.4)
for kind, values in spent.items():
    axes.plot(lengths, values, label=kind)
axes.set(xscale="log", yscale="log", xlabel="length of the sequence N", ylabel="forward and backward (ms)")
axes.set_xticks(lengths, [str(N) for N in lengths])
axes.yaxis.set_major_formatter("{x:g}")
axes.minorticks_off()
axes.legend(loc="upper left")
figures.show(
    figure,
    "01_time",
    alt="Time against the length of the sequence, both logarithmic: the RNN's line rises with slope 1, attention "
    "starts below it and rises more steeply for long sequences.",
)

# %% [markdown]
# No: attention does more arithmetic, yet it takes less time unless the sequence is very long, because its products are
# large. The RNN's rate does not grow with the sequence. Each of its steps is a small product, and most of the time is
# spent in Python between these products. On a GPU, which works on thousands of numbers in parallel, the difference is
# larger still.
#
# But attention has a cost. For long sequences the quadratic term $2 N^2 D$ dominates. [Lesson 8](08_swin.py) shows how
# the Swin Transformer avoids it. An image of 14 x 14 patches has $N = 196$, and for the usual widths of several hundred
# numbers the quadratic term is then still small.
#
# ## What you have seen
#
# - An RNN carries all its information through every step. Its gradient decays by a factor at each of them, so it did
#   not learn to remember over more than some 10 to 20 steps.
# - Attention connects any two positions in one step. Its memory and its gradient do not depend on the distance.
# - The RNN's steps are sequential. Attention is a few large products, but has $N^2$ weights.
# - Both backward passes were written by hand and checked.
#
# ## Try it
#
# **Exercise 1.** Give the RNN 2,000 steps of training instead of 400, or a state of 128 numbers (`hidden=128` in
# `model_of`). How far does its memory reach now?
#
# <details>
# <summary>Solution 1</summary>
#
# Both help. With 2,000 steps the accuracy at distance 20 rises from 13% to 73%, but at distance 40 the RNN still
# guesses. With 128 numbers it is right at distance 20, and in 87% of the cases at distance 40. The memory reaches
# further, but the accuracy still depends on the distance.
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
far = [20] if SHORT else [10, 20, 40]
print(f"distance:             {'  '.join(f'{T:6d}' for T in far)}")
variants = {"400 steps, 32 numbers": (400, 32), "2,000 steps": (2000, 32), "128 numbers": (400, 128)}
reached = {}
for name, (steps, hidden) in variants.items():
    if SHORT and name != "128 numbers":
        continue
    reached[name] = [accuracy_after_training(model_of("RNN", T, 0, hidden), T, 0, steps) for T in far]
    print(f"{name:21s} {'  '.join(f'{score:6.1%}' for score in reached[name])}")
assert reached["128 numbers"][-2:][0] > 0.9
if not SHORT:
    assert reached["2,000 steps"][1] > 0.5 > 0.3 > reached["2,000 steps"][2] and reached["128 numbers"][2] > 0.6

# %% [markdown]
# **Exercise 2.** Remove the position vectors from attention. What accuracy does it reach now for $T = 1$ and for $T =
# 5$? Why is it better than guessing?
#
# <details>
# <summary>Solution 2</summary>
#
# For $T = 1$ it reaches 100%. The query comes from the last symbol, so the network knows which of the two symbols is
# the last, and the other one is the answer. For $T = 5$ it reaches 35%. Without positions the network sees a set: it
# knows which symbols occur and how often, but not which came first. The best answer is then the most frequent symbol,
# which is right in 39% of the cases. Guessing is right in 12.5%.
#
# </details>


# %% tags=["hide-cell"]
# Solution 2
class WithoutPositions(AttentionWithPositions):
    def __init__(self, length, dim, seed):
        super().__init__(length, dim, seed)
        del self.positions

    def forward(self, x, rng=None):
        return self.attention(x)


for T in (1, 5):
    unordered = accuracy_after_training(Recall(WithoutPositions(T + 1, DIM, 0), DIM, 0), T, 0)
    draws = np.random.default_rng(0).integers(SYMBOLS, size=(20_000, T))  # all symbols but the last
    counts = (draws[:, :, None] == np.arange(SYMBOLS)).sum(axis=1)  # (20000, 8)
    best = counts.max(axis=1).mean() / T
    print(f"T = {T}: {unordered:.1%} without positions; naming the most frequent symbol is right in {best:.1%}")
    assert best - 0.1 < unordered < best + 0.03

# %% [markdown]
# **Exercise 3.** Initialize `recurrent` 1.5 times larger. How does the gradient depend on the distance now?
#
# <details>
# <summary>Solution 3</summary>
#
# With 1.5 times as large weights the gradient still decays, but only by a factor of 0.90 a step instead of 0.66. With
# twice as large weights it *grows*, by a factor of 1.05 a step. This is called an *exploding gradient*. Training is
# difficult in both cases. Weights at which the gradient keeps its size exist, but training moves them.
#
# </details>


# %% tags=["hide-cell"]
# Solution 3
def gradient_with(factor, seed):
    model = model_of("RNN", LENGTH - 1, seed)
    model.core.recurrent.data = factor * model.core.recurrent.data
    return gradient_by_distance(model, seed)


rates = {}
for factor in (1.0, 1.5, 2.0):
    size = np.mean([gradient_with(factor, seed) for seed in range(5)], axis=0)
    rates[factor] = (size[40] / size[10]) ** (1 / 30)
    print(f"weights {factor} times as large: a factor {rates[factor]:.2f} a step")
assert [round(rate, 2) for rate in rates.values()] == [0.66, 0.90, 1.05]

# %% [markdown]
# Next: [2. Embedding: a table and a linear map](02_embedding.py)
