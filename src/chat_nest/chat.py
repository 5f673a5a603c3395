"""One request, from bytes to settled, top to bottom."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Protocol

from chat_nest.deltas import FinishReason
from chat_nest.errors import ChatError, ClientGone, LimiterUnavailable, SlowReader, UpstreamTruncated
from chat_nest.ledger import Ledger, Reservation
from chat_nest.limits import Claim, Line, Profile, Standing
from chat_nest.messages import Caller, ChatRequest, Message
from chat_nest.profiles import Profiles
from chat_nest.protocols import Dialect, Encoder, Ending, Identify, Now, Observer, Prompt, Scope, Sink
from chat_nest.relay import Pulse, relay
from chat_nest.tokens import counter_for, prompt_bound
from chat_nest.trim import trim
from chat_nest.upstream import Upstream, split_model

log = logging.getLogger("chat_nest.chat")

IDENTIFY_SECONDS = 10.0


class Run:
    """One request while it is served: what is known of it, and the one way to end it early."""

    __slots__ = (
        "began_at",
        "body",
        "caller",
        "closing",
        "dropped_messages",
        "encoder",
        "ended_at",
        "ended_by",
        "held",
        "id",
        "lost_reader",
        "profile",
        "pulse",
        "reason",
        "task",
    )

    def __init__(self, id: str, now: float) -> None:
        self.id = id
        self.began_at = now
        self.body = b""
        """The request's body, until it is parsed."""
        self.pulse = Pulse(now)
        self.task: asyncio.Task[None] | None = None
        self.caller: Caller | None = None
        self.profile: Profile | None = None
        self.dropped_messages = 0
        self.encoder: Encoder | None = None
        self.held: Reservation | None = None
        self.reason: FinishReason | None = None
        self.ended_by: ChatError | None = None
        self.ended_at = 0.0
        self.lost_reader = False
        self.closing = False

    def end(self, why: ChatError) -> None:
        """End the run because of `why`: the first reason counts.

        Its task is cancelled at most twice: once to end the story, and once more if the reader is lost while the last
        bytes are being written.
        """
        if self.task is None or self.task.done():
            return
        lost = isinstance(why, ClientGone | SlowReader) and not self.lost_reader
        first = self.ended_by is None and not self.closing
        if first:
            self.ended_by = why
            self.ended_at = self.task.get_loop().time()
        if lost:
            self.lost_reader = True
        if first or lost:
            self.task.cancel()


class Client(Sink, Protocol):
    """The reader's end, as the story needs it."""

    def expect(self, encoder: Encoder, model: str) -> None:
        """A provider is asked now: the stream may open before it answers, and its clocks run."""
        ...

    async def start(self, model: str) -> None:
        """Send the headers and the first event, unless that has happened already."""
        ...

    async def fail(self, error: ChatError) -> None:
        """End with an error: a status while nothing was sent, else an event; nothing where nobody is there."""
        ...

    async def finish(self, data: bytes) -> None:
        """Send the last bytes and end the answer."""
        ...


