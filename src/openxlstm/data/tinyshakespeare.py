"""The corpus `tinyshakespeare`: the file of Karpathy's char-rnn, byte for byte, cached on disk."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from openxlstm.errors import UserError
from openxlstm.files import write_atomically

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NUM_BYTES = 1_115_394
FILE = Path("tinyshakespeare", "input.txt")
"""Path of the file inside $OPENXLSTM_DATA and inside the cache."""

Progress = Callable[[int, int | None], None]
"""Receives the bytes downloaded so far, and their total or None if the server does not say."""


def tinyshakespeare(url: str = URL, progress: Progress | None = None, timeout: float = 30) -> str:
    """The text, from $OPENXLSTM_DATA, or else the cache, or else `url`, which is then cached.

    Only a file with the right checksum is returned or cached.

    Args:
        url: where to download from.
        progress: is called during the download.
        timeout: seconds without data after which the download fails.

    Raises:
        UserError: if a file found has the wrong checksum, or the download fails.
    """
    cached = cache_folder() / FILE
    by_hand = [Path(folder) / FILE] if (folder := os.environ.get("OPENXLSTM_DATA")) else []
    for path in [*by_hand, cached]:
        if (text := _read(path)) is not None:
            return text
    content = _download(url, progress, timeout)
    try:
        write_atomically(cached, lambda unfinished: unfinished.write_bytes(content))
    except OSError as error:
        raise UserError(
            f"cannot write {cached} ({error.strerror}): "
            "make its folder writable, or set XDG_CACHE_HOME to a folder that is"
        ) from error
    return content.decode()


def cache_folder() -> Path:
    """The folder for downloads: $XDG_CACHE_HOME/openxlstm, or ~/.cache/openxlstm."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openxlstm"


def _read(path: Path) -> str | None:
    """The text in the file at `path`, None if there is no such file."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): make it readable, or remove it"
        ) from error
    if not _is_right(content):
        raise UserError(
            f"{path} is not Tiny Shakespeare (its SHA-256 is wrong): "
            f"delete it to have it downloaded, or put the file of {URL} there"
        )
    return content.decode()


def _is_right(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == SHA256


def _download(url: str, progress: Progress | None, timeout: float) -> bytes:
    """The file at `url` (1.1 MB), checked before it is written to disk."""
    content = b""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as reply:
            size = reply.headers.get("Content-Length")
            # One byte more than expected is enough to detect a wrong file.
            while chunk := reply.read(min(1 << 16, NUM_BYTES + 1 - len(content))):
                content += chunk
                if progress:
                    progress(len(content), int(size) if size else None)
    except urllib.error.HTTPError as error:
        error.close()
        raise UserError(_failed(url, f"HTTP status {error.code}")) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(_failed(url, str(getattr(error, "reason", error)))) from error
    if len(content) < NUM_BYTES:
        raise UserError(_failed(url, f"it ended after {len(content)} of {NUM_BYTES} bytes"))
    if not _is_right(content):
        raise UserError(_failed(url, "the content has the wrong SHA-256"))
    return content


def _failed(url: str, reason: str) -> str:
    return (
        f"the download of {url} failed ({reason}): try again, or save the file "
        f"as {FILE} in a folder and set OPENXLSTM_DATA to that folder"
    )
