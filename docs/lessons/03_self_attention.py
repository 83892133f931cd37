# %% [markdown]
# # 3. Self-attention by hand
#
# This page computes attention among four words. You will compute it number by number, and then as matrix products. You
# will find out why scores are divided by $\sqrt d$. Then you will write the backward pass, and check it.
#
# **Run time.** The code of this page takes about 2 s on one core of a server processor.
#
# **Words used here.** A *token* is a vector that stands for something: a word, or a piece of an image ([lesson
# 2](02_embedding.py)). Vectors are rows: `x` of shape (N, D) holds N tokens of D numbers. `dname` is the gradient
# dLoss/dname, and `y, back = layer(x)` is the rule of this library ([lesson 1](01_from_rnn_to_attention.py)).

# %%
import os

import numpy as np

import minivit
from minivit import functional as F, nn
from minivit.draw import figures
from minivit.protocol import once

SHORT = os.environ.get("MINIVIT_LESSONS") == "short"
np.set_printoptions(precision=2, suppress=True)

# %% [markdown]
# ## Query, key and value
#
# In attention, each token collects information from all tokens, including itself. For this purpose each token $x$ is
# mapped three times, by three matrices:
#
# - the **query** $q = x W_q$: what the token looks for;
# - the **key** $k = x W_k$: what queries are compared with;
# - the **value** $v = x W_v$: what the token passes to the tokens whose queries match its key.
#
# A query matches a key if their dot product $q \cdot k = \sum_c q_c k_c$ is large. In a real network the three matrices
# are learned. Here we choose them by hand, so that the result can be interpreted. The tokens have one number for each
# kind of word:

# %%
words = ["the", "cat", "sleeps", "it"]
x = np.array(
    [
        [1.0, 0, 0, 0],  # article
        [0, 1.0, 0, 0],  # noun
        [0, 0, 1.0, 0],  # verb
        [0, 0, 0, 1.0],  # pronoun
    ]
)  # (N, D) = (4, 4)

# columns of queries and keys: [noun, verb]
w_q = np.array([[4.0, 0], [0, 4.0], [4.0, 0], [4.0, 0]])  # article, verb and pronoun look for a noun, the noun a verb
w_k = np.array([[0, 0], [1.0, 0], [0, 1.0], [0, 0]])  # the noun's key matches "noun", the verb's matches "verb"
w_v = np.eye(4)  # the value of a token is the token itself

q, k, v = x @ w_q, x @ w_k, x @ w_v  # (N, d), (N, d), (N, 4), with d = 2
for word, query, key in zip(words, q, k):
    print(f"{word:7s} has query {query} and key {key}")

# %% [markdown]
# ## Number by number
#
# For token `n` as the query, there are four steps:
#
# 1. Compute its *scores* $s_m = q_n \cdot k_m / \sqrt d$, one for each token $m$. Here $d$ is the number of elements of
#    a query. The division by $\sqrt d$ is explained below.
# 2. Take the exponential of each score. $e^{s_m}$ is positive.
# 3. Divide by their sum. This gives the *attention weights* $a_m = e^{s_m} / \sum_l e^{s_l}$. Steps 2 and 3 together
#    are called *softmax* ([derivation](../derivations/softmax.md)).
# 4. The result is the weighted mean of the values: $b_n = \sum_m a_m v_m$.
#
# **Predict first.** Which word gets most of the weight of "it"? Which word gets most of the weight of "cat"?

# %%
N, d = q.shape
weights, b = np.zeros((N, N)), np.zeros_like(v)
for n in range(N):
    scores = [sum(q[n, c] * k[m, c] for c in range(d)) / d**0.5 for m in range(N)]
    positive = [np.exp(score) for score in scores]
    for m in range(N):
        weights[n, m] = positive[m] / sum(positive)
        b[n] += weights[n, m] * v[m]

for word, row in zip(words, weights):
    print(f"{word:7s} attends to " + ", ".join(f"{other} {weight:4.0%}" for other, weight in zip(words, row)))

