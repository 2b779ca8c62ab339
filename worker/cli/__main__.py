"""The command `videogen`, also `python -m worker.cli`: reads the command and calls its module.

What a command does not need is not loaded: neither torch nor the client for `--help`, `plans` and `schema`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from worker.base.errors import SettingsError
from worker.cli import flags, terminal, train_flags
from worker.cli.failures import CANCELLED, DONE, FAILED, CommandFailed, usage

_EXAMPLES = """\
examples:
  videogen generate --prompt "A paper boat on a pond" --preset draft --out boat.mp4
  videogen generate --prompt "She turns to the window" --image person.png --out turn.mp4
  videogen generate --prompt "A paper boat on a pond" --dry-run --gpu L40S --gpu-hourly-usd 0.86
  videogen calibrate --prompt "A paper boat on a pond"
  videogen submit --endpoint ENDPOINT_ID --prompt "A paper boat on a pond" --out boat.mp4
  videogen submit --endpoint ENDPOINT_ID --payload job.json --out videos/
  videogen route router.toml '{"prompt": "A paper boat on a pond", "tier": "draft"}' --dry-run
  videogen train --data clips/ --out style/ --trigger-phrase fxstyle
  videogen doctor
  videogen verify boat.mp4
  videogen plans --gpu L40S
  videogen schema

