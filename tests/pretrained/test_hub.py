"""Weights by name, against a hub that runs in a thread of the test: no test here reaches the network."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_hub import NEW, OLD, VIT, serving

import minivit
from minivit.io import weights as read
from minivit.io.safetensors import CheckpointError
from minivit.pretrained import export, hub, tags
from minivit.pretrained.loading import from_pretrained

huggingface_hub = pytest.importorskip("huggingface_hub")

LIBRARY_CONSTANTS = pytest.importorskip("huggingface_hub.constants")
LocalEntryNotFoundError = pytest.importorskip("huggingface_hub.errors").LocalEntryNotFoundError
NAME = "test_vit"  # the published size whose weights are in VIT
PAYLOAD = bytes(range(256)) * 400  # some file of weights, where its content is not read


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Nothing but this machine has an address, and nothing of this user's cache, token or mirror is seen."""
    look_up = socket.getaddrinfo

    def local(host, *args, **named):
        if host not in ("127.0.0.1", "localhost", b"127.0.0.1", b"localhost"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", local)
    monkeypatch.setattr(LIBRARY_CONSTANTS, "HF_HUB_CACHE", str(tmp_path / "cache"))
    for name, value in {"HF_TOKEN_PATH": str(tmp_path / "token"), "HF_HUB_ETAG_TIMEOUT": 4}.items():
        monkeypatch.setattr(LIBRARY_CONSTANTS, name, value)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def files():
    return {
        "model.safetensors": PAYLOAD,
        "config.json": b"{}",
        "preprocessor_config.json": b"{}",
        "processor_config.json": b"{}",
    }


@pytest.fixture
def fake(files):
    with serving(files) as fake_hub:
        yield fake_hub


def fetch(fake, name=NAME, report=None, **more):
    return hub.fetch(name, report=report or (lambda line: None), endpoint=fake.url, **more)


def refused(fake, name=NAME, **more):
    with pytest.raises(CheckpointError) as caught:
        fetch(fake, name, **more)
    return str(caught.value)


def left(tmp_path):
    """Every file of weights in the cache, whatever it is called there."""
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size == len(PAYLOAD)]


# --- names ---


# timm has none, or only files elsewhere
WITHOUT_WEIGHTS = """
    beit3_giant_patch14_224 beit3_giant_patch14_336 test_vit4 vit_base_patch16_18x2_224 vit_base_patch16_gap_224
    vit_base_patch16_plus_240 vit_base_patch16_reg4_gap_256 vit_base_patch16_xp_224 vit_base_patch32_plus_256
    vit_base_r26_s32_224 vit_betwixt_patch16_gap_256 vit_giant_patch14_224 vit_giant_patch16_gap_224
    vit_gigantic_patch14_224 vit_huge_patch14_gap_224 vit_huge_patch14_xp_224 vit_huge_patch16_gap_448
    vit_large_patch14_224 vit_large_patch14_xp_224 vit_small_patch16_18x2_224 vit_small_patch16_36x1_224
    vit_so150m_patch16_reg4_map_256"""


def test_every_published_size_has_timms_tag_or_no_weights():
    without = set(WITHOUT_WEIGHTS.split())
    assert set(hub.DEFAULT_TAGS) == set(minivit.list_models()) - without
    assert sum(len(names.split()) for names in tags._TAGS.values()) == len(hub.DEFAULT_TAGS), "a name stands twice"
    for name in without:
        with pytest.raises(CheckpointError, match=f"no weights for {name}.*create_model"):
            hub.fetch(name, report=print)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("vit_base_patch16_224", ("timm/vit_base_patch16_224.augreg2_in21k_ft_in1k", None)),
        ("vit_base_patch16_224.augreg_in21k", ("timm/vit_base_patch16_224.augreg_in21k", None)),
        (
            "vit_large_patch14_clip_quickgelu_336",
            ("timm/vit_large_patch14_clip_336.openai", None),
        ),
        ("deit_tiny_patch16_224@main", ("timm/deit_tiny_patch16_224.fb_in1k", "main")),
        ("swinv2_base_window12_192", ("timm/swinv2_base_window12_192.ms_in22k", None)),
        ("vit_large_patch14_224.some_tag", ("timm/vit_large_patch14_224.some_tag", None)),
        ("google/vit-base-patch16-224", ("google/vit-base-patch16-224", None)),
        (f"timm/test_vit.r160_in1k@{OLD}", (VIT, OLD)),
        ("owner/repository@refs/pr/1", ("owner/repository", "refs/pr/1")),
    ],
)
def test_what_a_name_means(name, place):
    assert hub.repository_of(name) == place


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit_bas_patch16_224", "not a file or folder.*did you mean vit_base_patch16_224"),
        ("qqqq", "not a file or folder.*list_models"),
        ("weights/vit.safetensors", "no such file"),
        ("vit_tiny_patch16_224.pth", "no such file"),
        ("./vit", "no such file"),
        ("/tmp/none/vit", "no such file"),
        ("~/vit", "no such file"),
        ("some\\folder", "no such file"),
        ("a/b/c", "no such file or folder, nor an owner/repository"),
        ("owner/", "no such file or folder, nor an owner/repository"),
        ("../owner/x", "no such file"),
        ("", "not a file or folder"),
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_asked(fake, name, says):
    assert re.search(says, refused(fake, name))
    assert not fake.asked()


