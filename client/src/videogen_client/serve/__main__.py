"""`python -m videogen_client.serve`: reads flags and environment, and serves."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from .. import AsyncClient
from ..errors import VideoGenError
from .app import make_app
from .backend import Backend
from .content import Content
from .figures import Figures
from .routes import Facade
from .store import Store
from .videos import Videos

_KEEP_S = 30 * 86_400
# Longer than clients keep a connection that is idle, LiteLLM the longest with 120 s: the server that closes one first
# may do so just as a request comes on it, and that request fails.
_IDLE_S = 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m videogen_client.serve",
        description="Serve /v1/videos, as OpenAI's clients speak it, in front of a RunPod endpoint, a local worker or "
        "the router. "
        "Environment: RUNPOD_API_KEY for the endpoint; FACADE_API_KEYS, separated by commas, are what callers send; "
        "WEBHOOK_SECRET is the worker's.",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--endpoint", metavar="ID", help="the id of the RunPod endpoint")
    target.add_argument("--worker", metavar="URL", help="a worker under handler.py --rp_serve_api")
    target.add_argument("--router", metavar="POLICY", type=Path, help="the policy of a router, a TOML file")
    parser.add_argument("--runpod-url", metavar="URL", help="of RunPod's API, where it is another")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--state", type=Path, default=Path("facade-state"), help="folder of jobs and fetched files")
    parser.add_argument("--cache-gb", type=float, default=5.0, help="what fetched files may take on the disk")
    parser.add_argument("--poll", type=float, default=2.0, metavar="S", help="pause between two looks at a job")
    parser.add_argument("--public-url", metavar="URL", help="where the worker reaches this server: events come there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = build_parser().parse_args(arguments)
    keys = [key.strip() for key in os.environ.get("FACADE_API_KEYS", "").split(",") if key.strip()]
    secret = os.environ.get("WEBHOOK_SECRET")
    if not keys and not _is_loopback(chosen.host):
        sys.stderr.write("error: set FACADE_API_KEYS, or anyone who reaches this server may use the endpoint\n")
        return 2
    if chosen.public_url is not None and not secret:
        sys.stderr.write("error: --public-url needs WEBHOOK_SECRET, the worker's own\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # signed URLs are in its lines
    try:
        client = _client(chosen)
    except VideoGenError as failure:
        sys.stderr.write(f"error: {chosen.router}: {failure}\n")
        return 2
    except ValueError as failure:
        sys.stderr.write(f"error: {failure}; set RUNPOD_API_KEY\n")
        return 2
    store = Store(chosen.state / "videos.sqlite3")
    store.remove_ended_before(int(time.time()) - _KEEP_S)
    figures = Figures()
    videos = Videos(
        client,
        store,
        Content(client, chosen.state / "files", int(chosen.cache_gb * 1e9)),
        poll_s=chosen.poll,
        webhook_url=None if chosen.public_url is None else f"{chosen.public_url.rstrip('/')}/webhooks/videogen",
        on_end=figures.ended,
    )
    app = make_app(Facade(videos, figures, keys, secret, chosen.poll))
    uvicorn.run(app, host=chosen.host, port=chosen.port, access_log=False, log_config=None, timeout_keep_alive=_IDLE_S)
    return 0


def _client(chosen: argparse.Namespace) -> Backend:
    """Raises ValueError where the endpoint's key is missing, VideoGenError for a policy that is wrong."""
    if chosen.router is not None:
        from ..router import Policy, Router
        from ..router.serving import RoutedClient

        return RoutedClient(Router(Policy.load(chosen.router)))
    return AsyncClient(chosen.endpoint, base_url=chosen.worker if chosen.endpoint is None else chosen.runpod_url)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