class Chat:
    """Serves requests. All parts are shared by all of them; what belongs to one is in its Run."""

    def __init__(
        self,
        *,
        identify: Identify,
        profiles: Profiles,
        ledger: Ledger,
        upstream: Upstream,
        observers: Sequence[Observer] = (),
        now: Now = time.time,
    ) -> None:
        self._identify = identify
        self._profiles = profiles
        self._ledger = ledger
        self._upstream = upstream
        self._observers = observers
        self._now = now

    async def serve(self, run: Run, dialect: Dialect, scope: Scope, client: Client) -> None:
        """Answer one request to its end. Raises nothing that a request, a provider or a reader can cause."""
        try:
            error = await self._outcome(run, dialect, scope, client)
            run.closing = True
            await self._close(run, error, client)
        except asyncio.CancelledError:
            if not run.lost_reader:
                raise
        except Exception as bug:
            _log_bug(f"request {run.id}", bug)
            await client.fail(ChatError())

    async def _story(self, run: Run, dialect: Dialect, scope: Scope, client: Client) -> None:
        loop = asyncio.get_running_loop()
        caller = run.caller = await self._who(scope)  # who pays; the body has no say
        request = dialect.parse(run.body)  # a bad field: 400, named, not echoed
        profile = run.profile = self._profiles.resolve(caller, request)  # what they may; a client only lowers it
        prompt, prompt_tokens, run.dropped_messages = _prompt(request, profile)  # the oldest turns, until it fits
        claim = self._claim(run, caller, profile, prompt_tokens)  # rates, budgets, concurrency: one list
        encoder = run.encoder = dialect.encoder(request, run.id)
        async with self._ledger.reserve(claim, prompt_tokens) as held:  # atomic; the output clamped to what is left
            run.held = held
            self._tell(lambda observer: observer.started(run.id, caller, profile.name, profile.model))
            client.expect(encoder, split_model(profile.model)[1])
            opening = self._upstream.open(prompt, (profile.model, *profile.fallbacks), held)
            del request, prompt  # a stream may be held for minutes: nobody on its way keeps its prompt
            run.body = b""
            async with opening as batches:  # retries and fallbacks, only up to here
                await client.start(split_model(held.model)[1])  # a real 4xx or 5xx until now
                run.reason = await relay(batches, encoder, client, held, run.pulse, loop.time)
        # Leaving closed the provider's connection first, then settled, once.

    async def _outcome(self, run: Run, dialect: Dialect, scope: Scope, client: Client) -> ChatError | None:
        try:
            await self._story(run, dialect, scope, client)
        except ChatError as error:
            return error
        except asyncio.CancelledError:
            if run.ended_by is None:
                raise
            return None if run.reason is not None and not run.lost_reader else run.ended_by
        except Exception as bug:
            _log_bug(f"request {run.id}", bug)
            return ChatError()
        # A provider that swallows what went wrong must not turn it into a finished answer.
        return None if run.reason is not None else run.ended_by or UpstreamTruncated()

    async def _close(self, run: Run, error: ChatError | None, client: Client) -> None:
        if run.held is None or run.encoder is None:
            refusal = error or ChatError()
            self._tell(lambda observer: observer.refused(run.id, run.caller, refusal))
            await client.fail(refusal)
            return
        ending = self._ending(run, run.held, error)
        self._tell(lambda observer: observer.finished(ending))
        if error is None:
            await client.finish(run.encoder.finish(ending))
        else:
            await client.fail(error)

    async def _who(self, scope: Scope) -> Caller:
        caller = self._identify(scope)
        if not isinstance(caller, Awaitable):
            return caller
        try:
            async with asyncio.timeout(IDENTIFY_SECONDS):
                return await caller
        except TimeoutError:
            log.error("identify took more than %s s", IDENTIFY_SECONDS)  # noqa: TRY400 - where it waited says nothing
            raise LimiterUnavailable from None

    def _claim(self, run: Run, caller: Caller, profile: Profile, prompt_tokens: int) -> Claim:
        return Claim(
            id=run.id,
            fingerprint=blake2b(run.body, digest_size=16).hexdigest(),
            lines=self._profiles.lines(caller, profile, prompt_tokens, self._now()),
            max_output_tokens=profile.max_output_tokens,
            min_output_tokens=min(profile.min_output_tokens, profile.max_output_tokens),
        )

    def _ending(self, run: Run, held: Reservation, error: ChatError | None) -> Ending:
        usage, source = held.spent()
        first_at = run.pulse.first_at
        return Ending(
            id=run.id,
            caller=run.caller.key if run.caller else "",
            profile=run.profile.name if run.profile else "",
            model=held.model,
            reason=run.reason,
            error=error,
            usage=usage,
            source=source,
            seconds=asyncio.get_running_loop().time() - run.began_at,
            first_token_seconds=None if first_at is None else first_at - run.began_at,
            remaining=held.remaining(usage),
            dropped_messages=run.dropped_messages,
        )

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception as failure:
                log.error("an observer failed: %s", type(failure).__name__)  # noqa: TRY400 - no values in logs

    async def standing(self, scope: Scope) -> list[tuple[Line, Standing]]:
        """How the asking caller's own limits stand. Raises LimiterUnavailable if the store does not answer."""
        try:
            caller = await self._who(scope)
        except ChatError:
            raise
        except Exception as bug:
            _log_bug("usage", bug)
            raise ChatError from None
        profile = self._profiles.resolve(caller, ChatRequest(messages=()))
        lines = [
            line
            for line in self._profiles.lines(caller, profile, 0, self._now())
            if line.scope == "caller" and line.kind != "request"
        ]
        return list(zip(lines, await self._ledger.peek(lines), strict=True))


def _log_bug(where: str, bug: Exception) -> None:
    """Its message may hold a prompt or a key: only its type and place are told."""
    log.error("%s: %s\n%s", where, type(bug).__name__, "".join(traceback.format_tb(bug.__traceback__)))


def _prompt(request: ChatRequest, profile: Profile) -> tuple[Prompt, int, int]:
    """The prompt that is sent, an upper bound of its tokens for any model that may answer, and the messages dropped."""
    messages = request.messages
    if request.system_prompt and profile.allow_system_prompt:
        messages = (Message(role="system", content=request.system_prompt), *messages)
    names = [split_model(model)[1] for model in (profile.model, *profile.fallbacks)]
    room = None
    if profile.tokens_per_request is not None:
        room = profile.tokens_per_request - min(profile.min_output_tokens, profile.max_output_tokens)
    kept = trim(messages, profile.max_messages, room, counter_for(names[0]))
    prompt = Prompt(
        model=names[0],
        messages=kept.messages,
        max_output_tokens=profile.max_output_tokens,
        temperature=profile.temperature,
    )
    bound = max([kept.tokens, *(prompt_bound(kept.messages, counter_for(name)) for name in names[1:])])
    return prompt, bound, kept.dropped
