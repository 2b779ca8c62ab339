"""The flags of `train`: those of the fields of a training, and those of the run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from worker.cli import flags

# The flags of fields of `train`, with what reads each and how it is shown.
FIELDS: Sequence[tuple[str, str, Any, str, str]] = (
    ("--model", "model", flags.one_of(("a14b-t2v", "a14b-i2v", "5b")), "NAME", "a14b-t2v, a14b-i2v or 5b"),
    ("--experts", "experts", flags.one_of(("both", "high", "low")), "NAME", "both, high or low"),
    ("--steps", "number_of_steps", flags.whole, "N", "optimizer steps of each expert; 1,000 where not given"),
    ("--learning-rate", "learning_rate", flags.number, "N", "at its peak; 1e-4 where not given"),
    ("--rank", "rank", flags.whole, "N", "of the LoRA; 16 where not given"),
    ("--alpha", "alpha", flags.number, "N", "as --rank where not given"),
    ("--trigger-phrase", "trigger_phrase", str, "TEXT", "put before each caption that does not begin with it"),
    ("--caption-dropout", "caption_dropout", flags.number, "N", "share of the steps without a caption; 0.1"),
    ("--resolution", "resolution", flags.one_of(("480p", "580p", "720p")), "NAME", "480p, 580p or 720p"),
    ("--num-frames", "num_frames", flags.whole, "N", "of a clip; 81 where not given"),
    ("--validation-split", "validation_split", flags.number, "N", "share of the files that is held out; 0.1"),
    ("--checkpoint-every", "checkpoint_every", flags.whole, "N", "steps from one look at the loss to the next; 250"),
    ("--seed", "seed", flags.whole, "N", "drawn at random where not given"),
)


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="FOLDER|ZIP", help="videos and pictures with their captions")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder that the LoRAs and samples go into")
    for name, field, reader, metavar, text in FIELDS:
        parser.add_argument(name, dest=field, type=reader, metavar=metavar, help=text)
    parser.add_argument(
        "--sample-prompt",
        dest="sample_prompts",
        action="append",
        metavar="TEXT",
        help="a video of it before and after; may be given several times",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="read the data, show plan, seconds and cost; no training"
    )
    parser.add_argument("--gpu-hourly-usd", type=flags.price, metavar="USD", help="what the GPU costs; GPU_HOURLY_USD")
    parser.add_argument("--confirm", action="store_true", help="ask before the training begins")
    parser.add_argument("--force", action="store_true", help="write over what is there")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON, and nothing else")
    parser.add_argument("--verbose", action="store_true", help="show the worker's log on standard error")
