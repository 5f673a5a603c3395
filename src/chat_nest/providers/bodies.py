"""How a body is split into the bytes of its events, and whether it ended as it should."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec

from chat_nest.core.deltas import Delta, FinishDelta, FinishReason
from chat_nest.core.errors import UpstreamError, UpstreamOverloaded, UpstreamTruncated
from chat_nest.core.sse import EventTooLong
from chat_nest.providers.calls import Calls
from chat_nest.providers.refusals import identifiers

FINISH_REASONS: Final[dict[str, FinishReason]] = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "eos", "eos_token", "complete", "completed"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "max_output_tokens"), "length"),
    **dict.fromkeys(("model_context_window_exceeded", "token_limit"), "length"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool_calls"),
    **dict.fromkeys(("content_filter", "content_filtered", "refusal", "guardrail_intervened"), "content_filter"),
    **dict.fromkeys(("safety", "recitation", "blocklist", "prohibited_content", "spii"), "content_filter"),
    **dict.fromkeys(("image_safety", "image_prohibited_content", "image_recitation"), "content_filter"),
    **dict.fromkeys(("sensitive", "error_toxic", "model_armor"), "content_filter"),
}
"""The finish reasons of providers, in lower case and with `_` for `-`.

Gateways use one vendor's words in another's format.

Any other word is a failure, such as Mistral's `error`, vLLM's `abort` or Gemini's `MALFORMED_FUNCTION_CALL`.
"""
_FAILURES: Final[dict[str, type[UpstreamError]]] = {"insufficient_system_resource": UpstreamOverloaded}
"""DeepSeek's finish reason."""
_NOT_YET: Final = frozenset(("", "null", "none", "finish_reason_unspecified"))
"""Finish reasons in the events before the last: DashScope's text `null`, Gemini's unspecified reason."""
MAX_WHOLE: Final = 1 << 22
"""Bytes of a non-streamed answer. A longer one is refused."""


class Splitter(Protocol):
    """Splits bytes into whole events. Raises EventTooLong."""

    def feed(self, chunk: bytes) -> list[bytes]: ...
    def end(self) -> list[bytes]:
        """Return the last event, which only the end of the body ended."""
        ...


class WholeBody:
    """A splitter for an answer that is one JSON value. The event is the body, or each item of an array."""

    def __init__(self) -> None:
        self._body = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        self._body += chunk
        if len(self._body) > MAX_WHOLE:
            raise EventTooLong([])
        return []

    def end(self) -> list[bytes]:
        body = bytes(self._body).strip()
        if not body.startswith(b"["):
            return [body]
        try:
            return [bytes(item) for item in msgspec.json.decode(body, type=list[msgspec.Raw])]
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return []


class Finish:
    """The end of an answer: the provider's last finish reason, and whether it called tools."""

    def __init__(self, calls: Calls) -> None:
        self.said = ""
        """The provider's own reason; empty while there is none."""
        self.pending: object = None
        """A reason that waits for an end marker; it also counts if the body is complete without one."""
        self._calls = calls
        self._told: FinishReason | None = None

    def say(self, reason: object, deltas: list[Delta]) -> None:
        """Take a finish reason, and append its delta.

        The last reason counts, but `stop` does not override an earlier one.
        """
        if isinstance(reason, str) and reason.lower() not in _NOT_YET:
            if not self.said or not says_stop(reason):
                self.said = reason
            self._tell(deltas)

    def end(self, deltas: list[Delta]) -> None:
        """Decide how the answer ended.

        Raises UpstreamTruncated without a reason or the rest of a call, UpstreamError if the reason is a failure.
        """
        if not self.said or (self._calls.awaited and FINISH_REASONS.get(_word(self.said)) in ("stop", "tool_calls")):
            raise UpstreamTruncated
        self._calls.end()
        if not self._tell(deltas):
            failure = _FAILURES.get(self.said.lower(), UpstreamError)()
            failure.detail = ", ".join(identifiers([self.said]))
            raise failure

    def _tell(self, deltas: list[Delta]) -> bool:
        word = _word(self.said)
        reason = FINISH_REASONS.get(word)
        if reason is None and word.startswith("content_filter"):  # Gemini's in OpenAI's format: `content_filter: ...`
            reason = "content_filter"
        if reason == "stop" and self._calls.begun:  # many servers report `stop` after a tool call
            reason = "tool_calls"
        if reason is not None and reason != self._told:
            self._told = reason
            deltas.append(FinishDelta(reason))
        return reason is not None


def says_stop(reason: object) -> bool:
    """Return whether a reason only means that the answer is over, so that it does not override an earlier one."""
    return isinstance(reason, str) and FINISH_REASONS.get(_word(reason)) == "stop"


def _word(reason: str) -> str:
    return reason.lower().replace("-", "_")
