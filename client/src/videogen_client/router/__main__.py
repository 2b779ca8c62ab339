"""The router from a shell.

    python -m videogen_client.router route router.toml '{"prompt": "a red fox", "tier": "draft"}' --dry-run
    python -m videogen_client.router route router.toml request.json --key order-1 --out fox.mp4

`--dry-run` says what would be done now and why, and submits nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import VideoGenError
from . import NoCandidate, Policy, Router


def main(arguments: Sequence[str] | None = None) -> int:
    """0 for a video, or a plan with one; 1 where there is none; 2 for a mistake in the policy or the request."""
    parser = argparse.ArgumentParser(
        prog="python -m videogen_client.router", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    route = commands.add_parser("route", help="make a video, or say which backend would")
    route.add_argument("policy", type=Path, help="a TOML file")
    route.add_argument("request", help="JSON, or a file of it")
    route.add_argument("--dry-run", action="store_true", help="submit nothing")
    route.add_argument("--key", help="the same key is the same job")
    route.add_argument("--out", type=Path, help="where to write the video")
    chosen = parser.parse_args(arguments)
    try:
        return asyncio.run(_route(chosen))
    except NoCandidate as failure:
        _write({"route": failure.route})
        return 1
    except (VideoGenError, ValueError, OSError) as failure:
        sys.stderr.write(f"{failure}\n")
        return 2


async def _route(chosen: argparse.Namespace) -> int:
    text = (
        chosen.request if chosen.request.lstrip().startswith("{") else Path(chosen.request).read_text(encoding="utf-8")
    )
    request = json.loads(text)
    async with Router(Policy.load(chosen.policy)) as router:
        if chosen.dry_run:
            plan = await router.plan(request)
            for each in plan:
                sys.stdout.write(f"{'->' if each['chosen'] else '  '} {each['backend']}: {each['why']}\n")
            return 0 if any(each["chosen"] for each in plan) else 1
        job = await router.result(await router.submit(request, key=chosen.key), timeout_s=86_400)
        _write({"id": job.id, "status": job.status, "result": job.result, "error": job.error, "route": job.route})
        if job.status == "completed" and chosen.out is not None:
            await router.download(job.id, chosen.out)
        return 0 if job.status == "completed" else 1


def _write(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
