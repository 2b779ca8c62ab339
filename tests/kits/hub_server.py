"""A small hub on 127.0.0.1 that speaks the protocol of the real `huggingface_hub` client.

    with HubServer() as hub:
        hub.add("Wan-AI/Wan2.2-I2V-A14B-Diffusers", folder)
        ensure(..., endpoint=hub.url)          # or HF_ENDPOINT=hub.url for another process

As on the hub, small files are in git (ETag: git's SHA-1) and weights in LFS: they are redirected to another origin
(here `localhost` instead of `127.0.0.1`) and known by their sha256. The attributes switch faults on.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

GOOD_TOKEN = "hf_accepted"
OTHER_TOKEN = "hf_has_not_accepted_the_licence"
_LFS_SUFFIXES = (".safetensors", ".pth", ".bin", ".png")
_CHUNK = 16 * 1024
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree)/(?P<revision>[^/]+))?")


@lru_cache(maxsize=256)
def _sha256(content: bytes) -> str:
    """Of each file once, though every test has a hub of its own."""
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Blob:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return _sha256(self.content)

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content, usedforsecurity=False).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Repo:
    files: dict[str, Blob]
    commit: str
    gated: bool
    private: bool


@dataclass(frozen=True)
class Hit:
    """One request. start: the first byte that was asked for. file: the path in the repository, where it was one."""

    method: str
    path: str
    file: str
    start: int
    status: int
    authorization: str | None


@dataclass
class Fault:
    """Answer `status` to the next `times` requests whose path contains `where`."""

    where: str
    status: int
    times: int = 10**9
    headers: dict[str, str] = field(default_factory=dict)


class HubServer:
    """bytes_per_s: of the whole hub. flips, cuts: by path in the repository, how many deliveries get one bit changed,
    or end after the given number of bytes. ignore_range: answers 200 with the whole file."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.hits: list[Hit] = []
        self.bytes_sent = 0
        self.bytes_per_s: float | None = None
        self.faults: list[Fault] = []
        self.flips: dict[str, int] = {}
        self.cuts: dict[str, list[int]] = {}
        self.ignore_range = False
        self.lock = threading.Lock()
        self._next_send_s = 0.0
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes_per_s = None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repo: str, source: Path | dict[str, bytes], *, gated: bool = False, private: bool = False) -> str:
        """Serve a folder, or files by path; answers the commit, which follows from the content."""
        if isinstance(source, Path):
            paths = sorted(path for path in source.rglob("*") if path.is_file())
            source = {path.relative_to(source).as_posix(): path.read_bytes() for path in paths}
        files = {path: Blob(content, path.endswith(_LFS_SUFFIXES)) for path, content in source.items()}
        listing = "".join(f"{path} {blob.etag}\n" for path, blob in sorted(files.items()))
        commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()
        self.repos[repo] = Repo(files, commit, gated, private)
        return commit

    def gets(self, file: str = "") -> list[Hit]:
        """The downloads of files whose path ends so, redirects excluded."""
        return [
            hit
            for hit in self.hits
            if hit.method == "GET" and hit.file.endswith(file) and hit.file and hit.status in (200, 206)
        ]

    def wait_for_bytes(self, count: int, timeout_s: float = 120.0) -> None:
        """Return once `count` bytes of files have left in all."""
        until = time.monotonic() + timeout_s
        while self.bytes_sent < count:
            assert time.monotonic() < until, f"only {self.bytes_sent} of {count} bytes were asked for"
            time.sleep(0.005)

    def pace(self, count: int) -> None:
        """Wait until `count` more bytes may leave."""
        if self.bytes_per_s is None:
            return
        with self.lock:
            now = time.monotonic()
            self._next_send_s = max(self._next_send_s, now) + count / self.bytes_per_s
            wait_s = self._next_send_s - now
        time.sleep(wait_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed breaks its connection: that is no news here."""


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    # Idle connections of killed clients end by themselves.
    timeout = 30

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server_hub
        path = unquote(urlsplit(self.path).path)
        for fault in hub.faults:
            if fault.where in path and fault.times > 0:
                fault.times -= 1
                self._answer(fault.status, b"the hub is broken on purpose", fault.headers)
                return
        if found := _INFO.fullmatch(path):
            self._info(hub.repos.get(found["repo"]), found["repo"], found["what"], found["revision"])
        elif found := _FILE.fullmatch(path):
            self._file(hub.repos.get(found["repo"]), found["revision"], found["path"])
        elif path.startswith("/cdn/"):
            _, _, repo_owner, repo_name, file = path.split("/", 4)
            self._content(hub.repos[f"{repo_owner}/{repo_name}"].files[file], file)
        else:
            self._error(404, "RepoNotFound")

    def _token(self) -> str | None:
        header = self.headers.get("Authorization")
        return header.removeprefix("Bearer ") if header else None

    def _blocked(self, repo: Repo | None, revision: str | None) -> bool:
        token = self._token()
        if token not in (None, GOOD_TOKEN, OTHER_TOKEN):
            self._answer(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and token != GOOD_TOKEN):
            self._error(404 if token else 401, "RepoNotFound")
        elif revision not in (None, "main", repo.commit):
            self._error(404, "RevisionNotFound")
        else:
            return False
        return True

    def _info(self, repo: Repo | None, name: str, what: str | None, revision: str | None) -> None:
        if self._blocked(repo, revision):
            return
        assert repo is not None
        answer: object
        if what == "tree":
            answer = [
                {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
                | ({"lfs": {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}} if blob.lfs else {})
                for path, blob in repo.files.items()
            ]
        else:
            siblings = [
                {"rfilename": path, "size": len(blob.content), "blobId": blob.git_oid}
                | ({"lfs": {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": 134}} if blob.lfs else {})
                for path, blob in repo.files.items()
            ]
            answer = {"id": name, "modelId": name, "sha": repo.commit, "private": False, "siblings": siblings}
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, repo: Repo | None, revision: str, path: str) -> None:
        if self._blocked(repo, revision):
            return
        assert repo is not None
        if repo.gated and self._token() != GOOD_TOKEN:
            self._error(403 if self._token() else 401, "GatedRepo")
            return
        blob = repo.files.get(path)
        if blob is None:
            self._error(404, "EntryNotFound")
        elif blob.lfs:
            name = next(name for name, known in self.server_hub.repos.items() if known is repo)
            headers = {
                "Location": f"http://localhost:{self.server_hub.port}/cdn/{name}/{path}?signature=abc",
                "X-Linked-Etag": f'"{blob.sha256}"',
                "X-Linked-Size": str(len(blob.content)),
                "X-Repo-Commit": repo.commit,
            }
            self._answer(302, b"", headers)
        else:
            self._content(blob, path, {"X-Repo-Commit": repo.commit})

    def _content(self, blob: Blob, path: str, headers: dict[str, str] | None = None) -> None:
        hub = self.server_hub
        content = blob.content
        start = 0
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and not hub.ignore_range:
            start = int(asked[1])
        if start and start >= len(content):
            self._answer(416, b"", {})
            return
        with hub.lock:
            if hub.flips.get(path, 0) > 0 and self.command == "GET":
                hub.flips[path] -= 1
                middle = start + (len(content) - start) // 2
                content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            cuts = hub.cuts.get(path, [])
            end = start + cuts.pop(0) if cuts and self.command == "GET" else len(content)
        extra = {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes", **(headers or {})}
        if asked and not hub.ignore_range:
            extra["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._begin(206 if "Content-Range" in extra else 200, len(content) - start, extra, file=path, start=start)
        if self.command == "GET":
            self._send(content[start:end])
            self.close_connection = self.close_connection or end < len(content)

    def _send(self, content: bytes) -> None:
        for offset in range(0, len(content), _CHUNK):
            piece = content[offset : offset + _CHUNK]
            self.server_hub.pace(len(piece))
            self.wfile.write(piece)
            with self.server_hub.lock:
                self.server_hub.bytes_sent += len(piece)

    def _error(self, status: int, code: str) -> None:
        self._answer(status, b"", {"X-Error-Code": code})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self._begin(status, len(body), headers)
        if self.command == "GET":
            self.wfile.write(body)

    def _begin(self, status: int, length: int, headers: dict[str, str], *, file: str = "", start: int = 0) -> None:
        hit = Hit(self.command, self.path, file, start, status, self.headers.get("Authorization"))
        with self.server_hub.lock:
            self.server_hub.hits.append(hit)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
