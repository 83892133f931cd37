"""Mirrors: fetching a file over HTTP, with limits on time and size, and a check of its content."""

from __future__ import annotations

import http.client
import importlib
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import Future, TimeoutError as FutureTimeoutError
from typing import Any, TypeVar

from minivit.data.idx import CHUNK, DataError

T = TypeVar("T")

TIMEOUT = 4.0  # seconds for name look-up, connection and first answer, and then between two chunks
MAX_SECONDS = 600.0  # for one file: 16 kB/s for MNIST's largest; bounds the time for a slow server
MAX_DOWNLOAD = 1 << 26  # 64 MiB: MNIST's largest file has 9.9 MB gzipped, 47 MB plain


class Mirrors:
    """Servers that hold the same files, tried in turn; one that does not answer is not tried again.

    So without a network the wait is at most `timeout` seconds for each mirror, for any number of files.
    """

    def __init__(self, urls: Iterable[str], *, timeout: float = TIMEOUT, quiet: bool = False):
        """`urls` are those of the folders, best first; `quiet` shows no progress bar.

        Raises:
            ValueError: a URL is not one of HTTP.
        """
        urls = list(urls)
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"mirror {url!r} must begin with http:// or https://")
        self.urls = [url.rstrip("/") + "/" for url in urls]
        self.failures: list[str] = []
        self.reasons: dict[str, None] = {}  # short reasons, each once
        self._timeout, self._quiet = timeout, quiet

    def fetch(self, file_name: str, check: Callable[[bytes, str], T]) -> tuple[bytes, T]:
        """Return the first copy of `file_name` that passes `check`, and the result of `check`.

        Args:
            file_name: name inside the mirrors' folders.
            check: called with the bytes and their URL; raises DataError to refuse them.

        Raises:
            DataError: no mirror gave a good copy; the message has each reason, as has `failures`.
        """
        for url in list(self.urls):
            try:
                data = _transfer(url + file_name, self._timeout, show=not self._quiet)
                return data, check(data, url + file_name)
            except DataError as error:
                self.failures.append(str(error))
                self.reasons[str(error)] = None
            except urllib.error.HTTPError as error:
                error.close()
                self.failures.append(f"{url}{file_name}: HTTP status {error.code}")
                self.reasons[f"HTTP status {error.code}"] = None
            except (OSError, http.client.HTTPException) as error:
                self.urls.remove(url)
                reason = getattr(error, "reason", error)
                self.failures.append(f"{url}: {str(reason) or type(reason).__name__}")
                self.reasons[getattr(reason, "strerror", None) or str(reason) or type(reason).__name__] = None
        why = "; ".join(self.failures) or "none was given"
        raise DataError(
            f"no mirror has a good copy of {file_name} ({why}): check the network, or put the "
            "files into a folder and pass --data FOLDER (data_dir=)"
        )


def _transfer(url: str, timeout: float, *, show: bool) -> bytes:
    """The body at `url`, within `MAX_SECONDS` and `MAX_DOWNLOAD`."""
    deadline = time.monotonic() + MAX_SECONDS
    data = bytearray()
    with _open(url, timeout) as response:
        total = response.length
        bar = _progress_bar(total, url.rpartition("/")[2]) if show else None
        try:
            # read1 returns after one read, so a slow server cannot delay past the deadline.
            while chunk := response.read1(CHUNK):
                data += chunk
                if bar is not None:
                    bar.update(len(chunk))
                if len(data) > MAX_DOWNLOAD:
                    raise DataError(f"{url}: more than {MAX_DOWNLOAD} bytes, refused")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{len(data)} bytes after {MAX_SECONDS:g} s: too slow")
        finally:
            if bar is not None:
                bar.close()
    if total is not None and len(data) != total:
        raise DataError(f"{url}: ended after {len(data)} bytes, expected {total}")
    return bytes(data)


def _open(url: str, timeout: float) -> http.client.HTTPResponse:
    """Open `url`, or raise TimeoutError after `timeout` seconds.

    It runs in a thread, because the socket's own timeout covers neither a name look-up that hangs nor the
    sum over a host's several addresses.
    """
    future: Future[http.client.HTTPResponse] = Future()

    def ask() -> None:
        try:
            future.set_result(urllib.request.urlopen(url, timeout=timeout))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=ask, name="minivit-download", daemon=True).start()
    try:
        return future.result(timeout)
    except FutureTimeoutError:
        future.add_done_callback(_close_late)
        raise TimeoutError(f"no answer within {timeout:g} s") from None


def _close_late(future: Future[http.client.HTTPResponse]) -> None:
    """Close a response that arrived after the timeout."""
    late = future.exception() or future.result()
    if isinstance(late, (http.client.HTTPResponse, urllib.error.HTTPError)):
        late.close()


def _progress_bar(total: int | None, label: str) -> Any:
    """A tqdm bar on a terminal's stderr; None without tqdm or terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:
        return None
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, leave=False)
