"""Convert thoughts between `<think>` and `</think>` in the text of an answer to reasoning.

Reasoning models write them, and servers without a parser for the model pass them on: Ollama before 0.9, LM Studio, vLLM
and SGLang without `--reasoning-parser`, Perplexity. Only the beginning of an answer is searched, so that a text about
such tags stays as it is, and the text after the thoughts costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from chat_nest.core.deltas import Delta, FinishDelta, ReasoningDelta, TextDelta, ToolCallDelta
from chat_nest.core.errors import UpstreamError
from chat_nest.providers.codec import Codec

ThinkTags = Literal["off", "on", "opened"]
"""Whether a leading thought is reasoning. Use `opened` if the chat template writes the first tag into the prompt."""
THINK_TAGS: Final = ("off", "on", "opened")


class Thoughts:
    """A codec that turns a leading thought of `codec`, between tags of this name, into reasoning. See Codec.

    Tags may be cut anywhere. Blanks around the tags are left out.
    """

    def __init__(self, codec: Codec, tag: str, *, opened: bool) -> None:
        self._codec = codec
        self._open, self._close = f"<{tag}>", f"</{tag}>"
        self._opened = opened
        self._state: Literal["before", "opening", "inside", "after", "done"] = "before"
        self._held = ""
        """Text that may be the beginning of a tag."""

    @property
    def over(self) -> bool:
        return self._codec.over

    def end(self, *, whole: bool = True) -> list[Delta]:
        """See Codec."""
        return self._read(lambda: self._codec.end(whole=whole))

    def feed(self, data: bytes) -> list[Delta]:
        """See Codec."""
        return self._read(lambda: self._codec.feed(data))

    def _read(self, step: Callable[[], list[Delta]]) -> list[Delta]:
        deltas: list[Delta] = []
        try:
            came = step()
        except UpstreamError:
            self._let_go(deltas)
            if deltas:  # the next call raises the failure again
                return deltas
            raise
        for delta in came:
            if isinstance(delta, TextDelta):
                self._take(delta.text, deltas)
                continue
            if isinstance(delta, ReasoningDelta) and not self._held and self._state == "before":
                self._done()  # the server has a field for it
            elif isinstance(delta, FinishDelta | ToolCallDelta):
                self._let_go(deltas)
            deltas.append(delta)
        if self._codec.over:
            self._let_go(deltas)
        return deltas

    def _take(self, text: str, deltas: list[Delta]) -> None:
        text, self._held = self._held + text, ""
        if self._state == "done":
            deltas.append(TextDelta(text))
            return
        if self._state == "before":
            begun = text.lstrip()
            if self._open.startswith(begun):
                if begun != self._open:
                    self._held = text
                    return
            elif not begun.startswith(self._open) and not self._opened:
                self._done()
                deltas.append(TextDelta(text))
                return
            self._state = "opening"
            text = begun.removeprefix(self._open)
        if self._state == "opening" and (text := text.lstrip()):
            self._state = "inside"
        if self._state == "inside":
            thought, tag, rest = text.partition(self._close)
            if tag:
                self._state = "after"
            else:
                latest = range(max(0, len(text) + 1 - len(self._close)), len(text) + 1)
                cut = next(at for at in latest if self._close.startswith(text[at:]))
                thought, self._held = text[:cut], text[cut:]
            if thought:
                deltas.append(ReasoningDelta(thought))
            text = rest
        if self._state == "after" and (text := text.lstrip()):
            self._done()
            deltas.append(TextDelta(text))

    def _let_go(self, deltas: list[Delta]) -> None:
        """Release the held text: it is no tag."""
        held, self._held = self._held, ""
        if held:
            deltas.append(TextDelta(held) if self._state == "before" else ReasoningDelta(held))

    def _done(self) -> None:
        self._state = "done"
        self.feed = self._codec.feed  # type: ignore[method-assign]  # from now on as if this were not here