def test_the_order_of_files_is_the_readers():
    assert hub.WEIGHTS == read._IN_FOLDER


# --- what comes ---


def test_a_model_comes_whole_and_the_second_time_from_the_cache(fake, tmp_path):
    model = minivit.create_model("test_vit", num_classes=5, img_size=32, seed=3)
    export(model, tmp_path / "out.safetensors")
    config = json.dumps({"num_heads": 2}).encode()
    fake.repositories[VIT][OLD] = {
        "model.safetensors": (tmp_path / "out.safetensors").read_bytes(),
        "config.json": config,
    }
    said = []
    folder = fetch(fake, report=said.append)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "config.json").read_bytes() == config
    assert said == [f"minivit: fetching model.safetensors (1 MB) of {VIT}@main, unless it is in the cache"]
    twin, images = from_pretrained(folder), np.random.default_rng(0).random((1, 3, 32, 32), dtype=np.float32)
    assert np.array_equal(twin.predict(images), model.predict(images))
    assert any(line.startswith("GET") for line in fake.asked())
    assert fetch(fake) == folder
    assert not fake.asked(), "the cache holds all of it"


def test_what_lies_beside_the_weights_comes_too(fake):
    assert sorted(path.name for path in fetch(fake).iterdir()) == sorted(fake.repositories[VIT][OLD])


def test_a_branch_is_asked_for_news_and_a_plain_name_is_not(fake, files):
    first = fetch(fake)
    fake.asked()
    assert fetch(fake, f"{NAME}@main") == first
    assert {line.split()[0] for line in fake.asked()} == {"HEAD"}, "nothing came twice"
    fake.repositories[VIT][NEW], fake.head = {**files, "model.safetensors": PAYLOAD + b"new"}, NEW
    assert fetch(fake) == first and not fake.asked()
    second = fetch(fake, f"{NAME}@main")
    assert (first.name, second.name) == (OLD, NEW)
    assert (second / "model.safetensors").read_bytes().endswith(b"new")
    assert fetch(fake) == second


def test_a_commit_is_pinned(fake, files):
    fake.repositories[VIT][NEW], fake.head = files, NEW
    folder = fetch(fake, f"{VIT}@{OLD}")
    assert folder.name == OLD
    fake.asked()
    assert fetch(fake, f"{VIT}@{OLD}") == folder and not fake.asked()


def test_a_branch_that_moves_meanwhile_mixes_no_commits(fake, files):
    fake.repositories[VIT][NEW] = {**files, "config.json": b'{"new": 1}'}
    fake.faults["model.safetensors"] = "branch moves"
    folder = fetch(fake)
    assert fake.head == NEW and folder.name == OLD
    assert (folder / "config.json").read_bytes() == b"{}"


def test_shards_come_with_their_index(fake):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    shards = {"model-1.safetensors": PAYLOAD, "model-2.safetensors": PAYLOAD[::-1]}
    held = {"model.safetensors.index.json": json.dumps(index).encode(), "pytorch_model.bin": PAYLOAD, **shards}
    fake.repositories[VIT][OLD] = held
    folder = fetch(fake)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: content for name, content in held.items() if name != "pytorch_model.bin"
    }
    fake.asked()
    assert fetch(fake) == folder and not fake.asked()
    (folder / "model-2.safetensors").unlink()
    assert fetch(fake) == folder and fake.asked()
    del held["model-2.safetensors"]
    (folder / "model-2.safetensors").unlink()
    assert "no model-2.safetensors, which model.safetensors.index.json names" in refused(fake)


