"""The measured ratios of docs/performance.md and of both READMEs, written from one file, benchmarks/measured.json.

    python benchmarks/vs_pytorch.py --case vit-s16 --bfloat16 --json a.json
    python benchmarks/vs_runtimes.py --case swin-t-b1 --json b.json
    python benchmarks/write_tables.py a.json b.json --processor xeon     # adds what they found, and writes the tables
    python benchmarks/write_tables.py                                    # writes the tables

`--processor` is a key of "processors" in measured.json, where a new machine gets its description by hand. A ratio is
minivit's time over the rival's: the median, and the quartiles of the turns or the range of several runs, or one run.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from datetime import date
from pathlib import Path
from typing import Any

from scaling import write_between

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "benchmarks" / "measured.json"
PERFORMANCE, ENGLISH, CHINESE = (ROOT / name for name in ("docs/performance.md", "README.md", "README.zh-CN.md"))
MODELS = {
    "flagship": "MNIST ViT, patch 4, dim 64, 6 blocks, batch 128",
    "small": "MNIST ViT, patch 4, dim 32, 3 blocks, batch 100",
    "swin-mnist": "MNIST Swin, dim 24 and 48, batch 128",
    "vit-ti16": "ViT-Ti/16, 224 pixels, batch 8",
    "vit-s16": "ViT-S/16, 224 pixels, batch 4",
    "hybrid-s": "ViT-S with a ResNet-26 stem, batch 4",
    "swin-t": "Swin-T, 224 pixels, batch 4",
    **{
        f"{case}-b{batch}": f"{name}, {images}"
        for case, name in (
            ("vit-ti16", "ViT-Ti/16"), ("vit-s16", "ViT-S/16"), ("vit-b16", "ViT-B/16"),
            ("hybrid-s", "ViT-S with a ResNet-26 stem"), ("swin-t", "Swin-T"),
        )
        for batch, images in ((1, "one image"), (2, "two images"), (8, "eight images"), (32, "32 images"))
    },
}  # fmt: skip
README_TRAINING = ("flagship", "swin-t")
README_INFERENCE = ("vit-ti16-b1", "vit-b16-b1", "vit-b16-b8", "swin-t-b1", "swin-t-b8")

Entry = dict[str, Any]


def markers(table: str) -> tuple[str, str]:
    """The lines of a page between which a table stands."""
    return f"<!-- {table}: written by benchmarks/write_tables.py -->", f"<!-- end of {table} -->"


def entries_of(path: Path, processor: str) -> list[Entry]:
    """What one run of vs_pytorch.py or vs_runtimes.py found, an entry for each case."""
    found = json.loads(path.read_text(encoding="utf-8"))
    entries = []
    for case in dict.fromkeys(row["case"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["case"] == case and not row["side"].endswith("trial)")]
        mine = [row for row in rows if row["side"].startswith("minivit")]
        others = found["quietness"][case]["other_programs_cores"]
        entry: Entry = {"case": case, "processor": processor, "date": str(date.today()), "others": others}
        for rival, ratio in mine[0].get("over", {}).items():
            library, _, variant = rival.partition(": ")
            entry["bfloat16" if variant.startswith("bfloat16") else library] = [ratio["ratio"], *ratio["quartiles"]]
        if "PyTorch" not in entry and rows[0]["side"].startswith("PyTorch"):
            entry["PyTorch"] = [mine[0]["ratio"], *mine[0]["ratio_quartiles"]]
            entry["best"] = rows[0]["side"].partition(": ")[2]
            entry["every token"] = [mine[-1]["ratio"], *mine[-1]["ratio_quartiles"]] if len(mine) > 1 else None
        if mine[0].get("peak_ratio"):
            entry["memory"] = mine[0]["peak_ratio"]
        entries.append(entry)
    return entries


def add(measured: dict[str, Any], new: list[Entry]) -> None:
    """Put entries into the file's content; a case that the processor has already is replaced."""
    for entry in new:
        if entry["processor"] not in measured["processors"]:
            raise SystemExit(f"{MEASURED.name} describes no processor {entry['processor']!r}: add it there first")
        key = entry["case"], entry["processor"]
        kept = [each for each in measured["entries"] if (each["case"], each["processor"]) != key]
        measured["entries"] = [*kept, entry]
    order = list(MODELS), list(measured["processors"])
    measured["entries"].sort(key=lambda each: (order[0].index(each["case"]), order[1].index(each["processor"])))