# %% [markdown]
# "It" looks for a noun and attends to "cat". "Cat" looks for a verb and attends to "sleeps". The weights are positive
# and sum to 1. So each element of $b_n$ lies between the smallest and the largest of that element in the values.

# %%
assert np.allclose(weights.sum(axis=1), 1)
assert (b <= v.max(axis=0)).all() and (b >= v.min(axis=0)).all()
assert weights[3].argmax() == 1  # "it" attends to "cat"
print("the output of the token 'it':", b[3], "- mostly the noun")

# %%
figure, axes = figures.new(width=4.6, height=3.8)
image = axes.imshow(weights, cmap=figures.HEAT, vmin=0, vmax=1)
for n in range(N):
    for m in range(N):
        color = "white" if weights[n, m] < 0.5 else "black"
        axes.text(m, n, f"{weights[n, m]:.2f}", ha="center", va="center", color=color)
axes.set_xticks(range(N), words)
axes.set_yticks(range(N), words)
axes.set(xlabel="key", ylabel="query")
figure.colorbar(image, ax=axes, label="weight")
figures.show(
    figure,
    "03_weights",
    alt="Four by four weights: the words the, sleeps and it give most of theirs to cat, and cat gives most to sleeps.",
)

# %% [markdown]
# ## All tokens together
#
# The rows do not depend on each other, so the loops can be written as matrix products. One product gives all scores,
# and one gives all weighted sums:
#
# $$
# S = \frac{Q K^\top}{\sqrt d}\;(N, N), \qquad A = \operatorname{softmax}(S)\;(N, N), \qquad B = A V\;(N, D) .
# $$
#
# The capital letters are matrices with one row for each token. Two large products are faster than many small ones,
# which is an advantage over a network that processes word by word.

# %%
scores = q @ k.T / d**0.5  # (N, d)(d, N) -> (N, N)
positive = np.exp(scores)
all_weights = positive / positive.sum(axis=1, keepdims=True)  # each row by its own sum
all_b = all_weights @ v  # (N, N)(N, D) -> (N, D)

from_library, _ = F.scaled_dot_product_attention(q, k, v)
assert np.allclose(all_weights, weights, rtol=1e-12) and np.allclose(all_b, b, rtol=1e-12)
assert np.allclose(from_library, b, rtol=1e-12)
print(
    f"loops and products differ by {np.abs(all_b - b).max():.0e}, the library by {np.abs(from_library - b).max():.0e}"
)

# %% [markdown]
# The library's function does the same with three differences. It accepts further axes in front, for batches and heads.
# It divides the output by the sum instead of the weights, which are more numbers. And it prevents $e^s$ from
# overflowing.
#
# ## Why the square root of $d$
#
# Take queries and keys whose numbers are independent, with mean 0 and variance 1. The product $q \cdot k$ is a sum of
# $d$ terms. Each term has variance 1, so the sum has variance $d$ and standard deviation $\sqrt d$: the longer the
# vectors, the larger the scores. Divided by $\sqrt d$, they have variance 1 for each $d$.
#
# Large scores are a problem, because softmax then gives nearly all weight to one token. And where a weight is nearly 0
# or nearly 1, it hardly changes with its score: its derivative is $a_m (1 - a_m)$. The next cell measures three numbers
# with one query and 64 keys, as means over many random draws: the standard deviation of the scores, the largest weight,
# and the size of the gradient that reaches the scores.
#
# **Predict first.** Without the division and with $d = 64$: how much weight does the largest of the 64 weights have? If
# all were equal, each would be 1/64, which is 0.016.

