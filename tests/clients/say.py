"""How a driver in Python is called and what it prints: see say.mjs."""

import json
import sys
from typing import Any

url = sys.argv[1]
options: dict[str, Any] = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
weather = {
    "name": "weather",
    "description": "Tells the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def say(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)
