"""`schema`: the JSON Schema of a job's input, the same as docs/input.schema.json."""

from __future__ import annotations

import json

from worker import terminal
from worker.cli.failures import DONE
from worker.schema import input_schema


def run() -> int:
    terminal.show([json.dumps(input_schema(), indent=2, ensure_ascii=False)])
    return DONE