# %%
widths = [1, 4, 16, 64, 256, 1024]
draws, keys = (100 if SHORT else 500), 64
rng = np.random.default_rng(0)
measured = {"without": [], "with": []}
for width in widths:
    query, key = rng.standard_normal((draws, 1, width)), rng.standard_normal((draws, keys, width))
    products = (query @ key.swapaxes(1, 2))[:, 0]  # (draws, keys)
    for name, scale in (("without", 1.0), ("with", width**-0.5)):
        s = products * scale
        shares, vjp = F.softmax(s)  # each row sums to 1
        dshares = rng.standard_normal(shares.shape)  # a gradient as it could come from later in the network
        ds = vjp(dshares)
        size = np.sqrt((ds**2).sum(axis=1)).mean()
        measured[name].append((s.std(), shares.max(axis=1).mean(), size))

print("        score's deviation    largest weight       size of the gradient")
print("   d    without     with     without     with     without     with")
for width, a, c in zip(widths, measured["without"], measured["with"]):
    print(f"{width:4d}   {a[0]:7.2f}  {c[0]:7.2f}   {a[1]:9.2f}  {c[1]:7.2f}   {a[2]:9.3f}  {c[2]:7.3f}")

without, scaled = np.array(measured["without"]), np.array(measured["with"])
assert np.allclose(without[:, 0], np.sqrt(widths), rtol=0.1)  # the deviation is the square root of d
assert np.allclose(scaled[1:, 0], 1, rtol=0.1)
assert without[-1, 1] > 0.9 and scaled[-1, 1] < 0.3  # one token gets nearly all weight, or many have some
assert without[-1, 2] < 0.5 * scaled[-1, 2]

# %%
figure, panels = figures.new(1, 3, width=9.5, height=3.2)
titles = ("standard deviation of a score", "largest of 64 weights", "size of the scores' gradient")
for panel, title, column in zip(panels, titles, range(3)):
    panel.plot(widths, without[:, column], label="q·k")
    panel.plot(widths, scaled[:, column], label="q·k / √d")
    panel.set(xscale="log", title=title, xlabel="d, numbers in a query", ylim=(0, None))
    panel.set_xticks(widths, [str(width) for width in widths])
    panel.minorticks_off()
panels[0].legend()
figures.show(
    figure,
    "03_scale",
    alt="Three measurements against d. Without the square root the scores grow, the largest weight goes to 1 and the "
    "gradient falls from d = 16 on; with it all three are level.",
)

# %% [markdown]
# At $d = 64$, the usual size, one token has about four fifths of the weight before any training. For larger $d$ the
# gradient vanishes. (For small $d$ it first grows a little, as some weights become larger than others.) With the
# division nothing depends on $d$, so the width of a network can be chosen freely.
#
# In a trained network queries and keys are no longer independent, and scores become large where that is useful. The
# division gives a good start: before training all tokens have some weight and some gradient.
#
# ## The backward pass
#
# The forward pass has three steps: scores, softmax, weighted sum. The backward pass takes them in reverse order. The
# full argument is in the [derivation](../derivations/attention.md).
#
# - $B = A V$ is a product, so $dA = dB\,V^\top$ and $dV = A^\top dB$.
# - Softmax acts on each row. A larger score raises its own weight and reduces all others of the row. With $m$ and $l$
#   for the elements of a row, $dS_m = A_m\,(dA_m - \sum_l A_l\, dA_l)$.
# - $S = Q K^\top / \sqrt d$ is a product again: $dQ = dS\,K / \sqrt d$ and $dK = dS^\top Q / \sqrt d$.


# %%
def attention(q, k, v):
    """q (N, d), k (M, d), v (M, D) -> (N, D), and the backward function."""
    scale = q.shape[1] ** -0.5
    scores = q @ k.T * scale  # (N, M)
    positive = np.exp(scores - scores.real.max())  # cancels below, and exp cannot overflow; the check uses complex x
    weights = positive / positive.sum(axis=1, keepdims=True)

    @once
    def back(db):
        dweights = db @ v.T  # (N, M)
        dscores = weights * (dweights - (weights * dweights).sum(axis=1, keepdims=True))
        return dscores @ k * scale, dscores.T @ q * scale, weights.T @ db  # dq, dk, dv

    return weights @ v, back


