"""OpenAI's own schemas of what it sends, as far as it concerns text and function tools.

`python tests/openai_schemas.py DOCUMENT` makes openai_schemas.json from OpenAI's OpenAPI document (MIT licence, beside
it): the schemas below and what they refer to, without the variants of a `oneOf` that are about something else.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

FILE = Path(__file__).with_suffix(".json")
ROOTS = (
    *("ResponseStreamEvent", "Response", "ResponseItemList", "TokenCountsResource", "ErrorResponse"),
    *("CreateChatCompletionStreamResponse", "CreateChatCompletionResponse", "ListModelsResponse", "Model"),
)
TEXT = re.compile(
    r"Response(Created|InProgress|Completed|Failed|Incomplete|Error)Event"
    r"|Response(OutputItem|ContentPart|Text|FunctionCallArguments|Reasoning|Refusal)\w*Event"
    r"|(OutputMessage|FunctionToolCall|FunctionToolCallOutput|InputMessage)(Resource)?|ReasoningItem"
    r"|FunctionTool|ToolChoice(Options|Allowed|Function)|EasyInputMessage|Item|FunctionCallOutputItemParam"
)
CHOSEN = ("ResponseStreamEvent", "OutputItem", "InputItem", "Item", "ItemResource", "Tool", "ToolChoiceParam")


@cache
def validator(name: str) -> jsonschema_rs.Validator:
    """Of the schema with this name."""
    schemas = json.loads(FILE.read_text())
    return jsonschema_rs.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}
    )


def flaws(name: str, value: object) -> list[str]:
    """What is wrong with a value of this schema."""
    return [f"{error.instance_path}: {error.message}" for error in validator(name).iter_errors(value)]


def _referred(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for value in schema.values():
            yield from _referred(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _referred(value)


def _about_text(name: str, schema: Any) -> Any:
    if name not in CHOSEN:
        return schema
    word = next(word for word in ("oneOf", "anyOf") if word in schema)
    kept = [each for each in schema[word] if TEXT.fullmatch(each.get("$ref", "").rpartition("/")[2])]
    return {word: kept}


def _without_nullable(schema: Any) -> Any:
    """In the words of JSON Schema 2020-12."""
    if isinstance(schema, list):
        return [_without_nullable(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    rest = {key: _without_nullable(value) for key, value in schema.items() if key not in ("nullable", "discriminator")}
    return {"anyOf": [rest, {"type": "null"}]} if schema.get("nullable") is True else rest


def extract(document: Path) -> dict[str, Any]:
    schemas = json.loads(document.read_text())["components"]["schemas"]
    found: dict[str, Any] = {}
    names = list(ROOTS)
    while names:
        name = names.pop()
        if name not in found:
            found[name] = _without_nullable(_about_text(name, schemas[name]))
            names += _referred(found[name])
    return found


if __name__ == "__main__":
    lines = [f"{json.dumps(name)}:{json.dumps(schema)}" for name, schema in sorted(extract(Path(sys.argv[1])).items())]
    FILE.write_text("{" + ",\n".join(lines) + "}\n")
