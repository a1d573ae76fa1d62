"""A hub on this machine: repositories of files in memory, served as the hub's client asks for them."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """One repository; `cut` names the files whose first transfer breaks in the middle."""

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository, self.files = repository, files
        self.sent: list[tuple[str, str | None]] = []  # each transfer's path and range
        self.headers: list[str] = []  # of all requests
        self.in_git = {path for path in files if path.endswith(".json")}  # without a SHA-256
        self.cut: set[str] = set()
        self.answers: dict[str, tuple[int, bytes]] = {}  # status and body instead of the file or "info"
        self.served: dict[str, bytes] = {}  # what is sent instead of a file's content

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def transferred(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self.sent]

    def info(self) -> dict[str, Any]:
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": "0" * 40}
            | ({} if path in self.in_git else {"lfs": _lfs(data)})
            for path, data in self.files.items()
        ]
        return {"id": self.repository, "sha": REVISION, "siblings": siblings}


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def _lfs(data: bytes) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path, hub = unquote(urlsplit(self.path).path), self.server
        hub.headers.append(str(self.headers))
        if path == f"/api/datasets/{hub.repository}":
            self._send(*hub.answers.get("info", (200, json.dumps(hub.info()).encode())))
            return
        match = re.fullmatch(f"/datasets/{hub.repository}/resolve/{REVISION}/(.*)", path)
        if match is None or match[1] not in hub.files:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound" if match else "RepoNotFound"})
            return
        self._send_file(match[1], with_body=with_body)

    def _send_file(self, path: str, *, with_body: bool) -> None:
        hub, wanted = self.server, self.headers.get("Range")
        if path in hub.answers:
            self._send(*hub.answers[path])
            return
        data = hub.files[path]
        digest = (hashlib.sha1 if path in hub.in_git else hashlib.sha256)(data).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": REVISION, "X-Linked-Size": str(len(data))}
        if not with_body:
            self._send(200, b"", headers | {"Content-Length": str(len(data))})
            return
        hub.sent.append((path, wanted))
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        body = hub.served.get(path, data)[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if path in hub.cut:
            hub.cut.discard(path)
            self._send(200, body[: len(body) // 2], headers | {"Content-Length": str(len(body))})
            self.close_connection = True
            return
        self._send(206 if start else 200, body, headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
