"""`python -m videogen_client.page`: reads flags, starts a local worker where none is named, and serves the page."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse

from ..async_client import AsyncClient
from ..core import RUNPOD_URL
from ..errors import InvalidSignature, UnexpectedAnswer
from ..webhooks import verify_webhook
from .local_worker import LocalWorker, free_port
from .studio import Studio
from .view import CSS, THEME, Target, make_page


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m videogen_client.page",
        description="A page in the browser on which to try a RunPod endpoint (with RUNPOD_API_KEY) or a worker.",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--endpoint", metavar="ID", help="the id of the RunPod endpoint")
    target.add_argument("--worker", metavar="URL", help="a worker under handler.py --rp_serve_api")
    target.add_argument("--start", metavar="COMMAND", help='a local worker to start, as in "python handler.py"')
    parser.add_argument(
        "--plan", metavar="COMMAND", default="", help="the command videogen, which knows plans and costs"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="a free one where not given")
    parser.add_argument("--home", type=Path, help="folder of the clips; a temporary one where not given")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = build_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the local worker ends too
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        home = chosen.home or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="videogen-page-")))
        port = chosen.port or free_port()
        worker = None
        if chosen.start is not None:
            sys.stdout.write("starting the local worker\n")
            sys.stdout.flush()
            worker = stack.enter_context(LocalWorker(shlex.split(chosen.start), home.resolve() / "worker"))
        try:
            client = AsyncClient(chosen.endpoint, base_url=None if chosen.endpoint else chosen.worker or worker.url)  # type: ignore[union-attr]
        except ValueError as failure:
            sys.stderr.write(f"error: {failure}\n")
            return 2
        studio = Studio(
            client,
            home.resolve(),
            worker=worker,
            plan_command=shlex.split(chosen.plan),
            address=None if worker is None else f"http://127.0.0.1:{port}",
        )
        serve(studio, _target_of(chosen, worker), client, worker, chosen.host, port)
    return 0


def _target_of(chosen: argparse.Namespace, worker: LocalWorker | None) -> Target:
    if chosen.endpoint is not None:
        return Target(f"endpoint {chosen.endpoint}", f"{RUNPOD_URL}/{chosen.endpoint}", is_local=False)
    if worker is not None:
        return Target("a worker on this machine", worker.url, is_local=True)
    return Target(f"the worker at {chosen.worker}", chosen.worker.rstrip("/"), is_local=True)


def serve(
    studio: Studio, target: Target, client: AsyncClient, worker: LocalWorker | None, host: str, port: int
) -> None:
    """Returns at Ctrl-C."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sys.stdout.write(f"open http://{host}:{port}\n")
        sys.stdout.flush()
        yield
        await client.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/clips/{name}")
    async def clip(name: str) -> Response:
        path = studio.clips_folder / name
        if path.parent != studio.clips_folder or not path.is_file():
            raise HTTPException(404)
        return FileResponse(path)

    @app.post("/webhooks/videogen")
    async def webhook(request: Request) -> Response:
        try:
            studio.hear(verify_webhook(await request.body(), request.headers, "" if worker is None else worker.secret))
        except (InvalidSignature, UnexpectedAnswer):
            return Response(status_code=401)
        return Response(status_code=200)

    page = make_page(studio, target)
    app = gr.mount_gradio_app(app, page, path="/", css=CSS, theme=THEME, footer_links=[], ssr_mode=False)
    uvicorn.run(app, host=host, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=2)


if __name__ == "__main__":
    sys.exit(main())
