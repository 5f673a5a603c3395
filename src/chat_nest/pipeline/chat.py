"""The pipeline of one request, top to bottom: from the body's bytes to the settlement.

The file is long because the whole course of a request should be read in one place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial

from msgspec.structs import replace

from chat_nest.controls.gate import Gate
from chat_nest.controls.grants import Grants
from chat_nest.core.attachments import all_needs
from chat_nest.core.claims import Quota
from chat_nest.core.deltas import AskedDelta, FinishReason
from chat_nest.core.errors import (
    BadRequest,
    ChallengeRequired,
    ChatError,
    InProgress,
    LimiterUnavailable,
    LimitExceeded,
    NotFound,
    RunsUnavailable,
    UpstreamError,
)
from chat_nest.core.messages import Caller, ChatRequest
from chat_nest.core.parts import failure_text, offers
from chat_nest.core.protocols import (
    AnyObserver,
    Dialect,
    Encoder,
    NamesOptions,
    Now,
    Prompt,
    Recallable,
    RefersToAnswers,
    RunLog,
    RunLogs,
    TellsInput,
)
from chat_nest.core.records import Record
from chat_nest.ledger.ledger import AlreadyEnded, Ledger
from chat_nest.ledger.reservation import Reservation
from chat_nest.ledger.store_queue import Turn
from chat_nest.limits.spec import Profile
from chat_nest.pipeline.admission import Admission, Arrival, Dropped, admission_of
from chat_nest.pipeline.callers import Callers
from chat_nest.pipeline.client import Attached, Client, Quotas
from chat_nest.pipeline.conversation import in_conversation
from chat_nest.pipeline.fair_queue import FairQueue, Place
from chat_nest.pipeline.fleet import SharedControls
from chat_nest.pipeline.images import admitted
from chat_nest.pipeline.ladder import Ladder
from chat_nest.pipeline.lifecycle import Lifecycle, State
from chat_nest.pipeline.observing import Observing
from chat_nest.pipeline.outcome import Outcome, Times, finale_of, make_ending, make_record, replayed_ending
from chat_nest.pipeline.prompt import input_bound, make_prompt, parse
from chat_nest.pipeline.relay import relay
from chat_nest.pipeline.signatures import SignedAnswer
from chat_nest.pipeline.terms import CurrentTerms, Terms
from chat_nest.pipeline.upstream import Upstream, split_model
from chat_nest.runs.kept import Kept, recall

log = logging.getLogger("chat_nest.pipeline")


LONG_BODY = 1 << 17
"""Bytes. A body that is longer takes milliseconds to read, and its prompt as many to count."""


class Chat:
    """Serves requests. All requests share its parts. With `shared` controls, workers share the providers' streams."""

    def __init__(
        self,
        *,
        callers: Callers,
        terms: Terms,
        ledger: Ledger,
        gate: Gate,
        grants: Grants,
        logs: RunLogs,
        observers: Sequence[AnyObserver] = (),
        shared: SharedControls | None = None,
        now: Now = time.time,
    ) -> None:
        self.callers = callers
        self.logs = logs
        self.observing = Observing(observers)
        self.terms = CurrentTerms(terms)
        self.queue = FairQueue(shared=shared)
        self.gate = gate
        self._grants = grants
        self._ledger = ledger
        self._now = now

    @property
    def upstream(self) -> Upstream:
        """The providers in force."""
        return self.terms.now.upstream

    async def serve(self, arrival: Arrival, body: bytes, client: Client, life: Lifecycle) -> Attached | None:
        """Answer one request to its end. Raises nothing that a request, a provider or a reader can cause.

        Returns the run to follow instead if this request repeats one that is still kept.
        """
        try:
            terms = self.terms.take()
            try:
                story = self._story(arrival, body, client, life, terms)
                del body
                outcome = await story
            finally:
                self.terms.leave(terms)
            life.settle()
            return await self._tell(outcome, arrival, client, life)
        except asyncio.CancelledError:
            if life.state is not State.OVER:
                raise
        except Exception as bug:
            log.error("request %s: %s", arrival.id, failure_text(bug))  # noqa: TRY400 - no values in logs
            await client.fail(ChatError())
        return None

    async def _story(self, arrival: Arrival, body: bytes, client: Client, life: Lifecycle, terms: Terms) -> Outcome:
        """Identify, prepare, reserve, relay, settle. It is long because each step holds what the next needs."""
        upstream = terms.upstream
        dialect, loop, pulse, steps = arrival.dialect, asyncio.get_running_loop(), life.pulse, life.steps
        caller: Caller | None = None
        admission: Admission | None = None
        held: Reservation | None = None
        reason: FinishReason | None = None
        answer: SignedAnswer | None = None

        def conclude(held: Reservation, failure: BaseException | None) -> Record:
            assert admission is not None
            steps.closed_at = loop.time()
            times = Times(life.began_at, pulse.first_at, steps.closed_at)
            return make_record(admission, held, reason, life.why(failure, reason), times, terms.prices)

        def outcome(failure: BaseException | None) -> Outcome:
            error = life.why(failure, reason)
            steps.ended_at = loop.time()
            if admission is None or held is None:
                return Outcome(caller=caller, admission=admission, error=error or ChatError())
            ending = make_ending(admission, held, held.record or conclude(held, failure), reason, error)
            if answer is not None and error is None:
                ending = replace(ending, signature=answer.signature())
            return Outcome(caller=caller, admission=admission, ending=ending, error=error)

        try:
            caller = await self.callers.identify(arrival.scope)  # who pays; no field of the body matters
            self.callers.check_refused(caller)  # repeated bad requests are refused unread
            await self.callers.check_challenge(caller)  # a visitor under suspicion
            earlier = await self._earlier(dialect, body, caller)  # the kept answers that this request continues
            # A free stream of a provider, if they are limited; then only a few requests at a time prepare.
            async with self.queue.place(caller.counter_key) as place, self._ledger.turn() as turn:
                prepared = await self._prepare(arrival, body, earlier, caller, terms, turn, place, client)
                caller, request, profile = prepared
                del prepared
                request, refused = admitted(request, profile, upstream.takes(profile.model))  # images
                if len(body) > LONG_BODY:  # the tokenizer lets other threads run: the streams of others go on
                    prompt, tokens, kept = await asyncio.to_thread(make_prompt, request, profile, upstream.counters)
                else:
                    prompt, tokens, kept = make_prompt(request, profile, upstream.counters)
                dropped = Dropped(messages=kept.dropped, images=refused + kept.dropped_images)
                models = _able(upstream, dialect, prompt, profile)  # what a model lacks is refused, not dropped
                models = self.gate.open_models(models)  # without those that an operator paused
                now = self._now()
                lines = self._grants.raised(terms.profiles.lines(caller, profile, tokens, now))
                admission = admission_of(arrival, body, caller, request, profile, lines, tokens, dropped, now)
                # Rates, budgets, concurrency: one list, all or none; the output is clamped to what is left.
                steps.reserve_at = loop.time()
                async with self._ledger.reserve(admission.claim, tokens, conclude, turn) as held:
                    steps.reserved_at = loop.time()
                    life.held = held
                    life.admit(admission)
                    life.address = self.callers.address_of(arrival.scope)
                    self.gate.check_address(life.address)  # again: `stop_running` stops what was admitted before
                    self.gate.check(caller, profile.name)
                    life.log = self._begin_log(admission)
                    self.observing.started(admission)
                    quotas = Quotas(admission.claim.lines, held.quotas(admission.started_at), request.ladder_below)
                    _expect_input(admission.encoder, tokens)
                    client.expect(admission.encoder, split_model(profile.model)[1], quotas)
                    if profile.signed_turns and terms.signatures is not None:
                        answer = terms.signatures.start(caller, request, admission.encoder)
                    steps.asked_at = loop.time()
                    self.observing.asking(admission)
                    opening = upstream.open(prompt, models, held, place, self.gate.pauses)
                    del earlier, request, prompt, kept, body  # no prompt is kept in memory while its stream runs
                    async with opening as batches:  # retries and fallbacks, only up to here
                        steps.opened_at = loop.time()
                        if held.reported is not None and held.reported.input_tokens:  # a zero is no count
                            _expect_input(admission.encoder, held.reported.input_tokens)
                        await client.start(split_model(held.model)[1])  # a real 4xx or 5xx until now
                        encoder = answer or admission.encoder
                        reason = await relay(batches, encoder, client, held, pulse, loop.time, life.log)
            # On exit the provider's connection was closed, then the hold settled, once, with what `conclude` returned.
        except asyncio.CancelledError as cancelled:
            if life.ended_by is None:
                raise
            return outcome(_let_go(cancelled))
        except ChatError as error:
            return outcome(_let_go(error))
        except Exception as bug:
            log.error("request %s: %s", arrival.id, failure_text(bug))  # noqa: TRY400 - no values in logs
            return outcome(_let_go(bug))
        return outcome(None)

    async def _prepare(
        self,
        arrival: Arrival,
        body: bytes,
        earlier: Mapping[str, Kept],
        caller: Caller,
        terms: Terms,
        turn: Turn,
        place: Place,
        client: Client,
    ) -> tuple[Caller, ChatRequest, Profile]:
        """Return the request and its profile, once a provider of the profile has a free stream.

        A request that waits for one holds nothing else, not even its turn at the store. Afterwards all is decided anew:
        what is left of the limits may have changed.
        """
        while True:
            request = parse(arrival.dialect, body, earlier)  # a bad field: 400, named, not echoed
            profile = terms.profiles.resolve(caller, request)  # the profile's limits; a client can only lower them
            if profile.signed_turns and terms.signatures is not None:
                terms.signatures.check(caller, request)  # an answer in the history that is not ours: 400
            payer = in_conversation(caller, request, profile, arrival.scope, self._now())
            self.gate.check(payer, profile.name)  # an operator's pause or block
            if profile.ladder:  # cheaper, if little is left
                ladder = Ladder(terms.profiles, self._ledger, terms.upstream, self._now, self._grants)
                request, profile = await ladder.climb_down(payer, request, profile, turn)
            models = self.gate.open_models((profile.model, *profile.fallbacks))
            providers = [split_model(model)[0] for model in models]
            if await place.take(providers):
                return payer, request, profile
            encoder, model = arrival.dialect.encoder(request, arrival.id), split_model(profile.model)[1]
            del request
            turn.end()
            await place.wait(providers, partial(client.queued, encoder, model))
            await turn.begin()

    async def _tell(self, outcome: Outcome, arrival: Arrival, client: Client, life: Lifecycle) -> Attached | None:
        """Report the end of the request to the observers, the log and the reader."""
        ending, admission, error = outcome.ending, outcome.admission, outcome.error
        if life.lost:
            life.steps.gone_at = life.ended_at
        if ending is None or admission is None:
            return await self._refuse(outcome, error or ChatError(), arrival, client, life)
        self.observing.finished(ending)
        self.observing.report(life.id, arrival.name, life.steps, "ok" if error is None else error.code, outcome)
        number = 0 if life.log is None else life.log.end(finale_of(ending))
        if error is None:
            data = admission.encoder.finish(ending)
            await client.finish(admission.encoder.number(data, number) if number else data)
        else:
            # Clients retry some statuses by themselves; an answer must not be billed twice.
            error.billed = isinstance(error, UpstreamError) and ending.usage.total_tokens > 0
            await client.fail(error, number=number)
        return None

    async def _refuse(
        self, outcome: Outcome, error: ChatError, arrival: Arrival, client: Client, life: Lifecycle
    ) -> Attached | None:
        caller, admission = outcome.caller, outcome.admission
        if isinstance(error, InProgress | AlreadyEnded) and admission is not None and admission.encoder.streams:
            with contextlib.suppress(RunsUnavailable):
                followed = await self.logs.find(admission.claim.id)
                if followed is not None:
                    self.observing.report(life.id, arrival.name, life.steps, "followed", outcome)
                    return Attached(admission.caller, followed)
        if isinstance(error, AlreadyEnded) and admission is not None:
            self.observing.report(life.id, arrival.name, life.steps, "replayed", outcome)
            await _replay(admission.encoder, error.record, client)
            return None
        error = self.callers.instead(caller, error)
        if caller is not None:
            self.callers.count_refused(caller, error)
        self.observing.refused(life.id, caller, error)
        self.observing.report(life.id, arrival.name, life.steps, error.code, outcome)
        quotas = await self._quotas_of(caller, admission, error, life)
        await client.fail(error, quotas)
        return None

    async def _quotas_of(
        self, caller: Caller | None, admission: Admission | None, error: ChatError, life: Lifecycle
    ) -> Quotas:
        """Return the state of the limits for the headers of a refusal. A failure to read it is ignored."""
        lines = () if admission is None else admission.claim.lines
        if caller is None or isinstance(error, LimiterUnavailable | ChallengeRequired) or not life.has_reader:
            return Quotas(lines)
        if isinstance(error, LimitExceeded):
            full = [line for line in lines if (line.name, line.scope) == (error.limit, error.scope)]
            return Quotas(lines, [Quota(line, error.room, error.retry_after or 0.0) for line in full])
        try:
            standings = await self.callers.standing_of(caller)
        except ChatError:
            return Quotas(lines)
        return Quotas([line for line, _ in standings], self.callers.quotas(standings))

    async def _earlier(self, dialect: Dialect, body: bytes, caller: Caller) -> Mapping[str, Kept]:
        """Return the caller's kept answers that the body refers to, by run. Missing ones are left out."""
        found: dict[str, Kept] = {}
        for id in dialect.earlier(body) if offers(dialect, RefersToAnswers) else ():
            with contextlib.suppress(NotFound):
                found[id] = await recall(self.logs, id, caller.key)
        return found

    def _begin_log(self, admission: Admission) -> RunLog | None:
        """Begin a log of the answer if it may outlive its reader, or if other requests may refer to it."""
        profile, encoder = admission.profile, admission.encoder
        asked = encoder.asked() if offers(encoder, Recallable) else ""
        if not admission.keep or (profile.on_disconnect == "cancel" and not asked):
            return None
        model = split_model(profile.model)[1]
        run_log = self.logs.begin(admission.run, admission.caller.key, model, admission.names)
        if asked:
            run_log.append([AskedDelta(asked)])
        return run_log

    async def count(self, dialect: Dialect, body: bytes, caller: Caller) -> tuple[int, bool]:
        """Return an upper bound of the request's input tokens, untrimmed, and whether the count of its texts is exact.

        Calls no provider and charges nothing. Only the caller's rate of requests applies, counted apart from its chats.
        Raises what a chat with this body raises before it is admitted.
        """
        self.callers.count_counting(caller)
        request = parse(dialect, body, await self._earlier(dialect, body, caller))
        profile = self.terms.now.profiles.resolve(caller, request)
        if len(body) > LONG_BODY:
            return await asyncio.to_thread(input_bound, request, profile.model, self.upstream.counters)
        return input_bound(request, profile.model, self.upstream.counters)


