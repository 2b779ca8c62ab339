"""The JSON Schema of a job's `input`: `python -m worker.schema` writes docs/input.schema.json, `--check` compares.

The schema shows the default limits; an operator may have moved MAX_VIDEOS_PER_JOB, MAX_PIXELS and MAX_FRAMES.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from worker.payload import FullInput, JobInput, VideoInput

SCHEMA_FILE = Path(__file__).resolve().parent.parent / "docs" / "input.schema.json"


def input_schema() -> dict[str, Any]:
    """Either form of the input: a list of video requests, or a single one at the top level."""
    full = FullInput.model_json_schema()
    job = JobInput.model_json_schema()
    video = VideoInput.model_json_schema()
    single = {
        "title": "SingleVideoInput",
        "description": "One video request with the fields of the job beside it.",
        "type": "object",
        "properties": {**job["properties"], **video["properties"]},
        "required": ["prompt"],
        "not": {"required": ["job_request_params"]},
    }
    definitions = full.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "VideoGen-RunPod input",
        "anyOf": [full, single],
        "$defs": definitions,
    }


def main() -> int:
    text = json.dumps(input_schema(), indent=2, ensure_ascii=False) + "\n"
    if "--check" in sys.argv[1:]:
        if not SCHEMA_FILE.exists() or SCHEMA_FILE.read_text(encoding="utf-8") != text:
            sys.stderr.write("docs/input.schema.json is out of date: run make docs\n")
            return 1
        return 0
    SCHEMA_FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
