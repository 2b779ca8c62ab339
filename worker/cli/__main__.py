"""`python -m worker.cli`: reads the command and hands it to its module; torch and the SDK load only where needed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from worker.base.errors import SettingsError
from worker.cli import flags, terminal
from worker.cli.failures import CANCELLED, DONE, FAILED, CommandFailed

_EXAMPLES = """\
examples:
  python -m worker.cli generate --prompt "A paper boat on a pond" --preset draft --out boat.mp4
  python -m worker.cli generate --prompt "She turns to the window" --image person.png --out turn.mp4
  python -m worker.cli generate --prompt "A paper boat on a pond" --dry-run --gpu L40S --gpu-hourly-usd 0.86
  python -m worker.cli submit --endpoint ENDPOINT_ID --prompt "A paper boat on a pond" --out boat.mp4
  python -m worker.cli submit --endpoint ENDPOINT_ID --payload job.json --out videos/
  python -m worker.cli plans --gpu L40S
  python -m worker.cli schema

exit status: 0 done, 1 failed, 2 wrong use of a flag, 130 cancelled with Ctrl-C
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worker.cli",
        description="Make a video here, send a job to a RunPod endpoint, print memory plans or the input's schema.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_generate(commands)
    _add_submit(commands)
    plans = commands.add_parser("plans", help="print the memory plans of one GPU, or of all", allow_abbrev=False)
    plans.add_argument("--gpu", metavar="NAME", help="with reasons, for this GPU")
    schema = commands.add_parser("schema", help="print the JSON Schema of a job's input", allow_abbrev=False)
    schema.add_argument("--write", action="store_true", help="write docs/input.schema.json instead")
    schema.add_argument("--check", action="store_true", help="write nothing; fail where that file is out of date")
    return parser


def _add_generate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "generate", help="make a video on this machine", description="Make a video on this machine.", allow_abbrev=False
    )
    flags.add_to(parser, prompt_required=True)
    group = parser.add_argument_group("the run")
    _add_output(group, "OUTPUT_DIR alone where not given")
    group.add_argument("--dry-run", action="store_true", help="show plan, estimate, cost and prompt; load nothing")
    group.add_argument("--gpu", metavar="NAME", help="with --dry-run: for this GPU instead of the one that is here")
    group.add_argument("--gpu-hourly-usd", type=flags.price, metavar="USD", help="what the GPU costs; GPU_HOURLY_USD")
    group.add_argument("--confirm", action="store_true", help="ask before the work begins")
    group.add_argument("--verbose", action="store_true", help="show the worker's log on standard error")


def _add_submit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "submit",
        help="send a job to a RunPod endpoint and fetch its videos",
        description="Send a job to a RunPod endpoint, follow it and fetch its videos. The API key is RUNPOD_API_KEY.",
        allow_abbrev=False,
    )
    flags.add_to(parser, prompt_required=False)
    group = parser.add_argument_group("the job")
    group.add_argument("--endpoint", required=True, metavar="ID", help="the endpoint's id")
    group.add_argument("--payload", metavar="FILE", help="a job as JSON, in place of the flags of the video")
    group.add_argument("--job", metavar="ID", help="follow a job that was sent before, and fetch its videos")
    group.add_argument("--detach", action="store_true", help="send the job, print its id and leave it running")
    group.add_argument("--timeout", type=flags.seconds, metavar="S", help="follow no longer than this; the job goes on")
    _add_output(group, "this folder where not given")


def _add_output(group: argparse._ArgumentGroup, where: str) -> None:
    group.add_argument("--out", metavar="PATH", help=f"where the video goes: NAME.mp4 or a folder; {where}")
    group.add_argument("--force", action="store_true", help="write over what is there")
    group.add_argument("--json", action="store_true", help="print the answer as JSON, and nothing else")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    parser = build_parser()
    chosen = parser.parse_args(arguments)
    try:
        return _dispatch(parser, chosen)
    except CommandFailed as failure:
        terminal.complain(str(failure))
        return failure.status
    except SettingsError as failure:
        terminal.complain("\n".join(f"error: {problem}" for problem in failure.problems))
        return FAILED
    except KeyboardInterrupt:
        terminal.complain("cancelled")
        return CANCELLED


def _dispatch(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    match chosen.command:
        case "generate":
            from worker.cli import generate

            return generate.run(chosen)
        case "submit":
            from worker.cli import submit

            return submit.run(chosen)
        case "plans":
            from worker.cli import plans

            return plans.run(chosen.gpu)
        case "schema":
            from worker.cli import schema

            return schema.run(write=chosen.write, check=chosen.check)
    parser.print_help()
    return DONE


if __name__ == "__main__":
    sys.exit(main())
