"""A client that prints the answer as it comes: `python 09_client.py "Why is the sky blue?"`.

The stream is Server-Sent Events, each `event: NAME`, `data: JSON` and a blank line. It ends with exactly one `done` or
`error`; a stream that ends with neither was cut.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import httpx


def chat(url: str, question: str) -> Iterator[tuple[str, Any]]:
    """The answer's events, each as its name and its data; pings are left out."""
    body = {"messages": [{"role": "user", "content": question}]}
    with httpx.stream("POST", url, json=body, timeout=60) as answer:  # a ping comes every 15 s, so 60 s is long
        if not answer.is_success:
            answer.read()
            yield "error", {"message": answer.json()["error"], **answer.json()}
            return
        rest = b""
        for piece in answer.iter_bytes():  # iter_lines() would split at U+2028 too, which a token may hold
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                name, data = (line.partition(b": ")[2] for line in event.split(b"\n"))
                if name != b"ping":
                    yield name.decode(), json.loads(data)


def main() -> int:
    """Print the tokens as they come; 0 only if the answer is complete."""
    question = sys.argv[1] if len(sys.argv) > 1 else "Hello!"
    url = sys.argv[2] if len(sys.argv) > 2 else "http://localhost:8000/api/chat"
    why = "the answer was cut"
    try:
        for name, data in chat(url, question):
            if name == "token":
                print(data, end="", flush=True)
            elif name == "done":
                print(f"\n({data['usage']['total_tokens']} tokens, {data['finish_reason']})")
                return 0
            elif name == "error":
                why = f"{data['message']} ({data['code']})"
    except httpx.ConnectError:
        why = f"nothing answers at {url}: start one of the other examples first"
    except httpx.HTTPError as error:
        why = str(error)
    print(f"\nfailed: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
