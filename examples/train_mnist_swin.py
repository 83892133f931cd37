"""Train a Swin Transformer on MNIST, every gradient by hand: the sister of train_mnist_vit.py.

    python examples/train_mnist_swin.py                    # finds MNIST, trains for less than ten minutes

Ctrl-C stops after the current step; `--resume` goes on from there. The model and its recipes stand here; what happens
with them, from the data to the model card, is one page: `train` in minivit/training/mnist.py. What its windows, shifts
and masks look like is shown by explain_swin.py.
"""

import minivit
from minivit.training.mnist import Learner, Recipe, main

# 28x28 pixels -> a map of 7x7 patches, padded to 8x8: four windows of 4x4, plain in the first block, shifted by 2 in
# the second -> the odd map merged to 4x4, which one window covers
MODEL = {
    "img_size": 28,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 48,
    "depths": (2, 2),
    "num_heads": (3, 6),
    "window_size": 4,
    "mlp_ratio": 2.0,
    "drop_path_rate": 0.0,  # a network this small has nothing to spare
}

RECIPES = {
    "default": Recipe(MODEL, epochs=14),
    "subset": Recipe(MODEL, epochs=40, batch_size=64, held_out=200),  # 4,000 images: more epochs, smaller batches
}

if __name__ == "__main__":
    main({"swin": Learner(minivit.Swin, "A Swin Transformer for handwritten digits", RECIPES)}, __doc__)
