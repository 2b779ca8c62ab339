"""Writes docs/schemas: JSON Schema of the input, both answers and the webhooks, and the same as TypeScript types.

Those are written for the client too, as TypeScript and as Python.

python -m builder.schemas [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder.client_types import python
from worker.base.version import VERSION
from worker.delivery.shapes import answer_schema, training_schema, webhook_schema
from worker.request.schema import input_schema

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "schemas"
_PRIMITIVES = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}
_HEAD = (
    "// Written by `make docs` from the worker's own types. What a job sends, what it answers, what webhooks carry.\n"
)


def files() -> dict[Path, str]:
    """Every file of docs/schemas, with the client's types, and the text that it should have."""
    schemas = {
        "input": input_schema(),
        "answer": answer_schema(),
        "training": training_schema(),
        "webhook": webhook_schema(),
    }
    written = {
        FOLDER / f"{name}.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
        for name, schema in schemas.items()
    }
    written[FOLDER / "openapi.json"] = json.dumps(openapi(schemas), indent=2, ensure_ascii=False) + "\n"
    types = typescript(schemas)
    written |= {FOLDER / "videogen.d.ts": types, ROOT / "client" / "typescript" / "types.d.ts": types}
    return {**written, ROOT / "client" / "src" / "videogen_client" / "types.py": python(schemas)}


def openapi(schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The HTTP API of `python handler.py --rp_serve_api`, which is that of RunPod's endpoints in small."""

    def json_of(name: str) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}

    def operation(summary: str, *, body: bool) -> dict[str, Any]:
        said: dict[str, Any] = {"summary": summary, "responses": {"200": {"description": "the job", **json_of("Job")}}}
        return {**said, "requestBody": {"required": True, **json_of("Request")}} if body else said

    status = operation("The state of a job, and its answer once it has ended", body=False)
    status["parameters"] = [{"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}]
    named = {name.capitalize(): dict(schema) for name, schema in schemas.items() if name != "webhook"}
    for schema in list(named.values()):
        schema.pop("$schema", None)
        named.update(schema.pop("$defs", {}))
    text = json.dumps(named).replace("#/$defs/", "#/components/schemas/")
    return {
        "openapi": "3.1.0",
        "info": {"title": "VideoGen-RunPod, served locally", "version": VERSION},
        "servers": [{"url": "http://localhost:8000"}],
        "paths": {
            "/run": {"post": operation("Send a job; answers at once", body=True)},
            "/runsync": {"post": operation("Send a job and wait for its answer", body=True)},
            "/status/{job_id}": {"post": status},
        },
        "components": {
            "schemas": {
                "Request": {
                    "type": "object",
                    "required": ["input"],
                    "properties": {"input": {"$ref": "#/components/schemas/Input"}},
                },
                "Job": {
                    "type": "object",
                    "required": ["id", "status"],
                    "properties": {
                        "id": {"type": "string"},
                        "status": {"enum": ["IN_PROGRESS", "COMPLETED", "FAILED"]},
                        "output": {
                            "anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Answer", "Training")]
                        },
                        "error": {"type": "string"},
                    },
                },
                **json.loads(text),
            }
        },
    }


def typescript(schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """An exported type for each definition, and one for each schema: `Input`, `Answer`, `Webhook`."""
    named: dict[str, Mapping[str, Any]] = {}
    for name, schema in schemas.items():
        named.update(schema.get("$defs", {}))
        named[name.capitalize()] = schema
    return _HEAD + "".join(
        f"\n{_comment(schema)}export type {name} = {_type(schema)};\n" for name, schema in named.items()
    )


def _type(schema: Mapping[str, Any], indent: str = "") -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for union in ("anyOf", "oneOf"):
        if union in schema and "properties" not in schema:
            return " | ".join(dict.fromkeys(_type(each, indent) for each in schema[union]))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " | ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"Array<{_type(schema.get('items', {}), indent)}>"
    if schema.get("type") == "object":
        return _object(schema, indent)
    return _PRIMITIVES.get(str(schema.get("type")), "unknown")


def _object(schema: Mapping[str, Any], indent: str) -> str:
    if "properties" not in schema:
        values = schema.get("additionalProperties")
        return f"Record<string, {_type(values, indent) if isinstance(values, dict) else 'unknown'}>"
    inner, required = f"{indent}  ", schema.get("required", ())
    lines = [
        f"{_comment(field, inner)}{inner}{name}{'' if name in required else '?'}: {_type(field, inner)};\n"
        for name, field in schema["properties"].items()
    ]
    return "{\n" + "".join(lines) + indent + "}"


def _comment(schema: Mapping[str, Any], indent: str = "") -> str:
    text = " ".join(str(schema.get("description", "")).split())
    return f"{indent}/** {text} */\n" if text else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m builder.schemas", description="Write docs/schemas.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is out of date")
    check = parser.parse_args().check
    wanted = files()
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(wanted[file], encoding="utf-8")
        sys.stdout.write(f"{'out of date' if check else 'wrote'}: {file.relative_to(ROOT)}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
