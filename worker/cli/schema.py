"""`schema`: the JSON Schema of a job's input, printed, written to docs/input.schema.json, or compared with it."""

from __future__ import annotations

import json

from worker.cli import terminal
from worker.cli.failures import DONE, CommandFailed
from worker.request.schema import SCHEMA_FILE, input_schema


def run(*, write: bool = False, check: bool = False) -> int:
    """Raises CommandFailed where the file is out of date and `check` is set."""
    text = json.dumps(input_schema(), indent=2, ensure_ascii=False)
    if check:
        if not SCHEMA_FILE.exists() or SCHEMA_FILE.read_text(encoding="utf-8") != text + "\n":
            raise CommandFailed("docs/input.schema.json is out of date: run make docs")
    elif write:
        SCHEMA_FILE.write_text(text + "\n", encoding="utf-8")
    else:
        terminal.show([text])
    return DONE
