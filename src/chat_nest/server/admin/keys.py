"""The keys of operators. A correct key is never refused, so wrong ones can't lock an operator out."""

from __future__ import annotations

import contextlib
import hmac
import logging
import math
import time
from collections.abc import Callable, Sequence

from chat_nest.core.errors import Unauthorized
from chat_nest.core.messages import hashed
from chat_nest.core.protocols import Scope
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.bearer import credential
from chat_nest.limits.caller_rates import CallerRates
from chat_nest.server.config.provider import Secret

log = logging.getLogger("chat_nest.server")

REFUSED_PER_MINUTE = 60
"""For one IP address and process, also a private one: above it the refusal is 429."""
WARN_SECONDS = 60.0
LONGEST_KEY = 4_096
REFUSAL = "Send a key of [admin], or one of the scope admin, as Authorization: Bearer KEY"


class OperatorKeys:
    """Checks the key of a request. `keys` returns those of [admin] that are in force, `issued` checks API keys of the
    scope admin, if there are API keys. `clock` is in seconds.
    """

    def __init__(
        self,
        keys: Callable[[], Sequence[Secret]],
        issued: Callable[[], ApiKeys | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._issued = issued
        self._clock = clock
        self._rates = CallerRates(clock)
        self._warned_at = -math.inf

    async def check(self, scope: Scope) -> str:
        """Return the operator's name for the audit trail. Raises Unauthorized, or RateLimited after too many.

        The name is the id of an API key, or made of the hash of another one: the trail tells keys apart and shows none.
        Raises LimiterUnavailable for an API key while these can't be read.
        """
        try:
            given = credential(scope, LONGEST_KEY)
        except Unauthorized:
            given = ""
        if self._is_right(given):
            return f"admin:{hashed(given)[:8]}"
        issued = self._issued()
        if issued is not None and issued.claims(given):
            with contextlib.suppress(Unauthorized):
                return f"key:{(await issued.holder(scope)).id}"
        raise self._refusal(scope)

    def _is_right(self, given: str) -> bool:
        """Compare with every key, in a time that depends on neither."""
        right = False
        for key in self._keys():
            right |= hmac.compare_digest(given.encode(), key.reveal().encode())
        return right

    def _refusal(self, scope: Scope) -> Unauthorized:
        """Count a wrong key, and return the error. Raises RateLimited."""
        address = str((scope.get("client") or ("unix",))[0])
        self._rates.check(address)
        self._rates.count(address, REFUSED_PER_MINUTE)
        now = self._clock()
        if now - self._warned_at >= WARN_SECONDS:
            self._warned_at = now
            log.warning("the operators' listener refused a request: its key is missing or wrong")
        return Unauthorized(REFUSAL, challenge="Bearer")
