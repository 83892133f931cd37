"""Classify an image, with any published or self-trained weights, and explain the prediction.

    python examples/classify_image.py cat.jpg --weights vit_b_16-c867db91.pth --labels imagenet.txt
    python examples/classify_image.py cat.jpg --weights vit_tiny_patch16_224 --explain cat.png
    python examples/classify_image.py seven.png --weights runs/mnist_vit --explain seven.svg

The program is `minivit classify`: minivit/programs/classify.py shows the calls, and docs/classify_an_image.md says what
the figures mean. In short, for one image (pip install Pillow matplotlib):

    model = minivit.from_pretrained("model.safetensors")
    images = preprocessing("model.safetensors", model)("cat.jpg")[None]  # (1, C, H, W)
    probabilities, _ = minivit.functional.softmax(model.predict(images))  # (1, K)
"""

import sys

from minivit.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["classify", *sys.argv[1:]]))
