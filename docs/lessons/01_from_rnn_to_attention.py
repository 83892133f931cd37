# %% [markdown]
# # 1. From RNN to attention
#
# This page compares two ways to process a sequence: a recurrent network, which reads one word after the other, and
# attention, which sees all words at once. You will measure how far each can remember and how its time grows, and you
# will be able to say what attention improves, and what it costs.
#
# **Words used here.** A *layer* is a function with numbers inside, its *parameters* or *weights*. A network is layers
# in a row. The *loss* is one number that says how wrong the network's answer is. The *gradient* of the loss says for
# each number in the network how the loss changes if that number grows a little; it has the shape of what it belongs to.
# *Training* is many small steps of the parameters against their gradient.
#
# **The rule of this library.** Every layer returns its output and its backward function: `y, back = layer(x)`, then
# `dx = back(dy)`. Here `dy` means dLoss/dy. The page on the [protocol](../protocol.md) has the details.
#
# Four names in the code belong to this rule. A `Parameter` is an array of weights, with its gradient in `.grad`.
# `accumulate` adds to that gradient. `@once` lets a `back` run only once, because it then releases the arrays that it
# kept. The functions in `F` have no weights of their own: their backward function, called `vjp`, returns a gradient for
# each argument.

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
# $\tanh$ maps any number into $(-1, 1)$. All that the network remembers of the past has to fit into $h$, and it passes
# through $W$ and $\tanh$ again at every step.
#
# **Backward.** Go through the steps from the last to the first. The state $h_t$ was used twice: as an output, and in
# the next step. So it gets two gradients, which are added. With $a_t$ for the argument of $\tanh$, and
# $\tanh'(a) = 1 - \tanh^2(a)$:
#
# $$
# da_t = (dy_t + dh_t)\,(1 - h_t^2), \qquad dh_{t-1} = W^\top da_t, \qquad dW = \sum_t da_t\, h_{t-1}^\top .
# $$
#
# This is called *backpropagation through time*; the last two formulas are those of any linear map
# ([derivation](../derivations/linear.md)). Here it is, forward and backward (B sequences, N steps, D numbers in each
# input, H in the state). In the code the states of all sequences are the rows of one array, so $W h$ becomes
# `h @ weight.T`, and $W^\top da$ becomes `da @ weight`:


