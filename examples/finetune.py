"""Fine-tune a pretrained model on your own images, every gradient by hand.

    python examples/finetune.py --weights model.safetensors --data pets     # pets/cat/*.jpg, pets/dog/*.jpg, ...
    python examples/finetune.py --weights model.safetensors --data pets --head-only
    python examples/finetune.py --weights model.safetensors --data mnist --limit 1000
    python examples/finetune.py --data mnist --limit 1000                   # from scratch, to compare
    python examples/classify_image.py rex.jpg --weights runs/finetune/model.safetensors

The program is `minivit finetune`: minivit/programs/finetune.py shows the calls, and docs/finetuning.md has the options.
In short, for a folder of images:

    learn, held_out = split_folder("pets")
    model = minivit.from_pretrained("model.safetensors", num_classes=len(learn.classes))
    task = folder_task(learn, held_out, preprocessing("model.safetensors", model))
    outcome = fine_tune(model, task, Recipe(epochs=40), "runs/finetune")
"""

import sys

from minivit.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