@pytest.mark.parametrize(
    ("index", "says"),
    [
        (b'{"weight_map": {"a": "../../x"}}', "outside its folder"),
        (b'{"weight_map": {"a": ".."}}', "outside its folder"),
        (b"{}", "not an index"),
        (b'{"weight_map": {"a": 3}}', "no"),
    ],
)
def test_a_bad_index_is_refused(fake, index, says):
    fake.repositories[VIT][OLD] = {"model.safetensors.index.json": index}
    assert says in refused(fake)


def test_pytorchs_file_comes_where_there_is_no_other(fake):
    fake.repositories["google/vit"] = {OLD: {"pytorch_model.bin": PAYLOAD}}
    folder = fetch(fake, "google/vit")
    assert [path.name for path in folder.iterdir()] == ["pytorch_model.bin"]
    fake.asked()
    assert fetch(fake, "google/vit") == folder and not fake.asked()


def test_a_repository_without_weights_is_refused(fake):
    fake.repositories["google/vit"] = {OLD: {"flax_model.msgpack": PAYLOAD}}
    assert "no weights that minivit reads: none of model.safetensors" in refused(fake, "google/vit")


# --- what is not as stated ---


@pytest.mark.parametrize("links", [True, False])
def test_a_corrupt_transfer_is_refused_and_removed(fake, tmp_path, monkeypatch, links):
    monkeypatch.setattr(LIBRARY_CONSTANTS, "HF_HUB_DISABLE_SYMLINKS", not links, raising=False)
    monkeypatch.setattr(LIBRARY_CONSTANTS, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)
    fake.faults["model.safetensors"] = "corrupt"
    assert "another SHA-256 than the hub states, and was removed" in refused(fake)
    assert not left(tmp_path)
    fake.faults.clear()
    assert (fetch(fake) / "model.safetensors").read_bytes() == PAYLOAD


def test_a_file_that_rots_in_the_cache_is_fetched_again(fake, tmp_path):
    weights, said = fetch(fake) / "model.safetensors", []
    blob = weights.resolve()
    store = blob.rename(tmp_path / "cache" / "store")  # as where repositories share what they have in common
    blob.symlink_to(store)
    store.write_bytes(PAYLOAD[::-1])
    assert (fetch(fake, report=said.append) / "model.safetensors").read_bytes() == PAYLOAD
    assert len(said) == 1 and "does not have the SHA-256" in said[0]
    assert not store.exists(), "or it would be linked again"


def test_nothing_outside_the_cache_is_removed(fake, tmp_path):
    weights = fetch(fake) / "model.safetensors"
    blob, outside = weights.resolve(), tmp_path / "outside"
    outside.write_bytes(PAYLOAD[::-1])
    blob.unlink()
    blob.symlink_to(outside)
    fetch(fake, report=lambda line: None)
    assert outside.read_bytes() == PAYLOAD[::-1]


def test_weights_without_a_stated_hash_come_with_a_line_that_says_so(fake):
    said = []
    fake.repositories["google/vit"] = {OLD: {"model.safetensors": PAYLOAD}}
    fake.faults["model.safetensors"] = "no hash"
    fetch(fake, "google/vit", report=said.append)
    assert said == ["minivit: the hub states no SHA-256 for model.safetensors, so it was not compared"]


# --- refusals of the hub ---


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (404, {"X-Error-Code": "RepoNotFound"}, "not a file or folder here, and the hub shows no such repository"),
        (401, {"X-Error-Code": "RepoNotFound"}, "if it is private, log in"),
        (403, {"X-Error-Code": "GatedRepo"}, "is gated: request access on its page.*HF_TOKEN"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "has no revision 'main'"),
        (403, {}, "refuses model.safetensors .*check HF_TOKEN"),
        (500, {}, "could not be fetched .*500.*with a browser"),
        (429, {}, "could not be fetched .*(429|not done within 4 s)"),  # huggingface_hub 1.0 waits
    ],
)
def test_a_refusal_is_explained(fake, status, headers, says):
    fake.refusal = (status, headers)
    assert re.search(says, refused(fake))


# --- bounds ---


