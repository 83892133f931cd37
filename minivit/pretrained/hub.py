"""Published weights by name: found on the Hugging Face hub, fetched once, and compared with the hub's SHA-256.

The cache, resuming, progress bars, tokens and mirrors are those of the library huggingface_hub.
"""

from __future__ import annotations

import contextlib
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

from minivit.argument_checks import names_like
from minivit.io.budget import open_file
from minivit.io.safetensors import CheckpointError
from minivit.io.weights import shards_of
from minivit.models import list_models
from minivit.pretrained.tags import DEFAULT_TAGS

T = TypeVar("T")

# in order of preference, as in `weights.py`
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# settings that shapes do not show, and the preprocessing
BESIDE = ("config.json", "preprocessor_config.json", "processor_config.json")

GRACE = 60.0  # seconds for a file of any size: name look-ups, redirects, and five new attempts of huggingface_hub's
SLOWEST = 16e3  # bytes a second, as for MNIST; a slower or repeatedly failing server is abandoned

_QUICK = "_quickgelu_"  # two architectures of one repository
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".json")  # with such an ending, a missing file
_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Unreachable(CheckpointError):
    """The hub did not answer, so a copy in the cache may be used."""


def fetch(
    name: str,
    *,
    report: Callable[[str], None],
    cache_dir: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Path:
    """The folder with the weights of this name and their config.json, from the cache or fetched into it.

    Files in the cache are used without a request to the hub. They are compared with their SHA-256 each time, because a
    disk or another program may have changed them: 0.2 s for 330 MB, less than reading the arrays takes.

    Args:
        name: a published size ("vit_base_patch16_224", with timm's default tag), one with a tag
            ("vit_base_patch16_224.augreg_in21k"), or "owner/repository" of the hub; each may end in "@revision".
            "@" and 40 hex digits pin a commit; "@main" or another branch checks the hub for a newer one.
        report: gets a line for each large file that is fetched.
        cache_dir: instead of huggingface_hub's, which HF_HOME sets.
        endpoint: URL of a mirror of the hub, instead of HF_ENDPOINT's.

    Raises:
        CheckpointError: if there are no such weights, or they cannot be fetched, or differ from the hub's SHA-256; the
            message has the remedy, also without a network.
    """
    repository, revision = repository_of(name)
    asks = revision is not None and not _COMMIT.fullmatch(revision)
    copy = _Copy(_library(repository, revision or "main"), repository, revision or "main", report, cache_dir, endpoint)
    try:
        return (None if asks else copy.cached()) or copy.download()
    except OSError as error:
        raise CheckpointError(f"the cache cannot be read ({error}): set HF_HOME to another folder") from error
    except _Unreachable:
        folder = copy.cached(complete=False)
        if folder is None:
            raise
        report(f"minivit: the hub does not answer, using the copy of {repository} in {folder}")
        return folder


def repository_of(name: str) -> tuple[str, str | None]:
    """The repository and revision of a name."""
    repository, _, revision = name.partition("@")
    if repository.endswith(_FILES) or repository.startswith((".", "~", "/")) or "\\" in repository:
        raise CheckpointError(f"{name}: no such file or folder, check the path")
    if "/" in repository:
        if not _REPOSITORY.fullmatch(repository):
            raise CheckpointError(f"{name}: no such file or folder, nor an owner/repository of the hub: check the path")
        return repository, revision or None
    size, _, tag = repository.partition(".")
    if size not in list_models():
        near = names_like(size, list_models(), 0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "minivit.list_models() has the names"
        raise CheckpointError(
            f"{name!r} is not a file or folder, a published size ({hint}), or an owner/repository of the hub"
        )
    tag = tag or DEFAULT_TAGS.get(size, "")
    if not tag:
        raise CheckpointError(
            f"timm publishes no weights for {size}: minivit.create_model({size!r}) gives fresh ones, "
            f"'owner/repository' loads those of another publisher"
        )
    return f"timm/{size.replace(_QUICK, '_')}.{tag}", revision or None


def said_by_name(name: str) -> dict[str, Any]:
    """Arguments of the class that a published name says, and that its repository's files may not."""
    return {"gelu": "quick"} if _QUICK in name and "/" not in name else {}


def _library(repository: str, revision: str) -> Any:
    try:
        for module in ("constants", "errors"):  # which it does not import by itself
            importlib.import_module(f"huggingface_hub.{module}")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise CheckpointError(
            f"{repository} cannot be fetched, because huggingface_hub cannot be imported ({error}): "
            f"pip install huggingface_hub, or {_by_hand(repository, revision, None)}"
        ) from None


def _by_hand(repository: str, revision: str, endpoint: str | None) -> str:
    """The remedy where this machine cannot fetch the files."""
    host = (endpoint or os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    url, folder = f"{host}/{repository}/resolve/{revision}", PurePosixPath(repository).name
    return (
        f"fetch {url}/{WEIGHTS[0]} and {url}/{BESIDE[0]} with a browser, if necessary on another machine, "
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
        """The folder in the cache, if its content is complete.

        Args:
            complete: also return None if the cache does not record whether the repository has config.json.
        """
        if complete and any(self._look(name) is None for name in BESIDE):
            return None
        for name in WEIGHTS:
            found = self._look(name)
            if isinstance(found, str):
                paths = [self._look(each) for each in (name, *_shards(Path(found)))]
                intact = all(isinstance(path, str) and self._intact(Path(path), _linked(path)) for path in paths)
                return Path(found).parent if intact else None
            if complete and found is None:
                return None  # not known to be absent, and better than what follows
        return None

    def _look(self, file: str) -> Any:
        """The path of a file in the cache, None if it is absent, and an object if the repository has no such file."""
        return self.hub.try_to_load_from_cache(self.repository, file, cache_dir=self.cache_dir, revision=self.revision)

    def download(self) -> Path:
        """Fetch the files that the cache lacks, all of one commit, even if the branch moves meanwhile."""
        weights = next((path for path in map(self._fetch, WEIGHTS) if path), None)
        if weights is None:
            raise CheckpointError(f"{self._name} has no weights that minivit reads: none of {', '.join(WEIGHTS)}")
        pinned = _Copy(self.hub, self.repository, weights.parent.name, self.report, self.cache_dir, self.endpoint)
        for shard in _shards(weights):
            if pinned._fetch(shard) is None:
                raise CheckpointError(f"{self._name} has no {shard}, which {weights.name} names: tell its owner")
        for name in BESIDE:
            pinned._fetch(name)
        return weights.parent

    @property
    def _name(self) -> str:
        return f"{self.repository}@{self.revision}"

    def _fetch(self, file: str) -> Path | None:
        """A file's path in the cache, fetched and compared; None if the repository has no file of this name."""
        where: dict[str, Any] = {"revision": self.revision, "endpoint": self.endpoint}
        errors, timeout = self.hub.errors, float(self.hub.constants.HF_HUB_ETAG_TIMEOUT)
        url = self.hub.hf_hub_url(self.repository, file, **where)
        stated, size = None, 0
        try:
            # hf_hub_download alone would try for minutes to reach an unreachable hub
            with contextlib.suppress(errors.EntryNotFoundError):
                head = _within(timeout, lambda: self.hub.get_hf_file_metadata(url, timeout=timeout))
                stated, size = head.etag, head.size or 0
            if size > 1e6:
                self.report(
                    f"minivit: fetching {file} ({size / 1e6:.0f} MB) of {self._name}, unless it is in the cache"
                )
            # also called for a missing file: it records that in the cache
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
        except Exception as error:  # its HTTP client, and so the types of errors, has changed with each major version
            raise self._explained(error, file, size) from error
        path = Path(got)
        if not self._intact(path, stated):
            raise CheckpointError(
                f"{file} of {self._name} has another SHA-256 than the hub states, and was removed from the cache: try "
                "again; if it persists, a proxy or a mirror changes the file"
            )
        return path

    def _intact(self, path: Path, stated: str | None) -> bool:
        """Whether a file has the stated SHA-256; else it is removed. Git's hashes of small files are not SHA-256."""
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
        """Whether a file, or a link itself, is in the cache: a link's target outside must not be removed."""
        cache = Path(self.cache_dir or self.hub.constants.HF_HUB_CACHE).expanduser()
        return path.parent.resolve().is_relative_to(cache.resolve())

    def _explained(self, error: BaseException, file: str, size: int) -> CheckpointError:
        """The error message, with the remedy."""
        errors, what = self.hub.errors, f"{file} of {self._name}"
        cache = self.cache_dir or self.hub.constants.HF_HUB_CACHE
        why = " ".join(str(error).split())[:300] or type(error).__name__
        status = getattr(getattr(error, "response", None), "status_code", None)
        page = _by_hand(self.repository, self.revision, self.endpoint)
        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(
                f"{self.repository} is gated: request access on its page of the hub, then log in with `hf auth login` "
                f"or set HF_TOKEN ({why})"
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return CheckpointError(
                f"{self.repository} is not a file or folder here, and the hub shows no such repository: check the "
                f"spelling; if it is private, log in with `hf auth login` or set HF_TOKEN"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(f"{self.repository} has no revision {self.revision!r}: leave it out for main")
        if status in (401, 403):
            return CheckpointError(f"the hub refuses {what} ({why}): check HF_TOKEN, or log in with `hf auth login`")
        # hf_xet, which fetches large files, wraps the system's error in one of its own
        if getattr(error, "errno", None) in _FULL or "No space left" in why:
            return CheckpointError(
                f"the disk is full: {what} needs {size / 1e6:.0f} MB in {cache}. Free as much, or set HF_HOME to a "
                "folder on another disk"
            )
        if getattr(error, "filename", None):  # of files, not of the network
            return CheckpointError(f"{what} cannot be kept in {cache} ({why}): set HF_HOME to another folder")
        return _Unreachable(
            f"{what} could not be fetched ({why}): check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or {page}"
        )


def _shards(file: Path) -> list[str]:
    """The files that an index names; none for any other file."""
    return sorted(set(shards_of(file).values())) if file.name.endswith(".index.json") else []


def _linked(path: str) -> str | None:
    """The hash in the cache's name of a file; None where the cache has no links (Windows).

    Only the first link is followed: it may lead to a store whose names are other hashes.
    """
    return os.path.basename(os.readlink(path)) if os.path.islink(path) else None


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of the call, or TimeoutError; in a thread, since name look-ups and slow servers ignore timeouts.

    An abandoned call continues until the program ends. It cannot damage the cache, which is written atomically.
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
        if future.done():  # raised by the call
            raise
        raise TimeoutError(f"not done within {seconds:.0f} s") from None