# %%
class RNN(nn.Layer):
    """x (B, N, D) -> all states (B, N, H)."""

    def __init__(self, dim, hidden, seed, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.input = nn.Linear(dim, hidden, dtype=dtype, seed=rng)
        self.input.weight.data = rng.standard_normal((hidden, dim)) / dim**0.5
        self.recurrent = Parameter((rng.standard_normal((hidden, hidden)) / hidden**0.5).astype(dtype))

    def forward(self, x, rng=None):
        weight = self.recurrent.data
        u, back_input = self.input(x)  # (B, N, H), for all steps at once
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
# random directions, `check_complex_step` compares every single element (see [gradient checks](../gradcheck.md)). Both
# errors are relative to the largest element of the gradient.

# %%
x = np.random.default_rng(0).standard_normal((2, 5, 3))
layer = RNN(3, 4, seed=0, dtype="float64")
print(f"error along random directions: {minivit.check_vjp(layer, x):.1e} (allowed 1e-6)")
print(f"error of the worst element:    {minivit.check_complex_step(layer, x):.1e} (allowed 1e-12)")

# %% [markdown]
# ## One layer of attention
#
# Attention has no state. Each position in the sequence compares its query with the keys of all positions, and sums
# their values in proportion to how well they match. [Page 3](03_self_attention.py) explains it; here it is a finished
# layer. Attention by itself does not depend on the order of its inputs ([page 5](05_order.py)), so a learned vector for
# each position is added to the input. $x + p$ uses $p$ for every sequence, so the gradient of $p$ is the sum over the
# sequences.


# %%
class AttentionWithPositions(nn.Layer):
    """x (B, N, D) -> (B, N, D)."""

    def __init__(self, places, dim, seed, dtype="float32"):
        rng = np.random.default_rng(seed)
        self.positions = Parameter(rng.standard_normal((places, dim)).astype(dtype))
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


error = minivit.check_complex_step(AttentionWithPositions(5, 4, seed=0, dtype="float64"), x[:, :, [0, 1, 2, 0]])
print(f"attention with positions, error of the worst element: {error:.1e}")

# %% [markdown]
# ## The task: recall the first symbol
#
# The input is a sequence of random symbols, each one of eight. After the last one the network must name the *first*.
# The distance from the first to the last is $T$. The task tests only memory: guessing is right one time in eight.
#
# The network around both layers is the same: each symbol becomes a vector ([page 2](02_embedding.py)), then comes the
# layer, and from its output at the last position a linear map computes eight numbers, one for each symbol. The largest
# is the answer.

# %%
SYMBOLS, DIM = 8, 32


class Recall(nn.Layer):
    """Symbols (B, N), integers -> one number for each symbol (B, 8), read at the last position."""

    def __init__(self, core, seed):
        self.embed = nn.Embedding(SYMBOLS, DIM, seed=seed)
        self.embed.weight.data = np.random.default_rng(seed).standard_normal((SYMBOLS, DIM))
        self.core = core
        self.head = nn.Linear(DIM, SYMBOLS, seed=seed)

    def check_dtype(self, x):
        """Symbols are integers, and that is fine."""

    def forward(self, x, rng=None):
        vectors, back_embed = self.embed(x)  # (B, N, D)
        y, back_core = self.core(vectors)  # (B, N, D)
        scores, back_head = self.head(y[:, -1])  # (B, 8)

        @once
        def back(dscores):
            dy = np.zeros_like(y)
            dy[:, -1] = back_head(dscores)  # the other positions are not read
            dvectors = back_core(dy)
            back_embed(dvectors)
            return dvectors

        return scores, back


def model_of(kind, distance, seed):
    core = RNN(DIM, DIM, seed) if kind == "RNN" else AttentionWithPositions(distance + 1, DIM, seed)
    return Recall(core, seed)


# %% [markdown]
# Training is the same for both, too. The loss is the cross-entropy: minus the logarithm of the probability that the
# network gives to the right symbol ([derivation](../derivations/cross_entropy.md)). `AdamW` is an optimizer: it chooses
# the size of each parameter's step; `lr`, the *learning rate*, scales them all. Each step uses 64 sequences, a *batch*,
# and `zero_grad` first clears the gradients of the step before. A *seed* fixes all random numbers.


# %%
def accuracy_after_training(kind, distance, seed, steps=400, batch=64):
    model, rng = model_of(kind, distance, seed), np.random.default_rng(seed)
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
        [[accuracy_after_training(kind, T, seed) for T in distances] for seed in seeds]
    )  # (seeds, distances)
    for kind in ("RNN", "attention")
}
print(f"distance:  {'  '.join(f'{T:6d}' for T in distances)}")
for kind, scores in found.items():
    print(f"{kind:10s} {'  '.join(f'{score:6.1%}' for score in scores.mean(axis=0))}   mean of {len(seeds)} seed(s)")

assert found["RNN"][:, :2].min() > 0.9, "over a short distance the RNN remembers"
assert found["RNN"][:, -1].max() < 0.4, "over a long one it guesses"
assert found["attention"].min() > 0.6, "for attention the distance does not matter"

# %%
figure, axes = figures.new(width=7.0, height=3.4)
for kind, scores in found.items():
    axes.plot(distances, 100 * scores.mean(axis=0), label=kind)
axes.axhline(100 / SYMBOLS, color=figures.QUIET, lw=1, ls=":")
axes.text(distances[0], 100 / SYMBOLS + 2, "guessing", color=figures.QUIET)
axes.set(xscale="log", ylim=(0, 105), xlabel="distance to the symbol (steps)", ylabel="answers that are right (%)")
axes.set_xticks(distances, [str(T) for T in distances])
axes.minorticks_off()
axes.legend(loc="center left")
figures.show(
    figure,
    "01_recall",
    alt="Share of right answers against the distance: attention stays near 100 per cent, the RNN falls to guessing "
    "between about 10 and 20 steps.",
)