def dumped(measured: dict[str, Any]) -> str:
    """The file's text, a line for each processor and entry."""
    processors = ",\n".join(f"  {json.dumps(key)}: {json.dumps(text)}" for key, text in measured["processors"].items())
    entries = ",\n".join("  " + json.dumps(_rounded(entry)) for entry in measured["entries"])
    return f'{{\n "processors": {{\n{processors}\n }},\n "entries": [\n{entries}\n ]\n}}\n'


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def ratio(value: list[float] | None) -> str:
    """A ratio and its spread in words."""
    if value is None:
        return ""
    text = f"{value[0]:.2f}"
    return text if len(value) == 1 else f"{text} ({value[1]:.2f} to {value[2]:.2f})"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in lines)


def training(measured: dict[str, Any]) -> str:
    head = ("case", "processor", "PyTorch's best", "time", "every token", "over bfloat16", "memory")
    rows = [
        (
            f"`{each['case']}`",
            measured["processors"][each["processor"]]["name"],
            each["best"],
            ratio(each["PyTorch"]),
            "the same" if each["case"].startswith("swin") else ratio(each.get("every token")),
            ratio(each.get("bfloat16")),
            f"{each['memory']:.2f}" if "memory" in each else "",
        )
        for each in measured["entries"]
        if "best" in each
    ]
    return table(head, rows)


def inference(measured: dict[str, Any]) -> str:
    head = ("case", "processor", "over ONNX Runtime", "over OpenVINO", "over PyTorch's best")
    rows = [
        (
            f"`{each['case']}`",
            measured["processors"][each["processor"]]["name"],
            *(ratio(each.get(rival)) for rival in ("ONNX Runtime", "OpenVINO", "PyTorch")),
        )
        for each in measured["entries"]
        if "OpenVINO" in each
    ]
    return table(head, rows)


def machines(measured: dict[str, Any]) -> str:
    facts = measured["processors"].values()
    lines = (f"- **{each['name']}**: {each['text']}." for each in facts)
    return "\n".join(textwrap.fill(line, 120, subsequent_indent="  ") for line in lines)


def readme(measured: dict[str, Any], head: tuple[str, ...], words: dict[str, str]) -> str:
    """A row for each model, training before inference; a ratio is the range over the processors.

    Args:
        measured: the file's content.
        head: the names of the columns.
        words: "train", "infer" and "to" in the README's language.
    """
    rows = []
    for cases, task in ((README_TRAINING, "train"), (README_INFERENCE, "infer")):
        for case in cases:
            entries = [each for each in measured["entries"] if each["case"] == case]
            rivals = ("PyTorch", "bfloat16", "ONNX Runtime", "OpenVINO")
            cells = [_range([each[rival][0] for each in entries if each.get(rival)], words["to"]) for rival in rivals]
            if any(cells):
                rows.append((f"{MODELS[case]}, {words[task]}", *cells))
    return table(head, rows)


def _range(ratios: list[float], to: str) -> str:
    ends = dict.fromkeys(f"{end(ratios):.2f}" for end in (min, max)) if ratios else ()
    return f" {to} ".join(ends)


def pages(measured: dict[str, Any]) -> list[tuple[Path, str, str]]:
    """(page, name of a table, its text)."""
    english = ("model", "PyTorch 2.13", "PyTorch in bfloat16", "ONNX Runtime", "OpenVINO")
    chinese = ("模型", *english[1:2], "PyTorch（bfloat16）", *english[3:])
    return [
        (PERFORMANCE, "training", training(measured)),
        (PERFORMANCE, "inference", inference(measured)),
        (PERFORMANCE, "processors", machines(measured)),
        (ENGLISH, "ratios", readme(measured, english, {"train": "training", "infer": "inference", "to": "to"})),
        (CHINESE, "ratios", readme(measured, chinese, {"train": "训练", "infer": "推理", "to": "至"})),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="what --json of a comparison has written")
    parser.add_argument("--processor", help="where they were measured, a key of measured.json")
    given = parser.parse_args()
    if given.results and not given.processor:
        parser.error("--processor says where the results were measured")
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    for path in given.results:
        add(measured, entries_of(path, given.processor))
    MEASURED.write_text(dumped(measured), encoding="utf-8")
    for page, name, text in pages(measured):
        write_between(page, markers(name), text)


if __name__ == "__main__":
    main()
