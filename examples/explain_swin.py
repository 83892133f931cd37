"""Show what Swin's windows do to a map: the roll, the labels, the masks, the biases, and the receptive field.

    python examples/explain_swin.py                                   # 8 x 8, windows of 4, shift 2
    python examples/explain_swin.py --map 7 7 --window 4 --shift 2    # does not divide: padding
    python examples/explain_swin.py --map 16 --part swin_reach        # only one part of the figure

Prints everything as text and draws it as one figure, explain_swin.png and .svg in the folder --out. The numbers come
from the functions that the models use, by minivit/observe/windows.py. docs/derivations/windows.md explains them.
"""

import argparse

from minivit import explain
from minivit.draw.windows import PARTS, write_pictures


def pair(name, numbers):
    """One number or two as (down, across)."""
    if len(numbers) > 2:
        raise ValueError(f"--{name} {' '.join(map(str, numbers))}: give one number, or two: down and across")
    return numbers[0], numbers[-1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = {"type": int, "nargs": "+", "metavar": "N"}
    parser.add_argument("--map", default=[8, 8], **size, help="height and width of the map (default: 8 8)")
    parser.add_argument("--window", default=[4], **size, help="side or sides of a window (default: 4)")
    parser.add_argument("--shift", **size, help="how far the windows shift (default: half a window)")
    parser.add_argument(
        "--blocks", type=int, default=4, metavar="N", help="number of blocks for the receptive field (default: 4)"
    )
    parser.add_argument("--place", **size, help="row and column of the output (default: the middle)")
    parser.add_argument("--mask-padding", action="store_true", help="mask padded positions")
    parser.add_argument("--out", default="runs/explain_swin", metavar="FOLDER", help="default: runs/explain_swin")
    parser.add_argument("--part", choices=PARTS, help="draw only this part, as an SVG file of its name")
    args = parser.parse_args()
    try:
        window = pair("window", args.window)
        shift = pair("shift", args.shift) if args.shift else (window[0] // 2, window[1] // 2)
        place = pair("place", args.place) if args.place else None
        at = explain.layout(pair("map", args.map), window, shift)
        text = explain.describe(at, args.blocks, args.mask_padding, place)
        files = write_pictures(args.out, at, args.blocks, args.mask_padding, place, part=args.part)
    except ValueError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(f"cannot write to --out {args.out}: {error}")
    print(text)
    if (window, shift) != (at.window, at.shift):
        print("\nOn an axis that the window covers completely, it shrinks to the map and does not shift.")
    if files:
        print("\nThe figure:", *files, sep="\n  ")
    else:
        print("\nFor the figure, which needs matplotlib: pip install matplotlib")


if __name__ == "__main__":
    main()