exit status: 0 done, 1 failed, 2 wrong use of the command, 130 cancelled with Ctrl-C
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, not below twenty lines of usage."""

    def error(self, message: str) -> NoReturn:
        # `argument --steps/--num-inference-steps: ` becomes `--steps: `.
        named = re.sub(r"^argument ([^/: ]+)[^: ]*: ", r"\1: ", message)
        raise usage(f"{named} (flags: {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="videogen",
        description="Make a video or train a LoRA here, send a job to a RunPod endpoint or to the backend that a "
        "policy chooses, check a deployment or a file's marks of AI origin, print memory plans or the input's schema.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _add_generate(_command(commands, "generate", "make a video on this machine"))
    _add_submit(
        _command(
            commands,
            "submit",
            "send a job to a RunPod endpoint and fetch its videos",
            "Send a job to a RunPod endpoint, follow it and fetch its videos. The API key is RUNPOD_API_KEY.",
        )
    )
    _add_route(
        _command(
            commands,
            "route",
            "make a video by the backend that a policy chooses, or say which one and why",
            "Make a video by the backend that the router's policy chooses, of the package videogen-client.",
        )
    )
    train_flags.add_to(
        _command(
            commands,
            "train",
            "train a LoRA on this machine",
            "Train a LoRA on this machine, and show what it will take before it begins.",
        )
    )
    _add_generate(
        _command(
            commands,
            "calibrate",
            "measure on this machine what step_cache goes by, on a video of your choice",
            "Make a video on this machine, and measure on it the curves by which step_cache decides with this model. "
            "They are stored in MODEL_CACHE_DIR, for every worker of the volume. Take size, frames and steps as usual.",
        )
    )
    doctor = _command(commands, "doctor", "check what a deployment needs, and say what to do")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    doctor.add_argument("--verify-weights", action="store_true", help="only compare every byte of the weights")
    _add_verify(commands)
    plans = _command(commands, "plans", "print the memory plans of one GPU, or of all")
    plans.add_argument("--gpu", type=flags.gpu, metavar="NAME", help="with reasons, for this GPU")
    schema = _command(commands, "schema", "print the JSON Schema of a job's input, its answer or its webhooks")
    schema.add_argument(
        "of", nargs="?", choices=("input", "answer", "training", "webhook"), default="input", help="of what"
    )
    return parser


def _add_verify(commands: argparse._SubParsersAction[_Parser]) -> None:
    parser = _command(
        commands,
        "verify",
        "check the marks of AI origin of a file, and whether it was changed",
        "Check what a file says of its origin, and whether it was changed since it was signed. Exit status: 0 signed "
        "and unchanged, 1 changed, 3 not signed, 4 signed by somebody whom --anchors do not vouch for.",
    )
    parser.add_argument("file", metavar="FILE", help="a video, picture or ZIP")
    parser.add_argument("--anchors", metavar="PEM", help="certificates of the authorities that are trusted")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _command(
    commands: argparse._SubParsersAction[_Parser], name: str, text: str, description: str | None = None
) -> _Parser:
    shown = description or f"{text[:1].upper()}{text[1:]}."
    return commands.add_parser(name, help=text, description=shown, allow_abbrev=False)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    flags.add_to(parser, prompt_required=True)
    group = parser.add_argument_group("the run")
    _add_output(group, "OUTPUT_DIR alone where not given")
    group.add_argument("--dry-run", action="store_true", help="show plan, estimate, cost and prompt; load nothing")
    group.add_argument(
        "--gpu", type=flags.gpu, metavar="NAME", help="with --dry-run: for this GPU instead of the one that is here"
    )
    group.add_argument("--gpu-hourly-usd", type=flags.price, metavar="USD", help="what the GPU costs; GPU_HOURLY_USD")
    group.add_argument("--confirm", action="store_true", help="ask before the work begins")
    group.add_argument("--verbose", action="store_true", help="show the worker's log on standard error")


def _add_submit(parser: argparse.ArgumentParser) -> None:
    flags.add_to(parser, prompt_required=False)
    group = parser.add_argument_group("the job")
    group.add_argument(
        "--endpoint", required=True, type=flags.endpoint_id, metavar="ID|URL", help="the endpoint's id, or its URL"
    )
    group.add_argument("--payload", metavar="FILE", help="a job as JSON, in place of the flags of the video")
    group.add_argument("--job", metavar="ID", help="follow a job that was sent before, and fetch its videos")
    group.add_argument("--detach", action="store_true", help="send the job, print its id and leave it running")
    group.add_argument("--timeout", type=flags.seconds, metavar="S", help="follow no longer than this; the job goes on")
    _add_output(group, "this folder where not given")


def _add_route(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("policy", metavar="POLICY", help="the router's policy, a TOML file")
    parser.add_argument("request", metavar="REQUEST", help="JSON, or a file of it")
    parser.add_argument("--dry-run", action="store_true", help="show cost, time and reason of each; submit nothing")
    parser.add_argument("--key", metavar="KEY", help="the same key is the same job")
    parser.add_argument("--out", metavar="FILE", help="where the video goes")


def _add_output(group: argparse._ArgumentGroup, where: str) -> None:
    group.add_argument(
        "--out", metavar="PATH", help=f"where the video goes: NAME.mp4 (.webm, .gif, .webp) or a folder; {where}"
    )
    group.add_argument("--force", action="store_true", help="write over what is there")
    group.add_argument("--json", action="store_true", help="print the answer as JSON, and nothing else")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser()
    try:
        _check_names(parser, words)
        return _dispatch(parser, parser.parse_args(words))
    except CommandFailed as failure:
        terminal.complain(str(failure))
        return failure.status
    except SettingsError as failure:
        terminal.complain("\n".join(f"error: {problem}" for problem in failure.problems))
        return FAILED
    except KeyboardInterrupt:
        terminal.complain("cancelled")
        return CANCELLED


def _check_names(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Raise CommandFailed for a command or flag that does not exist, before argparse misses another one."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if not words or words[0] in ("-h", "--help"):
        return
    command = commands.choices.get(words[0])
    if command is None:
        meant = flags.did_you_mean(words[0], commands.choices)
        raise usage(f"no command {words[0]!r}; the commands are {', '.join(commands.choices)}{meant}")
    known = command._option_string_actions
    for word in words[1:]:
        name = word.partition("=")[0]
        if name == "--":
            return
        if name.startswith("--") and " " not in word and name not in known:
            raise usage(f"no flag {name}{flags.did_you_mean(name, known)} (flags: {command.prog} --help)")


def _dispatch(parser: argparse.ArgumentParser, chosen: argparse.Namespace) -> int:
    if chosen.command in ("generate", "calibrate"):
        from worker.cli import generate

        return generate.run(chosen)
    if chosen.command == "train":
        from worker.cli import train

        return train.run(chosen)
    if chosen.command == "submit":
        from worker.cli import submit

        return submit.run(chosen)
    if chosen.command == "route":
        from worker.cli import route

        return route.run(chosen)
    if chosen.command == "doctor":
        from worker.doctor.__main__ import end, run

        end(run(as_json=chosen.json, verify_weights=chosen.verify_weights))
    if chosen.command == "verify":
        from worker.cli import verify

        return verify.run(chosen.file, anchors=chosen.anchors, as_json=chosen.json)
    if chosen.command == "plans":
        from worker.cli import plans

        return plans.run(chosen.gpu)
    if chosen.command == "schema":
        return _schema(chosen.of)
    parser.print_help()
    return DONE


def _schema(of: str) -> int:
    if of == "input":
        from worker.request.schema import input_schema as schema
    else:
        from worker.delivery import shapes

        schema = {
            "answer": shapes.answer_schema,
            "training": shapes.training_schema,
            "webhook": shapes.webhook_schema,
        }[of]
    terminal.show([json.dumps(schema(), indent=2, ensure_ascii=False)])
    return DONE


if __name__ == "__main__":
    sys.exit(main())
