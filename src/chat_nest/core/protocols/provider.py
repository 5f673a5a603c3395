"""The Protocols of a provider: its stream, and what else it may be able to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from msgspec import Struct

from chat_nest.core.deltas import Batch
from chat_nest.core.messages import NO_OPTIONS, Message, Options, Tool
from chat_nest.core.timeouts import Timeouts


class Prompt(Struct, frozen=True, kw_only=True):
    """What one attempt sends to a provider. `model` is the provider's own name for it."""

    model: str
    messages: tuple[Message, ...]
    max_output_tokens: int
    temperature: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    """`auto`, `none`, `required`, or `tool:NAME`."""
    options: Options = NO_OPTIONS


class Provider(Protocol):
    """A source of model output: one method.

    Each further ability of a provider is a Protocol: BillsAborts, Checkable, Choosy, Closable, HasContext, SendsKey,
    TakesImages.
    """

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """Start a stream; entering returns once the provider accepted the request.

        Leaving the context closes the provider's connection, at once and on every path. The iterator ends only after
        the provider's own completion signal. Raises UpstreamError.
        """
        ...


@runtime_checkable
class BillsAborts(Protocol):
    """A Provider that states what an abandoned stream costs. For any other, it is "unknown"."""

    @property
    def abort_bills(self) -> str:
        """What an abandoned stream costs: "stops" (what was produced), "full" or "unknown" (the whole hold)."""
        ...


@runtime_checkable
class Checkable(Protocol):
    """A Provider that can be checked without spending anything."""

    async def check(self) -> frozenset[str] | None:
        """Return the names of the models that it lists (empty or None: unknown). Raises UpstreamError."""
        ...


class KeyRest(Struct, frozen=True):
    """A key of a provider that is not used for a while. It does not say which key."""

    model: str
    """The model for which it rests; empty for every model."""
    seconds: float
    """How long it still rests."""
    reason: str
    """The code of the error that the key got."""


@runtime_checkable
class PoolsKeys(Protocol):
    """A Provider with several API keys, each of which may rest after a refusal."""

    def key_rests(self) -> tuple[int, Sequence[KeyRest]]:
        """Return the number of keys, and the longest rest of each key that rests, the first to end first."""
        ...


@runtime_checkable
class Choosy(Protocol):
    """A Provider that supports a part of what a prompt may contain. Others lack format, stop and parallel_calls."""

    def lacks(self, prompt: Prompt) -> Sequence[str]:
        """Return the prompt's fields that it lacks and that must not be dropped (`format`, `tool_choice` ...)."""
        ...


@runtime_checkable
class TakesImages(Protocol):
    """A Provider that accepts more than text. Any other is sent text only."""

    def takes(self, model: str) -> frozenset[str]:
        """Return what it accepts: `images`, `files` (PDF), and `image_urls` and `file_urls`, which it fetches."""
        ...


@runtime_checkable
class HasContext(Protocol):
    """A Provider with one context size for all models: the built-in profiles are fitted to it. None: unknown."""

    @property
    def context_tokens(self) -> int | None: ...


@runtime_checkable
class HasBaseUrl(Protocol):
    """A Provider with a base URL, by which its models' prices are found."""

    @property
    def base_url(self) -> str: ...


@runtime_checkable
class SendsKey(Protocol):
    """A Provider that reports whether its key crosses a public network unencrypted, which is logged at start."""

    @property
    def key_in_clear(self) -> bool: ...


PassOn = Callable[[Callable[[Batch], bool]], Awaitable[bool]]
"""`await pass_on(take)`: see PushSource."""


@runtime_checkable
class PushSource(Protocol):
    """An iterator of batches that can call `take` with each, in the read that brings it: no task wakes for it."""

    async def pass_on(self, take: Callable[[Batch], bool]) -> bool:
        """Call `take` with each batch while it returns True, instead of waiting for requests for the next one.

        Returns True once `take` has returned False, after which it may be called again, and False at the end; raises
        what the iterator would raise, and what `take` does.
        """
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """An iterator of batches that reads ahead, or may have stopped reading its provider."""

    def drop(self, count: Callable[[Batch], None]) -> bool:
        """Pass what came and was not taken to `count`, and keep nothing of it; True if more may have been produced.

        Called once, after the stream's context is left. It waits for nothing, and reads nothing from the provider.
        """
        ...


class TokenCounter(Protocol):
    """Counts tokens of text. Never too low: it guards money. `exact` is True for the model's own tokenizer."""

    @property
    def exact(self) -> bool: ...

    def count(self, text: str) -> int: ...
