"""Write a layer with a wrong gradient, let the check find the error, and fix it.

    python examples/check_your_layer.py

The layer is RMSNorm (Zhang and Sennrich 2019): each row divided by its root mean square, then given a gain.
"""

import numpy as np

import minivit
from minivit import nn
from minivit.protocol import once


class RMSNorm(nn.Layer):
    """y = gain * x / rms, rms = sqrt(mean(x^2) + eps): (..., D) -> (..., D)."""

    def __init__(self, dim, eps=1e-6):
        self.gain = nn.Parameter(np.ones(dim))
        self.eps = eps

    def forward(self, x, rng=None):
        rms = np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)  # (..., 1)
        hat = x / rms

        @once
        def back(dy):
            self.gain.accumulate(self.gain_gradient(dy, hat))
            return self.input_gradient(dy * self.gain.data, hat, rms)

        return hat * self.gain.data, back

    def gain_gradient(self, dy, hat):
        return (dy * hat).reshape(-1, hat.shape[-1]).sum(axis=0)  # every row used the same gain

    def input_gradient(self, dhat, hat, rms):
        # x moves its own element, and through rms every element of its row
        return (dhat - hat * (dhat * hat).mean(axis=-1, keepdims=True)) / rms


class Forgetful(RMSNorm):
    """The common mistake: rms treated as a constant."""

    def input_gradient(self, dhat, hat, rms):
        return dhat / rms


class SingleRow(RMSNorm):
    """A mistake that a batch of one row does not show: the sum over rows is missing from the gain's gradient."""

    def gain_gradient(self, dy, hat):
        return (dy * hat)[0]


def main():
    x = np.random.default_rng(0).standard_normal((3, 5))
    for layer in (Forgetful(5), SingleRow(5), RMSNorm(5)):
        name = type(layer).__name__
        try:
            by_difference = minivit.check_vjp(layer, x)
            by_complex_step = minivit.check_complex_step(layer, x)
        except minivit.GradientError as error:
            print(f"{name}: WRONG\n  {error}\n")
        else:
            print(f"{name}: passes; errors {by_difference:.0e} (5-point) and {by_complex_step:.0e} (complex step)")

    print("\nWith one row, SingleRow looks right:")
    print(f"  error {minivit.check_vjp(SingleRow(5), x[:1]):.0e}. So a check needs at least two rows, two tokens,")
    print("  a random dy, and parameters away from their initial values. See docs/gradcheck.md.")


if __name__ == "__main__":
    main()
