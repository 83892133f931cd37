"""The command line: every command, on files in every layout, and every way to use it wrongly."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import minivit
from minivit import pretrained
from minivit.__main__ import BROKEN_PIPE, main
from minivit.io.weights import read_weights
from minivit.pretrained.layouts import LAYOUTS
from minivit.programs import COMMANDS
from minivit.train import command_line

VIT = {"img_size": 32, "patch_size": 8, "num_classes": 5, "embed_dim": 64, "depth": 2, "num_heads": 1}
SWIN = {"img_size": 64, "num_classes": 5, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 8}
MODELS = {"ViT": (minivit.ViT, VIT), "Swin": (minivit.Swin, SWIN), "SwinV2": (minivit.SwinV2, SWIN)}
PAIRS = sorted({(layout.model, layout.source) for layout in LAYOUTS if layout.written and not layout.family})
# what the file of such a layout cannot hold, and its profile therefore assumes; see minivit/pretrained/profiles.py
SETTINGS = {"huggingface": "norm_eps=1e-06"}
# what a project's models have always, unlike a new one of minivit
ALWAYS = {("ViT", "google"): {"gelu": "tanh"}, ("Swin", "wzmiaomiao"): {"covered": "shift"}}
# what the arrays do not show and must be given
UNSEEN = {("SwinV2", layout): ["--set", "window_size=8"] for layout in ("huggingface", "timm")}


def tiny(kind, seed=0, **options):
    """A small model with weights that are not at their start, where Swin v2 is the identity."""
    make, arguments = MODELS[kind]
    model = make(**{**arguments, **options})
    rng = np.random.default_rng(seed)
    for param in model.parameters().values():
        param.data = param.data + 0.1 * rng.standard_normal(param.shape)
    return model


def saved(path, kind="ViT", layout=None, **options):
    model = tiny(kind, **options)
    minivit.save(model, path) if layout is None else pretrained.export(model, path, layout)
    return model


def called(capsys, *argv):
    """(exit code, lines of stdout, lines of stderr)."""
    capsys.readouterr()
    try:
        code = main(list(map(str, argv)))
    except SystemExit as stop:  # argparse's own way out
        code = stop.code
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()


def fine(capsys, *argv):
    code, out, err = called(capsys, *argv)
    assert code == 0, err
    return out, err


def refused(capsys, code, *argv):
    """The one line of the error."""
    found, out, err = called(capsys, *argv)
    assert (found, out, len(err)) == (code, [], 1), (found, out, err)
    assert err[0].startswith("error: ")
    return err[0]


def same(found, wanted):
    assert set(found) == set(wanted)
    assert all(np.array_equal(found[name], array) for name, array in wanted.items())


def field(lines, label):
    return next(line[12:] for line in lines if line.startswith(label))


def process(*argv, **options):
    root = str(Path(minivit.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    environment |= {name: options.pop(name) for name in list(options) if name.isupper()}
    command = [sys.executable, "-W", "error", "-m", "minivit", *map(str, argv)]
    return subprocess.run(command, env=environment, text=True, timeout=120, check=False, **options)


# --- models ---


def test_models_lists_every_name_with_its_class_and_size(capsys):
    rows = [line.split() for line in fine(capsys, "models")[0]]
    assert rows[0] == ["name", "class", "image"]
    assert [row[0] for row in rows[1:]] == minivit.list_models()
    for name, kind, size in rows[1:]:
        wanted = "SwinV2" if name.startswith("swinv2") else "Swin" if name.startswith("swin") else "ViT"
        said = re.findall(r"(?:_|to)(\d{3})\b", name)
        assert kind == wanted and said in ([], [size]), name


@pytest.mark.parametrize("pattern", ["deit", "DeiT", "deit*", "de?t*384", "swinv2_*_192", "test_vit"])
def test_models_takes_a_pattern(capsys, pattern):
    names = [line.split()[0] for line in fine(capsys, "models", pattern)[0][1:]]
    expression = pattern.lower().replace("*", ".*").replace("?", ".")
    assert names == [name for name in minivit.list_models() if re.search(expression, name)] and names


def test_models_says_when_nothing_fits(capsys):
    assert "'resnet'" in refused(capsys, 2, "models", "resnet")


# --- summary ---


def test_summary_of_a_published_size(capsys):
    out, _ = fine(capsys, "summary", "test_vit")
    assert out == str(minivit.summary(minivit.create_model("test_vit"), quiet=True)).splitlines()
    out, _ = fine(capsys, "summary", "test_vit", "--img-size", 32, "--num-classes", 7)
    twin = minivit.create_model("test_vit", img_size=32, num_classes=7)
    assert out == str(minivit.summary(twin, quiet=True)).splitlines()


@pytest.mark.parametrize("kind", MODELS)
def test_summary_of_a_file(capsys, tmp_path, kind):
    model = saved(tmp_path / "m.safetensors", kind)
    out, err = fine(capsys, "summary", tmp_path / "m.safetensors")
    assert out == str(minivit.summary(model, quiet=True)).splitlines() and err == []
    out, err = fine(capsys, "summary", tmp_path / "m.safetensors", "--num-classes", 3, "--img-size", 96)
    assert out == str(minivit.summary(tiny(kind, num_classes=3, img_size=96), quiet=True)).splitlines()
    assert any("starts at 0" in line for line in err)


def test_summary_says_whether_a_name_or_a_file_is_missing(capsys, tmp_path):
    assert "did you mean" in refused(capsys, 2, "summary", "test_vti")
    assert "no such file" in refused(capsys, 1, "summary", tmp_path / "nothing")
    assert "no such file" in refused(capsys, 1, "summary", "nothing.safetensors")
    assert "num_classes=-1" in refused(capsys, 2, "summary", "test_vit", "--num-classes", -1)
    assert "not divisible" in refused(capsys, 2, "summary", "test_vit", "--img-size", 30)


# --- inspect ---


@pytest.mark.parametrize(("kind", "layout"), [*((kind, None) for kind in MODELS), *PAIRS])
def test_inspect_describes_a_file(capsys, tmp_path, kind, layout):
    path = tmp_path / ("m.npz" if layout == "google" else "m.safetensors")
    model = saved(path, kind, layout, **ALWAYS.get((kind, layout), {}))
    out, err = fine(capsys, "inspect", path)
    assert err == [] and field(out, "file") == f"{path} ({path.stat().st_size:,} bytes)"
    assert out[1].split() == ["SHA-256", hashlib.sha256(path.read_bytes()).hexdigest()]
    source = "timm" if (kind, layout) == ("ViT", "wzmiaomiao") else layout or "minivit"  # nothing tells these two apart
    assert field(out, "source") == source and field(out, "class") == kind
    arrays = read_weights(path).arrays
    learned = sum(array.dtype == np.float32 for array in arrays.values())
    assert field(out, "arrays").startswith(f"{len(arrays)}: {learned} of float32")
    assert field(out, "parameters") == f"{sum(param.size for param in model.parameters().values()):,}"
    assert field(out, "unknown") == "0 names"
    arguments = field(out, "arguments")
    if (kind, layout) in UNSEEN:
        assert "give window_size=" in arguments
        return
    shown = ("num_classes", "embed_dim", "num_heads", "in_chans")
    assert all(f"{name}={model.config[name]!r}" in arguments for name in shown), arguments


def test_inspect_lists_the_largest_arrays(capsys, tmp_path):
    path = tmp_path / "m.safetensors"
    model = saved(path, layout="timm")
    out, _ = fine(capsys, "inspect", path, "--tensors", 3)
    rows = [line.split() for line in out[-3:]]
    arrays = model.state_dict()
    assert [int(row[3].replace(",", "")) for row in rows] == sorted((a.size for a in arrays.values()), reverse=True)[:3]
    for name, shape, dtype, _ in rows:
        assert shape == "x".join(map(str, arrays[name].shape)) and dtype == "float32"
    out, _ = fine(capsys, "inspect", path, "--tensors", 0)
    assert out[-1].startswith("unknown")


def test_inspect_shows_what_is_strange(capsys, tmp_path):
    path = tmp_path / "m.safetensors"
    saved(path, layout="torchvision")
    arrays = safetensors.numpy.load_file(path)
    arrays |= {"extra\x1b[31m.weight": np.zeros((), "f8"), "class_token": arrays["class_token"].astype("f2")}
    safetensors.numpy.save_file(arrays, path)
    out, _ = fine(capsys, "inspect", path, "--tensors", 99)
    assert "1 of float16" in field(out, "arrays") and "1 of float64" in field(out, "arrays")
    assert field(out, "unknown") == r"1 names, 'extra\x1b[31m.weight'"
    assert "\x1b" not in "".join(out)


def test_inspect_of_what_makes_no_model(capsys, tmp_path):
    path = tmp_path / "m.safetensors"
    saved(path, layout="timm", img_size=(32, 16))  # positions of a grid that is no square
    out, _ = fine(capsys, "inspect", path)
    assert field(out, "source") == "timm" and field(out, "arguments").startswith("none, ")


def test_inspect_of_shards(capsys, tmp_path):
    arrays = tiny("ViT").state_dict()
    shards = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
    for number, shard in enumerate(shards):
        safetensors.numpy.save_file(dict(list(arrays.items())[number::2]), tmp_path / shard)
    index = {"weight_map": {name: shards[number % 2] for number, name in enumerate(arrays)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    out, _ = fine(capsys, "inspect", tmp_path)
    files = [Path(line[12:].split(" (")[0]).name for line in out if line.startswith("file")]
    assert files == ["model.safetensors.index.json", *shards]
    assert field(out, "arrays").startswith(f"{len(arrays)}: ")


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\3\4 and no more"])
@pytest.mark.parametrize("command", [["inspect"], ["summary"], ["convert", "--layout", "timm", "--force"]])
def test_files_that_do_not_load(capsys, tmp_path, command, content):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    more = [tmp_path / "out.safetensors"] if command[0] == "convert" else []
    assert str(path) in refused(capsys, 1, command[0], path, *more, *command[1:])
    assert not (tmp_path / "out.safetensors").exists()


def test_a_file_of_nothing_known(capsys, tmp_path):
    safetensors.numpy.save_file({"a": np.zeros(3, "f4")}, tmp_path / "m.safetensors")
    assert "no ViT or Swin of a known source" in refused(capsys, 1, "inspect", tmp_path / "m.safetensors")
    assert "folder without weights" in refused(capsys, 1, "inspect", (tmp_path / "empty").mkdir() or tmp_path / "empty")


# --- convert ---


@pytest.mark.parametrize(("kind", "layout"), PAIRS)
def test_convert_there_and_back(capsys, tmp_path, kind, layout):
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    theirs, direct = (
        tmp_path / f"{name}.{'npz' if layout == 'google' else 'safetensors'}" for name in ("theirs", "direct")
    )
    model = saved(ours, kind, **ALWAYS.get((kind, layout), {}))
    out, err = fine(capsys, "convert", ours, theirs, "--layout", layout)
    assert out == [
        f"{theirs}: {kind}, {sum(param.size for param in model.parameters().values()):,} parameters, "
        f"layout {layout}, {theirs.stat().st_size:,} bytes"
    ]
    missing = SETTINGS.get(layout) if kind == "ViT" else None
    assert missing is None or any(missing in line for line in err)
    pretrained.export(model, direct, layout)
    same(read_weights(theirs).arrays, read_weights(direct).arrays)
    fine(capsys, "convert", theirs, back, "--layout", "timm", *UNSEEN.get((kind, layout), []))
    same(safetensors.numpy.load_file(back), model.state_dict())


@pytest.mark.parametrize("wrong", ["window_size", "=8", "window_size=", "a b=1"])
def test_convert_refuses_what_is_no_argument(capsys, tmp_path, wrong):
    call = ("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layout", "timm", "--set", wrong)
    assert "is not NAME=VALUE" in refused(capsys, 2, *call)


def test_convert_takes_words_as_arguments(capsys, tmp_path):
    saved(tmp_path / "a.safetensors", layout="timm")
    fine(
        capsys, "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layout", "timm",
        "--set", "gelu=tanh", "--set", "num_heads=1",
    )  # fmt: skip


def test_convert_keeps_float64_when_asked(capsys, tmp_path):
    model = saved(tmp_path / "a.safetensors", dtype="float64")
    for dtype, wanted in (("float64", 0), ("float32", 1e-7)):
        fine(capsys, "convert", tmp_path / "a.safetensors", tmp_path / dtype, "--layout", "timm", "--dtype", dtype)
        found = safetensors.numpy.load_file(tmp_path / dtype)["head.weight"]
        assert found.dtype == dtype and np.abs(found - model.head.weight.data).max() <= wanted


def test_convert_says_what_the_file_cannot(capsys, tmp_path):
    saved(tmp_path / "a.safetensors", gelu="tanh", num_heads=4)
    _, err = fine(capsys, "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layout", "timm")
    assert len(err) == 1 and "gelu='tanh'" in err[0] and "num_heads=4" in err[0] and "embed_dim" not in err[0]
    saved(tmp_path / "a.safetensors", img_size=(32, 16))
    _, err = fine(capsys, "convert", tmp_path / "a.safetensors", tmp_path / "c.safetensors", "--layout", "timm")
    assert len(err) == 1 and err[0].startswith("minivit: ")


def test_convert_refuses_a_layout_whose_project_computes_otherwise(capsys, tmp_path):
    saved(tmp_path / "a.safetensors", gelu="tanh")
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    line = refused(capsys, 2, "convert", *files, "--layout", "torchvision")
    assert "torchvision's ViT has gelu='none', and this model 'tanh'" in line
    assert not files[1].exists()


def test_convert_replaces_only_by_force(capsys, tmp_path):
    saved(tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    out.write_bytes(b"precious")
    call = ("convert", tmp_path / "a.safetensors", out, "--layout", "huggingface")
    assert "--force" in refused(capsys, 2, *call)
    assert out.read_bytes() == b"precious"
    fine(capsys, *call, "--force")
    assert "classifier.weight" in safetensors.numpy.load_file(out)
    assert "folder" in refused(capsys, 2, "convert", out, tmp_path, "--layout", "timm", "--force")


def test_convert_onto_itself(capsys, tmp_path):
    model = saved(tmp_path / "a.safetensors")
    fine(capsys, "convert", tmp_path / "a.safetensors", tmp_path / "a.safetensors", "--layout", "timm", "--force")
    loaded = pretrained.load(tiny("ViT", seed=1), tmp_path / "a.safetensors")
    assert np.array_equal(loaded.head.weight.data, model.head.weight.data)


def test_convert_refuses_what_a_project_lacks(capsys, tmp_path):
    saved(tmp_path / "a.safetensors", "Swin")
    call = ("convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--layout")
    assert "has no Swin" in refused(capsys, 2, *call, "google")
    assert "invalid choice: 'keras'" in refused(capsys, 2, *call, "keras")
    saved(tmp_path / "a.safetensors", distilled=True)
    assert "dist_token" in refused(capsys, 2, *call, "torchvision")
    assert not (tmp_path / "b.safetensors").exists()
    below_a_file = tmp_path / "a.safetensors" / "b.safetensors"
    refused(capsys, 1, "convert", tmp_path / "a.safetensors", below_a_file, "--layout", "timm")


# --- the program itself ---


@pytest.mark.parametrize(
    "argv",
    [
        *(["trian"], ["--debug"], ["--color"], ["inspect"], ["convert", "a", "b"], ["classify", "a.png"], ["explain"]),
        *(["summary", "test_vit", "--img-size", "big"], ["train", "--epochs", "0"], ["train", "--model", "resnet"]),
        *(["classify", "--weights", "a"], ["explain", "--weights", "a", "--digit", "10"], ["finetune", "--lr", "0"]),
    ],
)
def test_argparse_refuses_in_one_line(capsys, argv):
    refused(capsys, 2, *argv)


def test_help_lists_everything(capsys):
    out, _ = fine(capsys, "--help")
    assert out == fine(capsys)[0], "without arguments it prints its help"
    assert [line.split()[0] for line in out if line.startswith("    ")] == list(COMMANDS)
    options = {
        "train": {"--data", "--out", "--model", "--preset", "--epochs", "--batch-size", "--lr", "--seed", "--threads"},
        "classify": {"IMAGE", "--weights", "--labels", "--explain", "--class", "--block", "--top", "--invert"},
        "explain": {"IMAGE", "--digit", "--nth", "--data", "--weights", "--labels", "--class", "--block", "--out"},
        "finetune": {"--data", "--weights", "--model", "--freeze", "--head-only", "--layer-decay", "--keep"},
        "lab": {"--weights", "--labels", "--model", "--out", "--data", "--port", "--site", "--no-browser"},
        "probe": {"--weights", "--model", "--data", "--classifier", "--k", "--temperature", "--epochs", "--limit"},
        "models": {"pattern"},
        "summary": {"NAME|FILE", "--img-size", "--num-classes"},
        "inspect": {"file", "--tensors"},
        "convert": {"input", "output", "--layout", "--dtype", "--force"},
        "info": {"minivit info"},
    }
    assert options.keys() == COMMANDS.keys()
    for name, words in options.items():
        text = "\n".join(fine(capsys, name, "--help")[0])
        assert all(word in text for word in words | {"--debug"}), name
    text = "\n".join(fine(capsys, "convert", "--help")[0])
    assert all(layout.source in text for layout in LAYOUTS if layout.written)
    assert fine(capsys, "--version")[0] == [f"minivit {minivit.__version__}"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_every_default(name, capsys):
    """Of each option that has a value and may be left out."""
    program = import_module(f"minivit.programs.{name}")
    parser = argparse.ArgumentParser(formatter_class=command_line.Help)
    program.add_options(parser)
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        optional = action.option_strings and not action.required and action.nargs != 0
        if optional or action.nargs == "?":
            own = action.help if "default" in action.help else f"{action.help} (default: {action.default})"
            assert re.search("default: (?!None)|no default", own) and " ".join(own.split()) in text, action.dest


def test_only_the_program_that_is_asked_for_is_imported():
    code = "import sys; from minivit.__main__ import main; main({}); print(*sys.modules)"
    for argv, wanted in ((["--version"], set()), (["models"], {"models"}), (["train", "--help"], {"train"})):
        done = subprocess.run([sys.executable, "-c", code.format(argv)], capture_output=True, text=True, check=True)
        loaded = set(done.stdout.splitlines()[-1].split())
        assert {name for name in COMMANDS if f"minivit.programs.{name}" in loaded} == wanted
        assert not loaded & {"matplotlib", "PIL", "tqdm", "huggingface_hub"}


def test_a_console_that_lacks_a_letter_gets_its_escape(tmp_path):
    """A file whose name an ASCII console cannot print; and one whose name is no text at all."""
    for name in ("caf\xe9.safetensors", *(["caf\udce9.safetensors"] if os.name == "posix" else [])):
        saved(tmp_path / name)
        done = process("inspect", tmp_path / name, capture_output=True, encoding="ascii", PYTHONIOENCODING="ascii")
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert ascii(name)[1:-1] in done.stdout.splitlines()[0]


@pytest.mark.parametrize("place", [0, 2])
def test_debug_shows_where_an_error_arose(capsys, place):
    argv = ["inspect", "nothing.pth"]
    argv.insert(place, "--debug")
    code, _, err = called(capsys, *argv)
    assert code == 1 and err[0].startswith("Traceback") and err[-1].startswith("error: nothing.pth")


def test_a_fault_of_ours_is_one_line_too(capsys, monkeypatch):
    def broken(path):
        raise KeyError("lost")

    monkeypatch.setattr("minivit.programs.inspect.read_weights", broken)
    assert refused(capsys, 1, "inspect", "a.pth") == "error: KeyError: 'lost'"


def test_as_a_program(tmp_path):
    done = process("models", "deit", capture_output=True)
    assert (done.returncode, done.stderr) == (0, "") and "deit_base_patch16_384" in done.stdout
    done = process("inspect", tmp_path / "nothing.pth", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert process("nonsense", capture_output=True).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows reports a closed pipe in its own way")
def test_a_reader_may_close_the_pipe_early():
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process("models", stdout=writer, stderr=subprocess.PIPE)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, "")