@pytest.mark.parametrize("fault", ["mute", "silent", "drip", "break"])
def test_no_server_can_hold_us(fake, monkeypatch, fault):
    monkeypatch.setattr(LIBRARY_CONSTANTS, "HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(hub, "GRACE", 1.0)
    monkeypatch.setattr(hub, "SLOWEST", 1e6)
    fake.faults["model.safetensors"] = fault
    start = time.monotonic()
    text = refused(fake)
    assert time.monotonic() - start < 30
    assert "could not be fetched" in text
    assert f"{fake.url}/{VIT}/resolve/main/model.safetensors and" in text


def test_a_broken_transfer_leaves_no_half_file(fake):
    fake.faults["model.safetensors"] = "break once"
    with contextlib.suppress(CheckpointError):  # huggingface_hub 1.0 leaves a second attempt to us, 2.4 makes it
        fetch(fake)
    assert (fetch(fake) / "model.safetensors").read_bytes() == PAYLOAD


def nobody():
    """The URL of a port at which no server listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize("endpoint", ["refused", "unknown"])
def test_without_a_network_the_remedy_is_said(endpoint):
    url = nobody() if endpoint == "refused" else "http://hub.invalid"
    with pytest.raises(CheckpointError) as caught:
        hub.fetch("vit_tiny_patch16_224@main", report=print, endpoint=url)
    folder = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert f"fetch {url}/timm/{folder}/resolve/main/model.safetensors and" in str(caught.value)
    assert f"call from_pretrained('./{folder}')" in str(caught.value)


@pytest.mark.parametrize("revision", ["", "@main", f"@{OLD}"])
def test_without_a_network_the_cache_serves(fake, revision):
    folder, said = fetch(fake), []
    found = hub.fetch(NAME + revision, report=said.append, endpoint=nobody())
    assert found == folder
    assert len(said) == (revision == "@main"), "the only one that asks"


def test_without_a_network_a_cache_that_another_program_filled_serves(fake, files):
    huggingface_hub.hf_hub_download(VIT, "model.safetensors", endpoint=fake.url)
    said = []
    folder = hub.fetch(NAME, report=said.append, endpoint=nobody())
    assert (folder / "model.safetensors").read_bytes() == PAYLOAD
    assert said == [f"minivit: the hub does not answer, using the copy of {VIT} in {folder}"]
    assert sorted(path.name for path in fetch(fake).iterdir()) == sorted(files), "with a network the rest comes"


def test_a_network_lost_between_two_questions_is_no_missing_file(fake, monkeypatch):
    def lost(*args, **named):
        raise LocalEntryNotFoundError("cannot find it in the cache") from TimeoutError("the line went dead")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lost)
    assert "model.safetensors of timm/test_vit.r160_in1k@main could not be fetched (the line went dead)" in refused(
        fake
    )


def test_a_better_file_than_the_cached_one_is_asked_for(fake, files):
    files["pytorch_model.bin"] = PAYLOAD
    for file in set(files) - {"model.safetensors"}:
        huggingface_hub.hf_hub_download(VIT, file, endpoint=fake.url)
    assert (fetch(fake) / "model.safetensors").is_file()


# --- this machine ---


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "Auf dem Gerät ist kein Speicherplatz mehr verfügbar"),
        RuntimeError("IO Error: No space left on device"),
    ],
)
def test_a_full_disk_is_named(fake, tmp_path, monkeypatch, error):
    def full(*args, **named):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    says = refused(fake)
    assert (
        "the disk is full" in says and "needs 0 MB in" in says and str(tmp_path / "cache") in says and "HF_HOME" in says
    )


def test_a_cache_that_cannot_be_written_is_named(fake, tmp_path):
    (tmp_path / "file").write_text("in the way")
    says = refused(fake, cache_dir=tmp_path / "file")
    assert f"cannot be kept in {tmp_path / 'file'}" in says and "HF_HOME" in says


def test_a_cache_that_cannot_be_read_is_named(fake, monkeypatch):
    def closed(*args, **named):
        raise PermissionError(errno.EACCES, "Permission denied", "refs/main")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", closed)
    assert re.search("cache cannot be read.*refs/main.*HF_HOME", refused(fake))


def test_without_the_library_both_ways_out_are_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError) as caught:
        hub.fetch("test_vit", report=print)
    assert "pip install huggingface_hub" in str(caught.value)
    url = "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main"
    assert f"{url}/model.safetensors and {url}/config.json" in str(caught.value)


def test_the_librarys_environment_is_obeyed(fake, tmp_path):
    code = "from minivit.pretrained import hub; print(hub.fetch('test_vit', report=lambda line: None))"
    paths = os.pathsep.join([str(Path(minivit.__file__).parent.parent), *filter(None, sys.path)])

    def run(**more):
        base = {**os.environ, "PYTHONPATH": paths, "HF_ENDPOINT": fake.url, "HF_HOME": str(tmp_path / "home")}
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=base | more, capture_output=True, text=True, check=False, timeout=60)

    offline = run(HF_HUB_OFFLINE="1")
    assert offline.returncode and "HF_HUB_OFFLINE" in offline.stderr and fake.url in offline.stderr
    assert not fake.asked()
    done = run()
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home")
    assert run(HF_HUB_OFFLINE="1").stdout == done.stdout


# --- create_model(name, pretrained=True) ---


@pytest.fixture
def published(fake, tmp_path, monkeypatch):
    """A model whose file the fake hub has under the name of `test_vit`, and which `from_pretrained` finds there."""
    model = minivit.create_model("test_vit", num_classes=5, in_chans=3, img_size=32, seed=3)
    export(model, tmp_path / "out.safetensors")
    fake.repositories[VIT][OLD] = {
        "model.safetensors": (tmp_path / "out.safetensors").read_bytes(),
        "config.json": json.dumps({"num_heads": 2}).encode(),
    }
    monkeypatch.setattr(hub, "fetch", partial(hub.fetch, endpoint=fake.url))
    return model


@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 3}, {"num_classes": 0}, {"in_chans": 1, "img_size": 64}, {"dtype": "float64"}]
)
@pytest.mark.parametrize("name", [NAME, f"{NAME}.r160_in1k"])
def test_a_pretrained_model_is_the_one_of_the_published_name(published, name, options):
    said, expected = [], []
    model = minivit.create_model(name, pretrained=True, **options, drop_path_rate=0.1, report=said.append)
    twin = from_pretrained(name, **options, drop_path_rate=0.1, report=expected.append)
    assert model.config == twin.config and model.config["drop_path_rate"] == 0.1 and type(model) is type(twin)
    assert all(np.array_equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    assert [line for line in said if "fetching" not in line] == expected, "the second time it is in the cache"
    if not options:
        assert np.array_equal(model.state_dict()["head.weight"], published.state_dict()["head.weight"])


def test_fresh_weights_are_the_default_and_make_no_request(published, fake):
    fake.asked()
    model = minivit.create_model(NAME, img_size=32)
    assert model.num_classes == 1000 and model.config["in_chans"] == 3 and model.dtype == np.float32
    twin = minivit.create_model(NAME, False, img_size=32, seed=0)
    assert all(np.array_equal(value, twin.state_dict()[key]) for key, value in model.state_dict().items())
    assert not fake.asked()


def test_without_a_network_create_model_says_what_to_fetch_and_that_works(published, tmp_path, monkeypatch):
    """What the message says is followed to the letter: the files, the folder, the call."""
    url, folder = nobody(), hub.fetch(NAME, report=print)
    held = {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}  # by a browser
    monkeypatch.setattr(LIBRARY_CONSTANTS, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(hub, "fetch", partial(hub.fetch, endpoint=url))
    with pytest.raises(CheckpointError) as caught:
        minivit.create_model(NAME, pretrained=True)
    said = str(caught.value)
    for name in held:
        assert f"{url}/{VIT}/resolve/main/{name}" in said
    place = re.search(r"a folder such as (\S+) and call from_pretrained\('(\S+)'\)", said)
    assert place
    monkeypatch.chdir(tmp_path)
    Path(place[1]).mkdir()
    for name, content in held.items():
        (Path(place[1]) / name).write_bytes(content)
    by_hand, by_name = from_pretrained(place[2]), minivit.create_model(place[2], pretrained=True)
    for model in (by_hand, by_name):
        assert np.array_equal(model.state_dict()["head.weight"], published.state_dict()["head.weight"])


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_name_names_the_nearest(pretrained):
    with pytest.raises(ValueError, match="did you mean test_vit"):
        minivit.create_model("test_vitt", pretrained=pretrained)
