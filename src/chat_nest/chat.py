"""One request, from bytes to settled, top to bottom."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from hashlib import blake2b

from chat_nest.errors import ChatError, InProgress, LimiterUnavailable, LimitExceeded, RunsUnavailable
from chat_nest.ledger import AlreadyEnded, Ledger
from chat_nest.limits import Claim, Line, Profile, Quota, Standing
from chat_nest.messages import Caller, ChatRequest, Message
from chat_nest.parts import KnownBugs, PartMisused, failure_text, kind_of, part_name
from chat_nest.prices import Prices
from chat_nest.profiles import Profiles
from chat_nest.protocols import Dialect, Identify, Now, Observer, Prompt, RunLogs, Scope
from chat_nest.records import Record
from chat_nest.relay import relay
from chat_nest.run import Client, Run, finale_of, make_ending, make_record, replayed_ending
from chat_nest.tokens import counter_for, prompt_bound
from chat_nest.trim import trim
from chat_nest.upstream import Upstream, split_model
from chat_nest.usage import Usage

log = logging.getLogger("chat_nest.chat")

IDENTIFY_SECONDS = 10.0


class Chat:
    """Serves requests. All parts are shared by all of them; what belongs to one is in its Run."""

    def __init__(
        self,
        *,
        identify: Identify,
        profiles: Profiles,
        ledger: Ledger,
        upstream: Upstream,
        prices: Prices,
        logs: RunLogs,
        observers: Sequence[Observer] = (),
        now: Now = time.time,
    ) -> None:
        self._identify = identify
        self._profiles = profiles
        self._ledger = ledger
        self._upstream = upstream
        self._prices = prices
        self.logs = logs
        self._observers = observers
        self._now = now
        self._bugs = KnownBugs()

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
        caller = run.caller = await self.who(scope)  # who pays; the body has no say
        async with self._ledger.turn() as turn:  # few at a time get ready to ask the store
            request = dialect.parse(run.body)  # a bad field: 400, named, not echoed
            profile = run.profile = self._profiles.resolve(caller, request)  # what they may; a client only lowers it
            prompt, prompt_tokens, run.dropped_messages = _prompt(request, profile)  # the oldest turns, until it fits
            claim = self._claim(run, dialect, caller, profile, prompt_tokens)  # rates, budgets, concurrency: one list
            encoder = run.encoder = dialect.encoder(request, run.id)
            conclude = partial(make_record, run, self._prices)
            # Atomic; the output is clamped to what is left.
            async with self._ledger.reserve(claim, prompt_tokens, conclude, turn) as held:
                run.held = held
                run.quotas = held.quotas(run.started_at)
                self._tell(lambda observer: observer.started(run.id, caller, profile.name, profile.model))
                self._keep(run, request, profile)
                client.expect(encoder, split_model(profile.model)[1])
                opening = self._upstream.open(prompt, (profile.model, *profile.fallbacks), held)
                del request, prompt  # a stream may be held for minutes: nobody on its way keeps its prompt
                run.body = b""
                async with opening as batches:  # retries and fallbacks, only up to here
                    await client.start(split_model(held.model)[1])  # a real 4xx or 5xx until now
                    run.reason = await relay(batches, encoder, client, held, run.pulse, loop.time, run.log)
        # Leaving closed the provider's connection first, then settled, once, with what `conclude` says.

    async def _outcome(self, run: Run, dialect: Dialect, scope: Scope, client: Client) -> ChatError | None:
        try:
            await self._story(run, dialect, scope, client)
        except ChatError as error:
            return error
        except asyncio.CancelledError as cancelled:
            if run.ended_by is None:
                raise
            return run.why(cancelled)
        except Exception as bug:
            _log_bug(f"request {run.id}", bug)
            return ChatError()
        return run.why(None)

    async def _close(self, run: Run, error: ChatError | None, client: Client) -> None:
        if run.held is None or run.encoder is None:
            await self._refuse(run, error or ChatError(), client)
            return
        record = run.record or make_record(run, self._prices, run.held, error)
        ending = make_ending(run, record, run.held, error)
        self._tell(lambda observer: observer.finished(ending))
        if run.log is not None:
            run.last = run.log.end(finale_of(ending))
        if error is None:
            data = run.encoder.finish(ending)
            await client.finish(run.encoder.number(data, run.last) if run.last else data)
        else:
            await client.fail(error)

    def _keep(self, run: Run, request: ChatRequest, profile: Profile) -> None:
        """Keep what is said for readers who come back, where the profile lets a run outlive its reader."""
        if run.held is None or run.caller is None:
            return
        run.names = [run.held.claim.id] if run.key is not None else []
        if request.chat_id:
            run.names.append(chat_name(run.caller, request.chat_id))
        if profile.on_disconnect == "cancel":
            return
        run.log = self.logs.begin(run.id, run.caller.key, split_model(profile.model)[1], run.names)

    async def _refuse(self, run: Run, error: ChatError, client: Client) -> None:
        if isinstance(error, AlreadyEnded):
            await self._replay(run, error.record, client)
            return
        if isinstance(error, InProgress) and error.claim and run.encoder is not None and run.encoder.streams:
            with contextlib.suppress(RunsUnavailable):
                run.attached = await self.logs.find(error.claim)
            if run.attached is not None:
                return  # whoever has the connection follows it
        self._tell(lambda observer: observer.refused(run.id, run.caller, error))
        await self._look_at_quotas(run, error)
        await client.fail(error)

    async def _replay(self, run: Run, record: Record | None, client: Client) -> None:
        """Tell how the first request with this Idempotency-Key ended: nothing is asked or charged again."""
        assert run.encoder is not None
        run.replayed = True
        model = split_model(record.model if record else "")[1]
        client.expect(run.encoder, model)
        await client.start(model)
        ended = replayed_ending(record)
        if isinstance(ended, ChatError):
            await client.fail(ended)
        else:
            await client.finish(run.encoder.finish(ended))

    async def _look_at_quotas(self, run: Run, error: ChatError) -> None:
        """Find out how the lines of a refused request stand, for its headers: not worth another failure."""
        if run.caller is None or run.quotas or isinstance(error, LimiterUnavailable) or run.lost_reader:
            return
        if isinstance(error, LimitExceeded):
            full = next(line for line in run.lines if (line.name, line.scope) == (error.limit, error.scope))
            run.quotas = [Quota(full, error.room, error.retry_after or 0.0)]
            return
        try:
            standings = await self._standing(run.caller)
        except ChatError:
            return
        now = self._now()
        run.lines = [line for line, _ in standings]
        run.quotas = [Quota(line, each.room, max(0.0, each.resets_at - now)) for line, each in standings]

    def _claim(self, run: Run, dialect: Dialect, caller: Caller, profile: Profile, prompt_tokens: int) -> Claim:
        run.started_at = self._now()
        run.lines = self._profiles.lines(caller, profile, prompt_tokens, run.started_at)
        record = Record(
            run=run.id,
            caller=caller.key,
            group=caller.group or "",
            profile=profile.name,
            model=profile.model,
            started_at=run.started_at,
            usage=Usage(input_tokens=prompt_tokens, output_tokens=profile.max_output_tokens),
        )
        claim_id = fingerprint = run.id
        if run.key is not None:  # only then can another body come with the same id
            claim_id = _keyed_id(caller, run.key)
            fingerprint = blake2b(run.body, digest_size=16, person=_short(dialect.routes[0].path)).hexdigest()
        return Claim(
            id=claim_id,
            fingerprint=fingerprint,
            owner=run.id,
            lines=tuple(run.lines),
            max_output_tokens=profile.max_output_tokens,
            min_output_tokens=min(profile.min_output_tokens, profile.max_output_tokens),
            record=record,
        )

    def _tell(self, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception as failure:
                log.error("an observer failed: %s", self._bugs.explain(observer, failure))  # noqa: TRY400 - no values in logs

    async def who(self, scope: Scope) -> Caller:
        """Identify the caller. Raises the ChatError that `identify` raises, and a plain one for any other failure."""
        limit = asyncio.timeout(IDENTIFY_SECONDS)
        try:
            caller: object = self._identify(scope)
            if isinstance(caller, Awaitable):
                async with limit:
                    caller = await caller
            return _checked_caller(caller)
        except ChatError:
            raise
        except Exception as bug:
            name = f"identify ({part_name(self._identify)})"
            if limit.expired():
                log.error("%s took more than %s s: the request is refused", name, IDENTIFY_SECONDS)  # noqa: TRY400 - where it waited says nothing
                raise LimiterUnavailable from None
            log.error("%s %s%s", name, "" if isinstance(bug, PartMisused) else "raised ", failure_text(bug))  # noqa: TRY400 - no values in logs
            raise ChatError from None

    async def standing(self, scope: Scope) -> list[tuple[Line, Standing]]:
        """How the asking caller's own limits stand. Raises LimiterUnavailable if the store does not answer."""
        return await self._standing(await self.who(scope))

    async def models(self, scope: Scope) -> tuple[str, ...]:
        """What the asking caller may name as a model."""
        return self._profiles.model_names(await self.who(scope))

    async def _standing(self, caller: Caller) -> list[tuple[Line, Standing]]:
        profile = self._profiles.resolve(caller, ChatRequest(messages=()))
        lines = [
            line
            for line in self._profiles.lines(caller, profile, 0, self._now())
            if line.scope == "caller" and line.kind != "request"
        ]
        return list(zip(lines, await self._ledger.peek(lines), strict=True))


