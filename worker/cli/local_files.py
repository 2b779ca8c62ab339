"""Files of this machine in a request: images become data URIs, a video is served on loopback while the run lasts."""

from __future__ import annotations

import base64
import mimetypes
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from worker.cli.failures import usage
from worker.cli.flags import FLAGS, is_file

IMAGES = ("reference_image_url", "last_image_url")
VIDEOS = ("reference_video_url", "extend_video_url")


def filled(fields: Mapping[str, Any], *, serve: Callable[[Path], str] | None) -> dict[str, Any]:
    """`fields` with the files of this machine put in. `serve` returns a URL for a file; None: not possible."""
    payload = dict(fields)
    for name in IMAGES:
        if (source := payload.get(name)) is not None and is_file(source):
            payload[name] = _encoded(name, _existing(name, source))
    for name in VIDEOS:
        if (source := payload.get(name)) is not None and is_file(source):
            file = _existing(name, source)
            if serve is None:
                raise usage(f"{FLAGS[name][0]}: an endpoint cannot read {source}: put the video behind an http(s) URL")
            payload[name] = serve(file)
    return payload


def _existing(field: str, source: str) -> Path:
    path = Path(source).expanduser()
    if not path.is_file():
        raise usage(f"{FLAGS[field][0]}: there is no file {source}")
    return path


def _encoded(field: str, path: Path) -> str:
    try:
        return data_uri(path)
    except OSError as failure:
        raise usage(f"{FLAGS[field][0]}: {path} cannot be read: {failure.strerror}") from failure


def data_uri(path: Path) -> str:
    """The file as `data:image/TYPE;base64,`. The worker looks at the content, not at the type."""
    guessed = mimetypes.guess_type(path.name)[0] or ""
    kind = guessed if guessed.startswith("image/") else "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


class FileServer:
    """Serves the files that it is given, and nothing else, on a free port of 127.0.0.1; the first one starts it."""

    def __init__(self) -> None:
        self._files: dict[str, Path] = {}
        self._server: ThreadingHTTPServer | None = None
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str | None:
        """`host:port`, None while nothing is served."""
        return None if self._server is None else f"127.0.0.1:{self._server.server_address[1]}"

    def serve(self, file: Path) -> str:
        """The URL of `file`, which nobody can guess."""
        if self._server is None:
            self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self._files))
            self._server.daemon_threads = True
            self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
            self._thread.start()
        name = f"/{secrets.token_urlsafe(24)}"
        self._files[name] = file
        return f"http://{self.address}{name}"

    def __enter__(self) -> FileServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def _handler(files: Mapping[str, Path]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = files.get(self.path)
            if file is None:
                self.send_error(404)
                return
            with file.open("rb") as source:
                self.send_response(200)
                self.send_header("Content-Type", "application/octet-stream")
                self.send_header("Content-Length", str(file.stat().st_size))
                self.end_headers()
                shutil.copyfileobj(source, self.wfile)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
