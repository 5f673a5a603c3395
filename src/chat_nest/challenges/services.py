"""Cloudflare Turnstile, hCaptcha and Google reCAPTCHA: a page gets a token, and the service's siteverify checks it.

https://developers.cloudflare.com/turnstile/get-started/server-side-validation/,
https://docs.hcaptcha.com/#verify-the-user-response-server-side,
https://developers.google.com/recaptcha/docs/verify
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Struct, field

from chat_nest.challenges.settings import Challenge
from chat_nest.challenges.solved import Solved
from chat_nest.core.errors import ChallengeFailed, ChallengeUnavailable, UpstreamError
from chat_nest.providers.http import HTTPSession

log = logging.getLogger("chat_nest.challenges")

VERIFY: Mapping[str, str] = {
    "turnstile": "https://challenges.cloudflare.com/turnstile/v0/siteverify",
    "hcaptcha": "https://api.hcaptcha.com/siteverify",
    "recaptcha": "https://www.google.com/recaptcha/api/siteverify",
}
LONGEST = 8_192
"""Characters of a token."""
_MOST_BYTES = 65_536
_FORM = {"content-type": "application/x-www-form-urlencoded"}
_REMEMBERED = 86_400.0
_OURS = frozenset(
    ("missing-input-secret", "invalid-input-secret", "invalid-or-already-seen-secret", "sitekey-secret-mismatch")
)
"""Error codes for a mistake in the server's own settings."""
_THEIRS = frozenset(("internal-error", "timeout"))


class _Verdict(Struct, frozen=True):
    success: bool
    hostname: str | None = None
    action: str | None = None
    score: float | None = None
    cdata: str | None = None
    error_codes: tuple[str, ...] = field(name="error-codes", default=())


_decode = msgspec.json.Decoder(_Verdict).decode


class Service:
    """Verifies a token with one of the services. Its errors never hold the token or the secret."""

    def __init__(self, challenge: Challenge) -> None:
        url = urlsplit(challenge.verify_url or VERIFY[challenge.kind])
        self._challenge = challenge
        self._path = url.path + (f"?{url.query}" if url.query else "")
        self._http = HTTPSession(f"{url.scheme}://{url.netloc}")
        self._hostnames = frozenset(name.lower() for name in challenge.hostnames)

    def make(self, owner: str) -> Mapping[str, Any]:
        """Return what the service's widget needs. `data`, for Turnstile's cData, binds the token to the visitor."""
        known = {"site_key": self._challenge.site_key, "action": self._challenge.action}
        match self._challenge.kind:
            case "turnstile":
                return {**known, "data": owner}
            case "recaptcha":
                return {**known, "checkbox": self._challenge.checkbox}
            case _:
                return known

    async def verify(self, solution: str, owner: str) -> Solved:
        """Return what a valid token is.

        Raises ChallengeFailed for any other, and ChallengeUnavailable if the service does not answer in time.
        """
        if not 1 <= len(solution) <= LONGEST or not solution.isascii() or not solution.isprintable():
            raise ChallengeFailed
        id = sha256(solution.encode()).hexdigest()[:32]
        try:
            verdict = await self._ask(solution)
        except ChallengeUnavailable:
            if self._challenge.unreachable == "closed":
                raise
            return Solved(id=id, seconds=_REMEMBERED, unchecked=True)
        self._check(verdict, owner)
        return Solved(id=id, seconds=_REMEMBERED)

    async def aclose(self) -> None:
        """Close the connections to the service."""
        await self._http.aclose()

    async def _ask(self, solution: str) -> _Verdict:
        deadline = self._challenge.deadline
        body = urlencode({"secret": self._challenge.secret, "response": solution}).encode()
        try:
            async with (
                asyncio.timeout(deadline),
                self._http.request("POST", self._path, headers=_FORM, body=body, connect_timeout=deadline) as answer,
            ):
                verdict = _decode(await answer.read_body(_MOST_BYTES))
        except (UpstreamError, TimeoutError, msgspec.DecodeError) as error:
            log.error("%s does not answer siteverify: %s", self._challenge.kind, type(error).__name__)  # noqa: TRY400
            raise ChallengeUnavailable from None
        codes = set(verdict.error_codes)
        if not verdict.success and codes & (_OURS | _THEIRS):
            advice = ": check site_key and secret in [challenge]" if codes & _OURS else ""
            log.error("%s can't check a solution%s", self._challenge.kind, advice)
            raise ChallengeUnavailable
        return verdict

    def _check(self, verdict: _Verdict, owner: str) -> None:
        if not verdict.success:
            raise ChallengeFailed
        if (verdict.hostname or "").lower() not in self._hostnames:
            raise ChallengeFailed("The challenge was solved on another site")
        reports_action = self._challenge.kind == "turnstile" or verdict.action is not None or verdict.score is not None
        if reports_action and verdict.action != self._challenge.action:
            raise ChallengeFailed("The challenge was solved for something else")
        if self._challenge.kind == "recaptcha" and not self._is_human(verdict.score):
            raise ChallengeFailed
        if self._challenge.kind == "turnstile" and verdict.cdata != owner:
            raise ChallengeFailed("The challenge was solved for another visitor")

    def _is_human(self, score: float | None) -> bool:
        """Return whether a score is high enough. A token of reCAPTCHA v2 has none: its checkbox was passed."""
        return self._challenge.checkbox if score is None else score >= self._challenge.score
