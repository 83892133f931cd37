"""Train a Vision Transformer on MNIST, every gradient by hand.

    python examples/train_mnist_vit.py                     # finds MNIST, trains for a few minutes
    python examples/train_mnist_vit.py --preset accurate   # up to an hour, 99.3 % and more

Ctrl-C stops after the current step; `--resume` goes on from there. The model and its recipes stand here; what happens
with them, from the data to the model card, is one page: `train` in minivit/training/mnist.py.
"""

import minivit
from minivit.training.mnist import Recipe, main

DIGITS = {"img_size": 28, "in_chans": 1, "num_classes": 10}

# 16 patches of 7x7 make every step cheap; 49 patches of 4x4 see more
QUICK = DIGITS | {"patch_size": 7, "embed_dim": 64, "depth": 4, "num_heads": 4, "mlp_ratio": 2.0}
FINE = DIGITS | {
    "patch_size": 4,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.05,
}

RECIPES = {
    "default": Recipe(QUICK),
    "subset": Recipe(QUICK, epochs=60, batch_size=64, held_out=200),  # 4,000 images: more epochs, smaller batches
    "accurate": Recipe(FINE, epochs=36, lr=1.5e-3, degrees=10, scale=0.1, ema=0.999),
}

if __name__ == "__main__":
    main(
        minivit.ViT,
        RECIPES,
        title="A Vision Transformer for handwritten digits",
        description=__doc__,
        out="runs/mnist_vit",
    )
