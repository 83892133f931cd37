"""A folder of images by class: what is listed, how it is split, and batches that are read when they are due."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from minivit import data
from minivit.data import DataError
from minivit.data.folder import image_folder, read_images, split_folder


def number(path):
    """A stand-in for an image file's reader: the number in the file, as an image (1, 2, 3)."""
    return np.full((1, 2, 3), float(path.read_text()), np.float32)


def fill(folder, counts, start=0):
    """A folder for each class with so many files, which hold the numbers from `start` on."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for place in range(count):
            (folder / name / f"{place}.png").write_text(str(start))
            start += 1
    return folder


@pytest.fixture
def pets(tmp_path):
    return fill(tmp_path / "pets", {"newt": 6, "cat": 10, "dog": 4})


def test_classes_and_files_are_sorted(pets):
    found = image_folder(pets)
    assert found.classes == ("cat", "dog", "newt") and len(found) == 20
    assert found.labels.tolist() == [0] * 10 + [1] * 4 + [2] * 6 and found.labels.dtype == np.int64
    assert found.names.tolist()[:2] == ["cat/0.png", "cat/1.png"] and found.names.tolist() == sorted(found.names)
    assert found.paths.tolist() == [os.path.join(pets, *name.split("/")) for name in found.names]
    part = found.take(np.array([12, 0]))
    assert part.names.tolist() == ["dog/2.png", "cat/0.png"] and part.labels.tolist() == [1, 0]
    assert part.classes == found.classes and part.folder == found.folder


def test_only_images_count(pets):
    for name in ("notes.txt", ".DS_Store", "._0.png", "Thumbs.db", "png"):
        (pets / "cat" / name).write_text("no image")
    (pets / "readme.md").write_text("no class")
    (pets / ".cache").mkdir()
    (pets / "cat" / "folder.png").mkdir()
    (pets / "cat" / "LAST.JPEG").write_text("7")
    found = image_folder(pets)
    assert found.classes == ("cat", "dog", "newt")
    assert found.names[found.labels == 0].tolist() == [*(f"cat/{place}.png" for place in range(10)), "cat/LAST.JPEG"]


def test_val_is_held_out_where_there_is_one(tmp_path):
    fill(tmp_path / "train", {"b": 3, "a": 2, "c": 1})
    fill(tmp_path / "val", {"b": 2, "c": 1}, start=100)
    learn, held = split_folder(tmp_path)
    assert learn.classes == held.classes == ("a", "b", "c")
    assert learn.labels.tolist() == [0, 0, 1, 1, 1, 2] and held.labels.tolist() == [1, 1, 2]
    assert held.folder == tmp_path / "val" and read_images(held.paths, number).min() >= 100


@pytest.mark.parametrize("within", ["", "train"])
def test_without_val_a_share_of_each_class_is_held_out(tmp_path, within):
    fill(tmp_path / within, {"cat": 30, "dog": 10, "newt": 20})
    learn, held = split_folder(tmp_path, 0.1, seed=3)
    assert np.bincount(held.labels).tolist() == [3, 1, 2] and np.bincount(learn.labels).tolist() == [27, 9, 18]
    assert not set(learn.names) & set(held.names) and len(set(learn.names) | set(held.names)) == 60
    assert split_folder(tmp_path, 0.1, seed=3)[1].names.tolist() == held.names.tolist()
    assert split_folder(tmp_path, 0.1, seed=4)[1].names.tolist() != held.names.tolist()
    assert len(split_folder(tmp_path, 12)[1]) == 12


def test_train_and_val_can_be_classes(tmp_path):
    fill(tmp_path, {"train": 5, "val": 5, "bus": 10})
    learn, held = split_folder(tmp_path, 0.2)
    assert (
        learn.classes == ("bus", "train", "val") and len(learn) == 16 and np.bincount(held.labels).tolist() == [2, 1, 1]
    )


def test_batches_are_a_function_of_seed_epoch_and_position(pets):
    found = image_folder(pets)

    def noise(x, y, rng):
        return x + rng.random(x.shape, np.float32), y

    def run(**place):
        return list(found.batches(number, 6, augment=noise, **place))

    first = run(seed=1, epoch=2)
    assert len(first) == 3 and all(x.shape == (6, 1, 2, 3) and x.dtype == np.float32 for x, _ in first)
    for again, (x, y) in zip(run(seed=1, epoch=2, start=1), first[1:]):
        assert np.array_equal(again[0], x) and np.array_equal(again[1], y)
    assert len(run(seed=1, epoch=2, start=1)) == 2 and run(seed=1, epoch=2, start=3) == []
    for other in (run(seed=2, epoch=2), run(seed=1, epoch=3)):
        assert not np.array_equal(other[0][0], first[0][0])
    drawn = [x % 1 for x, _ in first]  # the images are whole numbers
    assert not np.allclose(drawn[0], drawn[1], atol=1e-3), "each batch has noise of its own"


def test_batches_visit_every_image_once_with_its_label(pets):
    found = image_folder(pets)
    labels = {float(Path(path).read_text()): label for path, label in zip(found.paths, found.labels)}
    seen = [
        (value, label)
        for x, y in found.batches(number, 6, seed=0, epoch=0, drop_last=False, threads=3)
        for value, label in zip(x[:, 0, 0, 0].tolist(), y.tolist())
    ]
    assert len(seen) == 20 and dict(seen) == labels
    order = data.epoch_order(20, 0, 0)
    assert [label for _, label in seen] == found.labels[order].tolist(), "the order is that of data.batches"


def test_nothing_is_read_before_its_batch(pets):
    read = []

    def note(path):
        read.append(path)
        return number(path)

    batches = image_folder(pets).batches(note, 5, seed=0, epoch=0, threads=1)
    assert read == []
    next(batches)
    assert len(read) == 5


def test_a_broken_image_is_named(pets):
    (pets / "dog" / "1.png").write_text("not a number")
    found = image_folder(pets)
    with pytest.raises(DataError, match=re.escape(str(pets / "dog" / "1.png")) + r" cannot be read.*could not convert"):
        list(found.batches(number, 20, seed=0, epoch=0))


def test_a_missing_reader_is_not_the_files_fault(pets):
    def reader(path):
        raise ImportError("install a reader")

    with pytest.raises(ImportError, match="install a reader"):
        read_images(image_folder(pets).paths, reader)


def test_real_images_are_read_with_a_preprocess(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name, color in (("black", 0), ("white", 255)):
        (tmp_path / name).mkdir()
        image.new("RGB", (9, 7), (color,) * 3).save(tmp_path / name / "1.jpg")
        image.new("L", (5, 5), color).save(tmp_path / name / "2.gif")
    found = image_folder(tmp_path)
    preprocess = data.Preprocess(4, mean=(0.5,) * 3, std=(0.5,) * 3)
    x = read_images(found.paths, preprocess, threads=2)
    assert x.shape == (4, 3, 4, 4) and x.dtype == np.float32
    assert np.array_equal(x[:, 0, 0, 0], [-1, -1, 1, 1])
    (tmp_path / "white" / "1.jpg").write_bytes((tmp_path / "white" / "1.jpg").read_bytes()[:200])
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "white" / "1.jpg"))) as error:
        read_images(found.paths, preprocess)
    assert str(error.value).count("1.jpg") == 1, "named once"


def broken(tmp_path, case):
    if case == "missing":
        return tmp_path / "nowhere"
    if case == "file":
        (tmp_path / "file").write_text("x")
        return tmp_path / "file"
    if case == "no classes":
        (tmp_path / "1.png").write_text("1")
        return tmp_path
    if case == "empty class":
        fill(tmp_path, {"cat": 3, "dog": 0})
        return tmp_path
    fill(tmp_path / "train", {"cat": 3, "dog": 3})
    fill(tmp_path / "val", {"cat": 3, "cow": 3})
    return tmp_path


@pytest.mark.parametrize(
    "case, fragments",
    [
        ("missing", ["nowhere", "is not a folder"]),
        ("file", ["file", "is not a folder"]),
        ("no classes", ["holds no folders", "named after the class"]),
        ("empty class", ["dog", "holds no images", ".jpg"]),
        ("unknown class", [os.path.join("val", "cow"), "cat, dog"]),
    ],
)
def test_a_folder_of_another_form_is_refused(tmp_path, case, fragments):
    with pytest.raises(DataError) as error:
        split_folder(broken(tmp_path, case), 1)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


@pytest.mark.parametrize(
    "options, fragment",
    [
        ({"batch_size": 21}, "batch_size=21"),
        ({"start": 4}, "start=4"),
        ({"start": -1}, "start=-1"),
        ({"epoch": -1}, "epoch"),
    ],
)
def test_folders_that_do_not_exist_are_refused_immediately(pets, options, fragment):
    options = {"batch_size": 6, "seed": 0, "epoch": 0, **options}
    with pytest.raises(ValueError, match=fragment):
        image_folder(pets).batches(number, **options)


# --- what is easily passed over -------------------------------------------------------------------------------------


def test_subfolders_and_every_suffix_that_pillow_reads_are_read(tmp_path):
    pytest.importorskip("PIL.Image")
    fill(tmp_path, {"cat": 1, "dog": 1, "cat/more": 2, "cat/more/deep": 1})
    for name in ("a.jfif", "b.JPE", "c.tga", "d.ico"):
        (tmp_path / "dog" / name).write_text("1")
    found = image_folder(tmp_path)
    assert found.labels.tolist() == [0] * 4 + [1] * 5
    assert "cat/more/deep/0.png" in found.names and "dog/b.JPE" in found.names


def test_what_is_left_out_is_counted_and_named_once(pets):
    for name in ("a.xyz", "notes.txt"):
        (pets / "cat" / name).write_text("1")
    (pets / "dog" / "gone.png").symlink_to("/nowhere/at/all")
    said = []
    assert len(image_folder(pets, report=said.append)) == 20
    assert len(said) == 1 and "3 of 23 files" in said[0]
    assert all(name in said[0] for name in ("cat/a.xyz", "cat/notes.txt", "dog/gone.png"))


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("val", ["val", "Val", "valid", "validation", "test", "TEST"])
def test_the_held_out_folder_is_known_by_its_usual_names(tmp_path, train, val):
    fill(tmp_path / train, {"a": 3, "b": 3})
    fill(tmp_path / val, {"a": 1, "b": 2})
    learn, held = split_folder(tmp_path)
    assert (len(learn), len(held)) == (6, 3) and held.folder == tmp_path / val


def test_val_comes_before_test_and_two_of_one_meaning_are_refused(tmp_path):
    for part in ("train", "val", "test"):
        fill(tmp_path / part, {"a": 2, "b": 2})
    assert split_folder(tmp_path)[1].folder == tmp_path / "val"
    fill(tmp_path / "valid", {"a": 2, "b": 2})
    with pytest.raises(DataError, match="val and valid, which mean the same"):
        split_folder(tmp_path)


def test_one_class_alone_is_refused(tmp_path):
    fill(tmp_path, {"cat": 10})
    with pytest.raises(DataError, match="holds one class, cat.*add a folder"):
        split_folder(tmp_path)


def test_unicode_forms_of_a_name_are_one_class(tmp_path):
    fill(tmp_path / "train", {"caf\u00e9": 2, "dog": 2})
    fill(tmp_path / "val", {"cafe\u0301": 1, "dog": 1})
    learn, held = split_folder(tmp_path)
    assert learn.classes == held.classes == ("caf\u00e9", "dog") and held.labels.tolist() == [0, 1]


def test_a_loop_of_links_is_named(pets):
    (pets / "cat" / "again").symlink_to(pets)
    with pytest.raises(DataError, match="again.* leads back to a folder which holds it: remove it"):
        image_folder(pets)
    (pets / "cat" / "again").unlink()
    (pets / "cat" / "self.png").symlink_to(pets / "cat" / "self.png")
    with pytest.raises(DataError, match=r"self\.png cannot be followed .*: remove this link"):
        image_folder(pets)