rng = np.random.default_rng(1)
q, k, v = rng.standard_normal((4, 3)), rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
print(f"error along random directions {minivit.check_vjp(attention, q, k, v):.1e} (allowed 1e-6)")
print(f"error of the worst element    {minivit.check_complex_step(attention, q, k, v):.1e} (allowed 1e-12)")

db = rng.standard_normal((4, 2))
mine, library = attention(q, k, v)[1](db), F.scaled_dot_product_attention(q, k, v)[1](db)
for name, a, c in zip(("dq", "dk", "dv"), mine, library):
    assert np.allclose(a, c, rtol=1e-10, atol=1e-13)
    print(f"{name}: by hand and from the library differ by {np.abs(a - c).max():.0e}")

# %% [markdown]
# ## Self-attention: from $x$ to $b$, and back
#
# It is called *self*-attention because queries, keys and values all come from the same tokens. The gradient reaches $x$
# along three paths, which are summed:
#
# $$
# dx = dQ\,W_q^\top + dK\,W_k^\top + dV\,W_v^\top, \qquad dW_q = x^\top dQ, \quad dW_k = x^\top dK, \quad
# dW_v = x^\top dV .
# $$


# %%
def self_attention(x, w_q, w_k, w_v):
    """x (N, D), three weights (D, d) -> (N, d), and the backward function."""
    b, back_attention = attention(x @ w_q, x @ w_k, x @ w_v)

    @once
    def back(db):
        dq, dk, dv = back_attention(db)
        dx = dq @ w_q.T + dk @ w_k.T + dv @ w_v.T
        return dx, x.T @ dq, x.T @ dk, x.T @ dv

    return b, back


D = 4
x, w_q, w_k, w_v = rng.standard_normal((5, D)), *rng.standard_normal((3, D, D))
print(f"error along random directions {minivit.check_vjp(self_attention, x, w_q, w_k, w_v):.1e}")
print(f"error of the worst element    {minivit.check_complex_step(self_attention, x, w_q, w_k, w_v):.1e}")

# %% [markdown]
# The library's layer `nn.Attention` does the same with two additions. Its three weights are stacked in one matrix
# `qkv`, so that one product computes all three, and a linear map `proj` of the output follows. It can also have several
# *heads*, which [lesson 4](04_many_heads.py) explains. With one head, and with the identity as `proj`, our function and
# the layer must agree, and so must their gradients.

# %%
layer = nn.Attention(D, num_heads=1, qkv_bias=False, dtype="float64")
layer.qkv.weight.data = np.concatenate((w_q, w_k, w_v), axis=1).T  # (3D, D): stored as (outputs, inputs)
layer.proj.weight.data = np.eye(D)

b, back = self_attention(x, w_q, w_k, w_v)
y, back_layer = layer(x[None])  # a batch of one, (1, N, D)
db = rng.standard_normal(b.shape)
dx, dw_q, dw_k, dw_v = back(db)
dx_layer = back_layer(db[None])

assert np.allclose(y[0], b, rtol=1e-10, atol=1e-13)
assert np.allclose(dx_layer[0], dx, rtol=1e-10, atol=1e-12)
assert np.allclose(layer.qkv.weight.grad.T, np.concatenate((dw_q, dw_k, dw_v), axis=1), rtol=1e-10, atol=1e-12)
print(f"nn.Attention: outputs differ by {np.abs(y[0] - b).max():.0e}, dx by {np.abs(dx_layer[0] - dx).max():.0e}")

# %% [markdown]
# ## What you have seen
#
# - A token's query is compared with the keys of all tokens: the scores are $q \cdot k / \sqrt d$.
# - The weights are a softmax of the scores. The result $b$ is the mean of the values with these weights.
# - Given q, k and v, attention is two products and one softmax for all tokens together.
# - Without $\sqrt d$ the scores grow with the width: one token gets all the weight, and for large $d$ the gradient
#   shrinks.
# - The backward pass is five formulas, and they pass the gradient checks.
#
# ## Try it
#
# **Exercise 1.** Give queries and keys a third number, "article", so that "cat" attends to "the".
#
# <details>
# <summary>Solution 1</summary>
#
# The key of "the" gets a 1 in the third column, and the query of "cat" gets its 4 there instead of in the second. Now
# "cat" gives 77% of its weight to "the". The other words still attend to "cat".
#
# </details>

