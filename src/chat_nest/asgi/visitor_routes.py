"""Routes for visitors: a token where cookies can't go, a challenge, and the solution of one."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableSequence
from typing import Any

import msgspec
from msgspec import Struct

from chat_nest.asgi.request import Receive, Send, read_json_body
from chat_nest.asgi.response import respond
from chat_nest.challenges.gate import ChallengeGate
from chat_nest.challenges.settings import PATH
from chat_nest.core.errors import BadRequest, ChallengeFailed, Forbidden, NotFound
from chat_nest.core.messages import Visit
from chat_nest.core.protocols import Answer, Scope
from chat_nest.dialects.frames import JSON
from chat_nest.identity.bearer import has_credential
from chat_nest.identity.visitors import ANSWER_HEADERS, Visitors, network_of, token_of
from chat_nest.limits.caller_rates import CallerRates
from chat_nest.pipeline.callers import Callers

VISIT_PATH = "/api/visit"
METHODS = {VISIT_PATH: "POST, OPTIONS", PATH: "GET, POST, OPTIONS"}
MAX_BODY = 16_384
FAILED_PER_MINUTE = 60
"""Wrong solutions of one IP address."""
ASKED_PER_MINUTE = 60
"""Challenges that one IP address gets at GET /api/challenge: each costs a derivation of a key."""
ASKED_PER_MINUTE_OF_NETWORK = 600
NO_VISIT = "The request has no valid id of a visitor: send the cookie, or a token of POST /api/visit"

MoreHeaders = MutableSequence[tuple[bytes, bytes]]

_json = msgspec.json.Encoder().encode


class _Solution(Struct):
    solution: str


_decode = msgspec.json.Decoder(_Solution).decode


class VisitorRoutes:
    """Serves POST /api/visit and, with a `gate`, GET and POST /api/challenge."""

    def __init__(
        self,
        visitors: Visitors,
        gate: ChallengeGate | None,
        callers: Callers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._callers = callers
        self._visitors = visitors
        self._gate = gate
        self._failed = CallerRates(clock)
        self._asked = CallerRates(clock)

    async def serve(self, path: str, headers: MoreHeaders, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises a ChatError for one that is refused."""
        await self._check(scope)
        if path == VISIT_PATH:
            answer = self._visit(scope)
        elif self._gate is None:
            raise NotFound
        elif scope["method"] == "GET":
            answer = self._challenge(self._gate, scope)
        else:
            answer = await self._solve(self._gate, scope, receive)
        await respond(send, Answer(status=200, body=_json(answer), headers=JSON), headers)

    async def _check(self, scope: Scope) -> None:
        """Raise Unauthorized for a wrong credential, and Blocked for a blocked caller or network."""
        if has_credential(scope):
            await self._callers.identify({**scope, ANSWER_HEADERS: None})  # the answer sets no cookie for it
        else:
            await self._callers.check_address(scope)

    def _visit(self, scope: Scope) -> dict[str, Any]:
        """Return the token of a new visitor, or a new token of the visitor whose token the request has.

        A cookie is not looked at: scripts of the page must not learn what it holds.
        """
        found = self._visitors.visit_of(scope) if token_of(scope) else None
        visit = self._visitors.new(scope) if found is None else self._visitors.renewed(found)
        return self._token(visit)

    def _token(self, visit: Visit) -> dict[str, Any]:
        token, expires_at = self._visitors.token(visit)
        return {"token": token, "expires_at": expires_at}

    def _challenge(self, gate: ChallengeGate, scope: Scope) -> dict[str, Any]:
        """Return a challenge for the visitor, who gets a cookie if it has no valid id yet. Raises RateLimited."""
        address = self._visitors.address(scope)
        rates = {address: ASKED_PER_MINUTE, f"{network_of(address)} network": ASKED_PER_MINUTE_OF_NETWORK}
        for place in rates:
            self._asked.check(place)
        for place, per_minute in rates.items():
            self._asked.count(place, per_minute)
        visit = self._visitors.visit_of(scope)
        if visit is None:
            visit = self._visitors.new(scope)
            self._visitors.set_cookie(scope, visit)
        return dict(gate.required(visit).challenge)

    async def _solve(self, gate: ChallengeGate, scope: Scope, receive: Receive) -> dict[str, Any]:
        """Check a solution, and give the visitor's cookie or token its pass."""
        address = self._visitors.address(scope)
        self._failed.check(address)
        body = await read_json_body(scope, receive, MAX_BODY)
        try:
            solution = _decode(body).solution
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise BadRequest("must be a string: the solution of the challenge", field="solution") from None
        token = token_of(scope)
        visit = self._visitors.visit_of(scope)
        if visit is None:
            raise Forbidden(NO_VISIT)
        try:
            passed = await gate.passed(visit, solution)
        except ChallengeFailed:
            self._failed.count(address, FAILED_PER_MINUTE)
            raise
        told: dict[str, Any] = {"passed": passed.passed == "after", "until": passed.passed_until}
        if token:
            return {**told, **self._token(passed)}
        self._visitors.set_cookie(scope, passed)
        return told