def _short(path: str) -> bytes:
    """A path in the few bytes that a hash can be made personal by."""
    return blake2b(path.encode(), digest_size=16).digest()


def chat_name(caller: Caller, chat_id: str) -> str:
    """The name under which the newest run of a caller's chat is found, by the client's own id of the chat."""
    return "chat:" + blake2b(f"{caller.key} {chat_id}".encode(), digest_size=16).hexdigest()


def _keyed_id(caller: Caller, key: str) -> str:
    """One caller's key is not another's."""
    return "key:" + blake2b(f"{caller.key} {key}".encode(), digest_size=16).hexdigest()


def _log_bug(where: str, bug: Exception) -> None:
    log.error("%s: %s", where, failure_text(bug))


def _checked_caller(caller: object) -> Caller:
    """Raise PartMisused unless `identify` returned a Caller whose fields have their types."""
    if isinstance(caller, ChatError):
        raise PartMisused(f"returned {kind_of(caller)}; raise it instead")
    if not isinstance(caller, Caller):
        raise PartMisused(f"returned {kind_of(caller)}; return a chat_nest.Caller")
    if not isinstance(caller.id, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a struct does not check
        raise PartMisused(f"returned a Caller whose id is {kind_of(caller.id)}; it must be a str")
    for name in ("profile", "group"):
        value: object = getattr(caller, name)
        if value is not None and not isinstance(value, str):
            raise PartMisused(f"returned a Caller whose {name} is {kind_of(value)}; it must be a str or None")
    return caller


def _prompt(request: ChatRequest, profile: Profile) -> tuple[Prompt, int, int]:
    """The prompt that is sent, an upper bound of its tokens for any model that may answer, and the messages dropped."""
    messages = request.messages
    if request.system_prompt and profile.allow_system_prompt:
        messages = (Message(role="system", content=request.system_prompt), *messages)
    names = [split_model(model)[1] for model in (profile.model, *profile.fallbacks)]
    room = None
    if profile.tokens_per_request is not None:
        room = profile.tokens_per_request - min(profile.min_output_tokens, profile.max_output_tokens)
    kept = trim(messages, profile.max_messages, room, counter_for(names[0]), request.tools)
    prompt = Prompt(
        model=names[0],
        messages=kept.messages,
        max_output_tokens=profile.max_output_tokens,
        temperature=profile.temperature,
        tools=request.tools,
        tool_choice=request.tool_choice,
    )
    bound = max([kept.tokens, *(prompt_bound(kept.messages, counter_for(name), request.tools) for name in names[1:])])
    return prompt, bound, kept.dropped