# %% tags=["hide-cell"]
# Solution 1
sentence = np.eye(4)  # the, cat, sleeps, it
three_q = np.array([[4.0, 0, 0], [0, 0, 4.0], [4.0, 0, 0], [4.0, 0, 0]])  # columns: noun, verb, article
three_k = np.array([[0, 0, 1.0], [1.0, 0, 0], [0, 1.0, 0], [0, 0, 0]])
shares, _ = F.softmax((sentence @ three_q) @ (sentence @ three_k).T / 3**0.5)
for word, row in zip(words, shares):
    print(f"{word:7s} attends to " + ", ".join(f"{other} {weight:4.0%}" for other, weight in zip(words, row)))
assert [words[m] for m in shares.argmax(axis=1)] == ["cat", "the", "cat", "cat"]
assert round(float(shares[1, 0]), 2) == 0.77

# %% [markdown]
# **Exercise 2.** Leave out `- (weights * dweights).sum(...)` in the backward pass of `attention`. What does `check_vjp`
# say?
#
# <details>
# <summary>Solution 2</summary>
#
# It raises a `GradientError`. The message names the argument (1, the keys, counted from 0) and the element with the
# largest error. The missing term says that a score also changes the other weights of its row, because all weights of a
# row share one sum. The gradient of the values is still right, because it does not pass through the softmax.
#
# </details>


# %% tags=["hide-cell"]
# Solution 2
def without_the_sum(q, k, v):
    y, right = attention(q, k, v)
    weights, _ = F.softmax(q @ k.T * q.shape[1] ** -0.5)

    @once
    def back(db):
        dscores = weights * (db @ v.T)  # the sum is missing
        return dscores @ k * q.shape[1] ** -0.5, dscores.T @ q * q.shape[1] ** -0.5, right(db)[2]

    return y, back


try:
    minivit.check_vjp(without_the_sum, q, k, v)
    raise AssertionError("the wrong gradient must be found")
except minivit.GradientError as error:
    print(error)
    assert "argument 1" in str(error)

# %% [markdown]
# **Exercise 3.** Divide by $d$ instead of $\sqrt d$. How does the largest weight depend on $d$ now? What is the problem
# with that?
#
# <details>
# <summary>Solution 3</summary>
#
# As $d$ grows, the largest of the 64 weights falls towards 1/64. At $d = 1024$ it is 0.017, so all weights are nearly
# equal. Before training every token then gets nearly the same mean of all values, whatever its query is. The gradient
# of the products $q \cdot k$ is also smaller by a factor of about $\sqrt d$, so the queries and keys learn slowly.
#
# </details>

# %% tags=["hide-cell"]
# Solution 3
by_d = []
for width in widths:
    query, key = rng.standard_normal((draws, 1, width)), rng.standard_normal((draws, keys, width))
    shares, vjp = F.softmax((query @ key.swapaxes(1, 2))[:, 0] / width)
    dscores = vjp(rng.standard_normal(shares.shape)) / width  # of the products q k, as they are before the division
    by_d.append((shares.max(axis=1).mean(), np.sqrt((dscores**2).sum(axis=1)).mean()))
    print(f"d = {width:4d}: largest weight {by_d[-1][0]:.3f}, gradient of the products {by_d[-1][1]:.1e}")
assert by_d[-1][0] < 1.2 / keys, "nearly equal weights"
assert by_d[-1][1] < 0.1 * scaled[-1, 2] * widths[-1] ** -0.5, "and a far smaller gradient than with the square root"

# %% [markdown]
# Next: [4. Many heads](04_many_heads.py)
