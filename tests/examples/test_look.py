"""examples/look.py: the three figures of a photo, by weights of this library and by random ones."""

from __future__ import annotations

import importlib.util
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minivit

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
EXAMPLE = Path(minivit.__file__).parents[1] / "examples" / "look.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not installed with the package")

VIT = {"img_size": 32, "patch_size": 8, "num_classes": 4, "embed_dim": 64, "depth": 2, "num_heads": 1}
SWIN = {"img_size": 32, "num_classes": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}


@pytest.fixture
def photo() -> Path:
    """A photo that scikit-learn ships."""
    found = importlib.util.find_spec("sklearn")
    path = Path(str(found.origin)).parent / "datasets" / "images" / "flower.jpg" if found else Path("missing")
    if not path.is_file():
        pytest.skip("scikit-learn, which ships a photo, is not installed: pip install scikit-learn")
    return path


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """What the example prints, run within this process, or the message with which it ends."""

    def start(*options: Any) -> str:
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, options)])
        try:
            runpy.run_path(str(EXAMPLE), run_name="__main__")
        except SystemExit as stop:
            return str(stop.code)
        out, err = capsys.readouterr()
        assert err == ""
        return str(out)

    return start


def pixels(path: Path) -> Any:
    """An image (H, W, 3) in [0, 1]."""
    return np.asarray(Image.open(path).convert("RGB")) / 255


def crops(photo: Path, folder: Path) -> None:
    """Two parts of a photo and an image of noise, in a folder and its subfolder."""
    image = Image.open(photo)
    wide, high = image.size
    (folder / "more").mkdir(parents=True)
    image.crop((0, 0, wide - 30, high - 20)).save(folder / "near.png")
    image.crop((0, 0, wide // 3, high // 3)).save(folder / "more" / "part.png")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    (folder / "notes.txt").write_text("no image")


def test_three_pictures_of_a_trained_vit(photo: Path, look: Any, tmp_path: Path) -> None:
    minivit.save(minivit.ViT(**VIT), tmp_path / "model.safetensors")
    crops(photo, tmp_path / "folder")
    options = ["--weights", tmp_path / "model.safetensors", "--folder", tmp_path / "folder", "--out", tmp_path / "out"]
    out = look(photo, *options, "--img-size", 64)
    names = {"colors.png", "flower-attention.png", "flower-neighbors.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert all(str(tmp_path / "out" / name) in out for name in names) and "random" not in out
    found = re.findall(r"^ *(-?\d\.\d+)  (.+)$", out, re.MULTILINE)
    assert [name for _, name in found][0] == "near.png" and {name for _, name in found} >= {"more/part.png"}
    assert [float(cosine) for cosine, _ in found] == sorted((float(cosine) for cosine, _ in found), reverse=True)
    shares = [float(each) for each in re.findall(r"(\d+\.\d)%", out)]
    assert len(shares) == 3 and 0 < sum(shares) <= 100.1
    for name in names:
        picture = pixels(tmp_path / "out" / name)
        assert picture.shape[1] == 1080 and (picture[0] == 1).all(), "a white page"
        assert picture.std() > 0.1, "something is drawn"


def test_patches_have_the_colors_of_their_components(look: Any, tmp_path: Path) -> None:
    """An image of two flat halves has patches of two colors, and the figure shows them side by side."""
    halves = np.zeros((32, 32, 3), np.uint8)  # the size of the model: no resampling at the edge
    halves[:, :16] = (250, 40, 30)
    Image.fromarray(halves).save(tmp_path / "halves.png")
    minivit.save(minivit.ViT(**VIT, pos_embed="none"), tmp_path / "model.safetensors")
    look(tmp_path / "halves.png", "--weights", tmp_path / "model.safetensors", "--out", tmp_path, "--block", 0)
    picture = pixels(tmp_path / "colors.png")
    side = picture[60 : 60 + 500, -510:-20]  # within the right panel
    left, right = side[:, 20:200].reshape(-1, 3), side[:, -200:-20].reshape(-1, 3)
    assert left.std(axis=0).max() < 0.05 and right.std(axis=0).max() < 0.05
    assert np.abs(left.mean(axis=0) - right.mean(axis=0)).max() > 0.9


def test_two_photos_of_a_swin(photo: Path, look: Any, tmp_path: Path) -> None:
    minivit.save(minivit.Swin(**SWIN), tmp_path / "model.safetensors")
    crops(photo, tmp_path / "folder")
    other = tmp_path / "folder" / "noise.png"
    look(photo, other, "--weights", tmp_path / "model.safetensors", "--out", tmp_path / "out", "--foreground")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "colors.png",
        "flower-attention.png",
        "noise-attention.png",
    }


def test_random_weights_are_said(look: Any, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "noise.png")
    out = look(tmp_path / "noise.png", "--out", tmp_path, "--img-size", 32)
    assert out.startswith("random weights of vit_tiny_patch16_224") and (tmp_path / "colors.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.jpg"], "missing.jpg"),
        (["{photo}", "--folder", "nowhere"], "--folder nowhere is not a folder"),
        (["{photo}", "--folder", "{empty}"], "has no other images"),
        (["{photo}", "--block", "12"], "12 is out of range"),
        (["{photo}", "--weights", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_refusals(options: list[str], message: str, look: Any, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.eye(40, dtype=np.uint8) * 255).save(photo)
    (tmp_path / "empty").mkdir()
    given = [option.format(photo=photo, empty=tmp_path / "empty") for option in options]
    said = look(*given, "--out", tmp_path / "out", "--img-size", 32)
    assert said.startswith("error: ") and message in said and "\n" not in said, said