# %% [markdown]
# ## Why the RNN forgets
#
# To learn that the first symbol matters, the network needs a gradient: the gradient of the loss with respect to the
# first vector must not be 0. In the backward pass it is multiplied by $W^\top$ and by $1 - h^2$ at each step. $1 - h^2$
# is below 1, so after many steps little is left. This can be measured on untrained networks: the size of the gradient
# at each position, with the positions counted from the end.

# %%
LENGTH = 60


def gradient_by_distance(kind, seed):
    """The norm of dLoss/dvector at each position, mean over sequences: (N,), the last position first."""
    model = model_of(kind, LENGTH - 1, seed)
    symbols = np.random.default_rng(seed).integers(SYMBOLS, size=(64, LENGTH))
    scores, back = model(symbols)
    _, back_loss = F.softmax_cross_entropy(scores, symbols[:, 0])
    dvectors = back(back_loss())  # (B, N, D)
    return np.sqrt((dvectors**2).sum(axis=2)).mean(axis=0)[::-1]


sizes = {kind: np.mean([gradient_by_distance(kind, seed) for seed in range(5)], axis=0) for kind in found}
for kind, size in sizes.items():
    per_step = (size[40] / size[10]) ** (1 / 30)
    print(
        f"{kind}: gradient at distance 40 / gradient at 10 = {size[40] / size[10]:.1e}, a factor {per_step:.2f} a step"
    )

assert sizes["RNN"][40] < 1e-3 * sizes["RNN"][10]
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
# A straight line on this logarithmic scale is decay by the same factor at each step: exponential. Attention connects
# any two positions in a single step, so the distance does not matter.
#
# This is the plain RNN. Gates, as in the LSTM (Hochreiter and Schmidhuber 1997), were invented against this decay and
# remember much longer. They do not change the point of the next section.
#
# ## What can be computed in parallel
#
# Step $t$ of an RNN needs the state of step $t - 1$. So $N$ steps are $N$ small products, one after the other, however
# many cores the machine has. Attention has no such order: it consists of a few large products over all positions. But
# it compares each position with each, which makes $N^2$ scores.
#
# Count the multiplications with their additions, for one sequence and $D$ channels. The RNN has two products of a
# $D \times D$ matrix with a vector in each step: $2 N D^2$. Attention has four, and the scores and weighted sums:
# $4 N D^2 + 2 N^2 D$. Backward needs about twice as many again, in both.
#
# Below are the times of forward and backward for one sequence, and how many million of these operations the machine
# does in a millisecond.

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
# The RNN's rate does not grow with the sequence: each step is a small product, and most of its time is spent waiting
# for the step before and for Python. Attention does more arithmetic, yet it takes less time unless the sequence is very
# long, because its products are large. On a GPU, which works on thousands of numbers at once, this matters even more.
#
# But attention has a cost. For long sequences the quadratic term dominates; [page 8](08_swin.py) shows how the Swin
# Transformer avoids it. For an image of 14 x 14 patches, $N$ is 196, and the quadratic term is still small.
#
# ## What you have seen
#
# - An RNN carries all its information through every step. Its gradient decays by a factor at each of them, so it did
#   not learn to remember over more than some 10 to 20 steps.
# - Attention connects any two positions in one step. Its memory and its gradient do not depend on the distance.
# - The RNN's steps are sequential. Attention is a few large products, but has $N^2$ scores.
# - Both backward passes were written by hand and checked.
#
# ## Try it
#
# 1. Give the RNN 2,000 steps of training instead of 400, or a state of 128 numbers. How far does its memory reach now?
# 2. Remove the positions: multiply `self.positions.data` by 0 in `forward`, and their gradient by 0 in `back`. What
#    accuracy does attention reach now, and why is it better than guessing, especially for $T = 1$?
# 3. Initialize `recurrent` 1.5 times larger. How does the gradient depend on the distance now?
#
# Next: [2. Embedding: a table and a linear map](02_embedding.py)
