"""The corpus tinyshakespeare: found, or downloaded once, or refused; never half of it."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from openxlstm.data import tinyshakespeare
from openxlstm.data.corpora import load_documents, split
from openxlstm.errors import UserError

SHARED = Path(__file__).parents[3] / "shared"


def message() -> str:
    with pytest.raises(UserError) as caught:
        load_documents("tinyshakespeare")
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with the path: /status/length of the content/length that is announced."""

    content = b""

    def do_GET(self) -> None:
        status, sent, announced = (int(part) for part in self.path.strip("/").split("/"))
        self.send_response(status)
        if announced:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(self.content[:sent])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


class TestTinyShakespeare:
    TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 3000

    @pytest.fixture(autouse=True)
    def pretend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another text stands in for the real one, which tests cannot bring along."""
        content = self.TEXT.encode()
        monkeypatch.setattr(Handler, "content", content)
        monkeypatch.setattr(tinyshakespeare, "SHA256", hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(tinyshakespeare, "NUM_BYTES", len(content))

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        return tmp_path / "cache"

    @pytest.mark.parametrize("announced", [True, False])
    def test_is_downloaded_once(self, server: str, cache: Path, announced: bool):
        size = len(self.TEXT)
        calls: list[tuple[int, int | None]] = []
        text = tinyshakespeare.tinyshakespeare(
            f"{server}/200/{size}/{size * announced}", lambda *call: calls.append(call)
        )
        assert text == self.TEXT
        done = [call[0] for call in calls]
        assert len(done) > 1
        assert done == sorted(set(done))
        assert done[-1] == size
        assert {call[1] for call in calls} == {size if announced else None}
        files = [path for path in cache.rglob("*") if path.is_file()]
        assert files == [cache / "openxlstm" / "tinyshakespeare" / "input.txt"]
        assert load_documents("tinyshakespeare") == [
            text
        ]  # no server at that address: from the cache

    @pytest.mark.parametrize(
        ("reply", "reason"),
        [
            ("404/10/10", "HTTP status 404"),
            ("200/1000/183000", "ended after 1000 of 183000 bytes"),
            ("200/1000/0", "ended after 1000 of 183000 bytes"),
            ("200/0/0", "ended after 0 of 183000 bytes"),
        ],
    )
    def test_a_failed_download_leaves_nothing(
        self, server: str, cache: Path, reply: str, reason: str
    ):
        self.fails(f"{server}/{reply}", reason, cache)

    @pytest.mark.parametrize("extra", [b"", b"more", b"more" * 100_000])
    def test_a_wrong_download_leaves_nothing(
        self, server: str, cache: Path, monkeypatch: pytest.MonkeyPatch, extra: bytes
    ):
        content = b"x" + Handler.content[1:] + extra
        monkeypatch.setattr(Handler, "content", content)
        self.fails(f"{server}/200/{len(content)}/{len(content)}", "wrong SHA-256", cache)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "nonsense"])
    def test_no_network_leaves_nothing(self, cache: Path, url: str):
        self.fails(url, "failed", cache)

    def test_a_silent_server_is_given_up(self, cache: Path):
        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as deaf:  # listens, never answers
            self.fails(f"http://127.0.0.1:{deaf.server_port}", "timed out", cache, timeout=0.05)

    def fails(self, url: str, reason: str, cache: Path, timeout: float = 30) -> None:
        with pytest.raises(UserError) as caught:
            tinyshakespeare.tinyshakespeare(url, timeout=timeout)
        assert reason in str(caught.value)
        assert "OPENXLSTM_DATA" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not list(cache.rglob("*"))

    def test_a_cache_that_is_no_folder(self, server: str, cache: Path):
        cache.write_text("a file where a folder should be")
        size = len(self.TEXT)
        with pytest.raises(UserError, match="remove it"):
            tinyshakespeare.tinyshakespeare(f"{server}/200/{size}/{size}")

    def test_a_full_disk_leaves_nothing(
        self, server: str, cache: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def fill(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fill)
        size = len(self.TEXT)
        with pytest.raises(UserError, match="No space left on device"):
            tinyshakespeare.tinyshakespeare(f"{server}/200/{size}/{size}")
        assert not [path for path in cache.rglob("*") if path.is_file()]

    def put(self, folder: Path, content: str) -> Path:
        file = folder / "tinyshakespeare" / "input.txt"
        file.parent.mkdir(parents=True)
        file.write_text(content)
        return file

    def test_own_file_goes_before_the_cache(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        wrong = self.put(cache / "openxlstm", "wrong")
        assert f"{wrong} is not Tiny Shakespeare" in message()
        self.put(tmp_path, self.TEXT)
        monkeypatch.setenv("OPENXLSTM_DATA", str(tmp_path))
        assert load_documents("tinyshakespeare") == [self.TEXT]

    def test_wrong_own_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        wrong = self.put(tmp_path, self.TEXT + "more")
        monkeypatch.setenv("OPENXLSTM_DATA", str(tmp_path))
        assert f"{wrong} is not Tiny Shakespeare" in message()

    def test_own_folder_without_the_file(
        self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        self.put(cache / "openxlstm", self.TEXT)
        monkeypatch.setenv("OPENXLSTM_DATA", str(tmp_path))
        assert load_documents("tinyshakespeare") == [self.TEXT]


@pytest.mark.skipif(
    not (SHARED / tinyshakespeare.FILE).exists(), reason="needs shared/tinyshakespeare"
)
class TestRealTinyShakespeare:
    @pytest.fixture
    def text(self, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("OPENXLSTM_DATA", str(SHARED))
        return load_documents("tinyshakespeare")[0]

    def test_is_the_file(self, text: str):
        assert len(text) == tinyshakespeare.NUM_BYTES
        assert len(set(text)) == 65
        assert [text] == load_documents(str(SHARED / tinyshakespeare.FILE))

    def test_is_split_as_others_split_it(self, text: str):
        train, val = split(text, 0.1, "last")
        assert (train, val) == (text[:1_003_854], text[1_003_854:])
        assert len(train) == int(len(text) * 0.9)
        train, val = split(text, 0.1, "first")
        assert (train, val) == (text[111_539:], text[:111_539])
