"""See every request, without its text and without its key: `uvicorn 08_observer:app`.

An observer is called at most twice a request and never once a token. Here it writes a line of JSON for each.
"""

from __future__ import annotations

import json

from chat_nest import Caller, ChatError, Ending, create_chat_handler


class Lines:
    """Writes to standard output. It must not block: hand what is slow to a thread or a queue."""

    def started(self, id: str, caller: Caller, profile: str, model: str) -> None:
        """The request was admitted; its tokens are reserved. `caller.key` is a hash, safe to write down."""
        self._write("started", id, caller=caller.key, profile=profile, model=model)

    def refused(self, id: str, caller: Caller | None, error: ChatError) -> None:
        """The request was not admitted, and nothing was spent."""
        self._write("refused", id, caller=caller.key if caller else None, code=error.code)

    def finished(self, ending: Ending) -> None:
        """The request ended and was settled, with `reason` or with `error`."""
        self._write(
            "finished",
            ending.id,
            reason=ending.reason,
            error=ending.error.code if ending.error else None,
            tokens=ending.usage.total_tokens,
            first_token_seconds=ending.first_token_seconds,
            source=ending.source,  # reported by the provider, estimated, or assumed
            remaining=dict(ending.remaining),
        )

    def _write(self, what: str, id: str, **fields: object) -> None:
        print(json.dumps({"event": what, "id": id, **fields}), flush=True)


app = create_chat_handler(observers=[Lines()])
