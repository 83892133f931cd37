"""Published weights by name: found on the Hugging Face hub, fetched once, compared with the SHA-256 it states.

The cache, resuming, progress bars, tokens and mirrors are those of the library huggingface_hub.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import importlib
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from minivit.io.budget import open_file
from minivit.io.safetensors import CheckpointError
from minivit.io.weights import shards_of
from minivit.models import list_models

T = TypeVar("T")

# of these a repository's first, in the order of `weights.py`
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
BESIDE = ("config.json", "preprocessor_config.json")  # what shapes cannot tell, and how images are prepared

GRACE = 60.0  # seconds for a file of any size: name look-ups, redirects, and five new attempts of huggingface_hub's
SLOWEST = 16e3  # bytes a second, as for MNIST; a server that drips, or breaks off again and again, is left then

# The tag that timm takes for each architecture: the first of its pretrained configurations that has weights.
# Source: timm 1.0.31, default_cfgs in timm/models/{vision_transformer,deit,swin_transformer,swin_transformer_v2}.py,
# read 2026-11-24. All are published as timm/<architecture>.<tag>.
_TAGS = {
    "augreg2_in21k_ft_in1k": "vit_base_patch16_224 vit_base_patch8_224",
    "augreg_in21k_ft_in1k": """
        vit_tiny_patch16_224 vit_tiny_patch16_384 vit_small_patch32_224 vit_small_patch32_384 vit_small_patch16_224
        vit_small_patch16_384 vit_base_patch32_224 vit_base_patch32_384 vit_base_patch16_384 vit_large_patch16_224
        vit_large_patch16_384 vit_tiny_r_s16_p8_224 vit_tiny_r_s16_p8_384 vit_small_r26_s32_224 vit_small_r26_s32_384
        vit_large_r50_s32_224 vit_large_r50_s32_384""",
    "orig_in21k_ft_in1k": "vit_large_patch32_384 vit_base_r50_s16_384",
    "orig_in21k": "vit_large_patch32_224 vit_huge_patch14_224 vit_base_r50_s16_224",
    "dino": "vit_small_patch8_224",
    "fb_in1k": """
        deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384
        deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224
        deit_base_distilled_patch16_384""",
    "ms_in1k": """
        swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_tiny_window16_256 swinv2_small_window8_256
        swinv2_small_window16_256 swinv2_base_window8_256 swinv2_base_window16_256""",
    "ms_in22k": "swinv2_base_window12_192 swinv2_large_window12_192",
    "ms_in22k_ft_in1k": """
        swin_small_patch4_window7_224 swin_base_patch4_window7_224 swin_base_patch4_window12_384
        swin_large_patch4_window7_224 swin_large_patch4_window12_384 swinv2_base_window12to16_192to256
        swinv2_base_window12to24_192to384 swinv2_large_window12to16_192to256 swinv2_large_window12to24_192to384""",
    "r160_in1k": "test_vit",
    "sw_in1k": "vit_base_patch16_rpn_224",
}
DEFAULT_TAGS = {name: tag for tag, names in _TAGS.items() for name in names.split()}

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".json")  # a name that ends so is a missing file
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Unreachable(CheckpointError):
    """The hub gave no answer, so a copy in the cache may serve."""


def fetch(
    name: str,
    *,
    report: Callable[[str], None],
    cache_dir: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Path:
    """The folder with the weights of this name and their config.json, from the cache or fetched into it.

    What is in the cache is used without asking the hub, and is compared with its SHA-256 each time: 0.2 s for 330 MB,
    less than reading the arrays takes, and a disk or another program may have changed it since.

    Args:
        name: a published size ("vit_base_patch16_224", with timm's default tag), one with a tag
            ("vit_base_patch16_224.augreg_in21k"), or "owner/repository" of the hub; each may end in "@revision".
            "@" and 40 hex digits pin a commit; "@main" or another branch asks the hub whether there is a newer one.
        report: gets a line for each large file that is fetched.
        cache_dir: instead of huggingface_hub's, which HF_HOME moves.
        endpoint: URL of a mirror of the hub, instead of HF_ENDPOINT's.

    Raises:
        CheckpointError: if there are no such weights, or they cannot be fetched, or are not what the hub states; it
            says what to do, with no network too.
    """
    repository, revision = _place(name)
    asks = revision is not None and not _COMMIT.fullmatch(revision)
    copy = _Copy(_library(repository, revision or "main"), repository, revision or "main", report, cache_dir, endpoint)
    try:
        return (None if asks else copy.cached()) or copy.download()
    except OSError as error:
        raise CheckpointError(f"the cache cannot be read ({error}): let HF_HOME name another folder") from error
    except _Unreachable:
        folder = copy.cached(complete=False)
        if folder is None:
            raise
        report(f"minivit: the hub does not answer, using the copy of {repository} in {folder}")
        return folder


def _place(name: str) -> tuple[str, str | None]:
    """Repository and revision that a name means."""
    place, _, revision = name.partition("@")
    if place.endswith(_FILES) or place.startswith((".", "~", "/")) or "\\" in place:
        raise CheckpointError(f"{name}: no such file or folder, check the path")
    if "/" in place:
        if not _REPOSITORY.fullmatch(place):
            raise CheckpointError(f"{name}: no such file or folder, and no owner/repository of the hub: check the path")
        return place, revision or None
    size, _, tag = place.partition(".")
    if size not in list_models():
        near = difflib.get_close_matches(size, list_models(), n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "minivit.list_models() has the names"
        raise CheckpointError(
            f"{name!r} is no file or folder, no published size ({hint}), and no owner/repository of the hub"
        )
    tag = tag or DEFAULT_TAGS.get(size, "")
    if not tag:
        raise CheckpointError(
            f"timm publishes no weights for {size}: minivit.create_model({size!r}) gives fresh ones, "
            f"'owner/repository' takes those of another publisher"
        )
    return f"timm/{size}.{tag}", revision or None


def _library(repository: str, revision: str) -> Any:
    try:
        for module in ("constants", "errors"):  # which it does not load by itself
            importlib.import_module(f"huggingface_hub.{module}")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            f"{repository} cannot be fetched, because huggingface_hub cannot be imported ({error}): "
            f"pip install 'minivit[hub]', or {_by_hand(repository, revision, None)}"
        ) from None


def _by_hand(repository: str, revision: str, endpoint: str | None) -> str:
    """What to do where this machine cannot fetch the files."""
    host = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url, folder = f"{host}/{repository}/resolve/{revision}", PurePosixPath(repository).name
    return (
        f"fetch {url}/{WEIGHTS[0]} and {url}/{BESIDE[0]} with a browser, on another machine if need be, "
        f"put both into a folder such as {folder} and call from_pretrained('./{folder}')"
    )


@dataclass(frozen=True)
class _Copy:
    """One revision of a repository, and its copy in the cache; the fields as in `fetch`, `hub` being the library."""

    hub: Any
    repository: str
    revision: str
    report: Callable[[str], None]
    cache_dir: str | os.PathLike[str] | None
    endpoint: str | None

    def cached(self, complete: bool = True) -> Path | None:
        """The folder in the cache, if its content is whole.

        Args:
            complete: also say None if the cache does not know whether the repository has config.json and the like.
        """
        if complete and any(self._look(name) is None for name in BESIDE):
            return None
        for name in WEIGHTS:
            found = self._look(name)
            if isinstance(found, str):
                paths = [self._look(each) for each in (name, *_shards(Path(found)))]
                whole = all(isinstance(path, str) and self._intact(Path(path), _linked(path)) for path in paths)
                return Path(found).parent if whole else None
            if complete and found is None:
                return None  # not known to be absent, and better than what follows
        return None

    def _look(self, file: str) -> Any:
        """The path of a file in the cache, None if it is not there, and an object if the repository has none such."""
        return self.hub.try_to_load_from_cache(self.repository, file, cache_dir=self.cache_dir, revision=self.revision)

    def download(self) -> Path:
        """Fetch what the cache lacks; all files of one commit, though the branch may move meanwhile."""
        weights = next((path for path in map(self._fetch, WEIGHTS) if path), None)
        if weights is None:
            raise CheckpointError(f"{self._name} has no weights that minivit reads: none of {', '.join(WEIGHTS)}")
        pinned = _Copy(self.hub, self.repository, weights.parent.name, self.report, self.cache_dir, self.endpoint)
        for shard in _shards(weights):
            if pinned._fetch(shard) is None:
                raise CheckpointError(f"{self._name} has no {shard}, which its {weights.name} names: tell its owner")
        for name in BESIDE:
            pinned._fetch(name)
        return weights.parent

    @property
    def _name(self) -> str:
        return f"{self.repository}@{self.revision}"

    def _fetch(self, file: str) -> Path | None:
        """A file's path in the cache, fetched and compared; None if the repository has none of this name."""
        where: dict[str, Any] = {"revision": self.revision, "endpoint": self.endpoint}
        errors, timeout = self.hub.errors, float(self.hub.constants.HF_HUB_ETAG_TIMEOUT)
        url = self.hub.hf_hub_url(self.repository, file, **where)
        stated, size = None, 0
        try:
            # hf_hub_download alone would try for minutes to reach a hub that is not there
            with contextlib.suppress(errors.EntryNotFoundError):
                head = _within(timeout, lambda: self.hub.get_hf_file_metadata(url, timeout=timeout))
                stated, size = head.etag, head.size or 0
            if size > 1e6:
                self.report(
                    f"minivit: fetching {file} ({size / 1e6:.0f} MB) of {self._name}, unless it is in the cache"
                )
            # asked also for a file that is not there: it notes that in the cache
            got = _within(
                GRACE + size / SLOWEST,
                lambda: self.hub.hf_hub_download(
                    self.repository, file, cache_dir=self.cache_dir, etag_timeout=timeout, **where
                ),
            )
        except errors.LocalEntryNotFoundError as error:  # for this library an EntryNotFoundError, but a lost connection
            raise self._explained(error.__cause__ or error, file, size) from error
        except errors.EntryNotFoundError:
            return None
        except Exception as error:  # its HTTP client has changed with each major version, and so have the types
            raise self._explained(error, file, size) from error
        path = Path(got)
        if not self._intact(path, stated):
            raise CheckpointError(
                f"{file} of {self._name} has another SHA-256 than the hub states, and was removed from the cache: try "
                "again; if this stays so, something on the way changes it, such as a proxy or a mirror"
            )
        return path

    def _intact(self, path: Path, stated: str | None) -> bool:
        """Whether a file has the SHA-256 stated; else it is removed. Git's own hashes of small files are no SHA-256."""
        if stated is None or not _SHA256.fullmatch(stated):
            if stated and path.suffix != ".json":
                self.report(f"minivit: the hub states no SHA-256 for {path.name}, so it was not compared")
            return True
        digest = hashlib.sha256()
        with open_file(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() == stated:
            return True
        self.report(f"minivit: {path} does not have the SHA-256 that the hub states: removed")
        while self._is_inside(path):  # snapshot -> blob -> perhaps a store that repositories share
            after = path.parent / os.readlink(path) if path.is_symlink() else None
            path.unlink(missing_ok=True)
            if after is None:
                break
            path = after
        return False

    def _is_inside(self, path: Path) -> bool:
        """Whether a file, or a link itself, lies in the cache: what a link leads to elsewhere is not ours to remove."""
        cache = Path(self.cache_dir or self.hub.constants.HF_HUB_CACHE).expanduser()
        return path.parent.resolve().is_relative_to(cache.resolve())

    def _explained(self, error: BaseException, file: str, size: int) -> CheckpointError:
        """What went wrong, and the remedy."""
        errors, what = self.hub.errors, f"{file} of {self._name}"
        cache = self.cache_dir or self.hub.constants.HF_HUB_CACHE
        why = " ".join(str(error).split())[:300] or type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        page = _by_hand(self.repository, self.revision, self.endpoint)
        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(
                f"{self.repository} is gated: ask for access on its page of the hub, then log in with `hf auth login` "
                f"or set HF_TOKEN ({why})"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return CheckpointError(
                f"{self.repository} is no file or folder here, and the hub shows no repository of this name: check the "
                f"spelling; if it is private, log in with `hf auth login` or set HF_TOKEN"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(f"{self.repository} has no revision {self.revision!r}: leave it out for main")
        if status in (401, 403):
            return CheckpointError(f"the hub refuses {what} ({why}): check HF_TOKEN, or log in with `hf auth login`")
        # hf_xet, which fetches large files, wraps the system's error in one of its own
        if getattr(error, "errno", None) in _FULL or "No space left" in why:
            return CheckpointError(
                f"the disk is full: {what} needs {size / 1e6:.0f} MB in {cache}. Free as much, or let HF_HOME name a "
                "folder on another disk"
            )
        if getattr(error, "filename", None):  # of files, not of the network
            return CheckpointError(f"{what} cannot be kept in {cache} ({why}): let HF_HOME name another folder")
        return _Unreachable(
            f"{what} could not be fetched ({why}): check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or {page}"
        )


def _shards(file: Path) -> list[str]:
    """The files that an index names; none for any other file."""
    return sorted(set(shards_of(file).values())) if file.name.endswith(".index.json") else []


def _linked(path: str) -> str | None:
    """The hash by whose name the cache keeps a file; None where it has no links (Windows), so that none is known.

    The first link only: it may lead on to a store whose names are other hashes.
    """
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """What the call returns, or TimeoutError; in a thread, since a name look-up or a dripping server heeds no timeout.

    A call that is given up goes on until the program ends, which cannot harm the cache: files come there whole.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="minivit-hub", daemon=True).start()
    try:
        return future.result(seconds)
    except FutureTimeoutError:
        if future.done():  # the call's own
            raise
        raise TimeoutError(f"not done within {seconds:.0f} s") from None
