"""The types of docs/schemas as Python's TypedDicts, for the client, which imports nothing of the worker."""

from __future__ import annotations

import json
import keyword
from collections.abc import Iterator, Mapping
from typing import Any

_PRIMITIVES = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_HEAD = '''"""Written by `make docs` from the worker's own types: what a job sends and answers, what webhooks carry."""

from typing import Any, Literal, NotRequired, TypedDict
'''


def python(schemas: Mapping[str, Mapping[str, Any]]) -> str:
    """A module with a type for each definition, and one for each schema: `Input`, `Answer`, `Webhook`."""
    named: dict[str, Mapping[str, Any]] = {}
    for name, schema in schemas.items():
        named.update(schema.get("$defs", {}))
        forms = [each for each in schema.get("anyOf", ()) if "title" in each]
        named.update({form["title"]: form for form in forms})
        union = {"anyOf": [{"$ref": f"#/$defs/{form['title']}"} for form in forms]}
        named[name.capitalize()] = union if forms else schema
    return _HEAD + "".join(_definition(name, schema) for name, schema in named.items())


def _definition(name: str, schema: Mapping[str, Any]) -> str:
    if "properties" not in schema:
        return f"\n\n{name} = {_type(schema)}\n"
    text = " ".join(str(schema.get("description", "")).split())
    lines = [f'    """{text}"""', ""] if text else []
    return "\n".join(["\n", f"class {name}(TypedDict):", *lines, *_fields(schema), ""])


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        assert not keyword.iskeyword(name)
        if field.get("description"):
            yield f"    # {' '.join(field['description'].split())}"
        kind = _type(field)
        kind = json.dumps(kind) if "Literal" not in kind and _refers(field) else kind
        yield f"    {name}: {kind if name in required else f'NotRequired[{kind}]'}"


def _refers(schema: object) -> bool:
    """Whether a definition is named, which may stand further below."""
    return "$ref" in json.dumps(schema)


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(dict.fromkeys(_type(each) for each in schema[union]))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        return f"Literal[{', '.join(json.dumps(v) if isinstance(v, str) else repr(v) for v in values)}]"
    kind = schema.get("type")
    if kind == "array":
        return f"list[{_type(schema.get('items', {}))}]"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"dict[str, {_type(inner) if isinstance(inner, dict) else 'Any'}]"
    return _PRIMITIVES.get(str(kind), "Any")