def _able(upstream: Upstream, dialect: Dialect, prompt: Prompt, profile: Profile) -> Sequence[str]:
    """Return the profile's models that can do what the prompt asks. Raises BadRequest if the first one can't."""
    if lacking := upstream.lacks(prompt, profile.model):
        field = dialect.option_names.get(lacking, lacking) if offers(dialect, NamesOptions) else lacking
        raise BadRequest("is not offered by the provider of this model: leave it out", field=field)
    needs = all_needs(prompt.messages)
    able = [model for model in profile.fallbacks if not upstream.lacks(prompt, model)]
    return (profile.model, *(model for model in able if needs <= upstream.takes(model)))


def _let_go(failure: BaseException) -> BaseException:
    """Return the exception without its traceback, whose frames keep the answer's buffers until a garbage collection."""
    failure.__traceback__ = failure.__context__ = None
    return failure


def _expect_input(encoder: Encoder, tokens: int) -> None:
    if offers(encoder, TellsInput):
        encoder.expect_input(tokens)


async def _replay(encoder: Encoder, record: Record | None, client: Client) -> None:
    """Send how the first request with this Idempotency-Key ended. No provider is called, and nothing is charged."""
    model = split_model(record.model if record else "")[1]
    client.expect(encoder, model, replayed=True)
    await client.start(model)
    ended = replayed_ending(record)
    if isinstance(ended, ChatError):
        await client.fail(ended)
    else:
        await client.finish(encoder.finish(ended))
