"""Train a Vision Transformer on MNIST, every gradient by hand.

    python examples/train_mnist_vit.py                     # finds MNIST, trains for a few minutes
    python examples/train_mnist_vit.py --model hybrid      # patches cut from the map of a small ResNet
    python examples/train_mnist_vit.py --preset accurate   # a quarter of an hour and more, 99.3 % and more

Ctrl-C stops after the current step; `--resume` goes on from there. The models and their recipes stand here; what
happens with them, from the data to the model card, is one page: `train` in minivit/training/mnist.py.
"""

import minivit
from minivit.training.mnist import Learner, Recipe, main

DIGITS = {"img_size": 28, "in_chans": 1, "num_classes": 10, "num_heads": 4, "embed_dim": 64, "mlp_ratio": 2.0}

# 16 patches of 7x7 make every step cheap; 49 patches of 4x4 see more
QUICK = DIGITS | {"patch_size": 7, "depth": 4}
FINE = DIGITS | {"patch_size": 4, "depth": 6, "drop_path_rate": 0.05}
# a stem of three strides: 28x28 pixels become a map of 4x4, and each of its places a token
HYBRID = DIGITS | {
    "resnet_layers": (1, 1),
    "resnet_width": 16,
    "resnet_groups": 4,
    "patch_size": 1,
    "depth": 3,
}

MODELS = {
    "vit": Learner(
        minivit.ViT,
        "A Vision Transformer for handwritten digits",
        {
            "default": Recipe(QUICK),
            "subset": Recipe(QUICK, epochs=60, batch_size=64, held_out=200),  # 4,000 images: more, smaller steps
            "accurate": Recipe(FINE, epochs=36, lr=1.5e-3, degrees=10, scale=0.1, ema=0.999),
        },
    ),
    "hybrid": Learner(
        minivit.ViT,
        "A hybrid of ResNet and Vision Transformer for handwritten digits",
        {
            "default": Recipe(HYBRID, epochs=14),
            "subset": Recipe(HYBRID, epochs=40, batch_size=64, held_out=200),
        },
    ),
}

if __name__ == "__main__":
    main(MODELS, __doc__)
