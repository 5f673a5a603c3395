"""What cases.py gives to a driver in Python, and what the driver prints: see say.mjs."""

import json
import sys
from typing import Any

url = sys.argv[1]
options: dict[str, Any] = json.loads(sys.argv[2])
prompt: str = options.get("prompt", "Hello")
image: str | None = options.get("image")
picture = f"data:image/png;base64,{image}"
weather = {
    "name": "weather",
    "description": "Tells the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}

format = {
    "type": "json_schema",
    "name": "city",
    "schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)
