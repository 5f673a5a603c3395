"""When visitors are challenged, with what, and what passing gives."""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct

from chat_nest.core.errors import ChallengeKind

Kind = ChallengeKind
When = Literal["limit", "pressure", "always"]
Unreachable = Literal["closed", "before"]
Bind = Literal["none", "network", "address"]

PATH = "/api/challenge"
SERVICES = ("turnstile", "hcaptcha", "recaptcha")
MOST_MILLISECONDS = 60_000
MOST_HOURS = 720


class Challenge(Struct, frozen=True, kw_only=True):
    """The challenge of visitors. Example: `Challenge(kind="proof_of_work", before="taste", after="balanced")`.

    `when` is `limit`: a visitor uses the profile `before` until a limit of it refuses that `after` does not have;
    `pressure`: only while all callers together have used more than the share `pressure` of a limit for all, or while
    more than `refusals_per_minute` requests were refused by limits in this process; or `always`: before the first chat.
    A visitor that passes has the profile `after` for `hours`. An empty profile means the open ones.
    """

    kind: Kind
    when: When = "limit"
    before: str = ""
    after: str = ""
    hours: float = 24.0
    milliseconds: int = 2_000
    """For proof_of_work: the time that a phone needs, on average. See docs/visitors.md."""
    bind: Bind = "network"
    """For proof_of_work and turnstile: where a visitor may send the solution from. `network` is that from which it got
    the challenge (an IPv4 /24 or IPv6 /48), `address` the same IP address (an IPv6 /64), `none` anywhere."""
    site_key: str = ""
    """For the services, as are the fields below."""
    secret: str = ""
    hostnames: tuple[str, ...] = ()
    """The hosts of the pages on which a challenge may have been solved."""
    action: str = "chat"
    """The action that the solution must have, if the service reports one."""
    checkbox: bool = True
    """For recaptcha: whether the page shows v2's checkbox. Without it, v3 gives a score, and a visitor sees nothing."""
    score: float = 0.5
    """The lowest score of reCAPTCHA v3."""
    unreachable: Unreachable = "closed"
    """While the service does not answer: `closed` refuses, `before` gives the profile `before` for ten minutes."""
    deadline: float = 5.0
    """Seconds for the service's answer."""
    verify_url: str = ""
    """Another URL of the service's siteverify, such as https://www.recaptcha.net/recaptcha/api/siteverify."""
    pressure: float = 0.8
    refusals_per_minute: int | None = None

    def __repr__(self) -> str:
        """Return it without the secret."""
        return f"Challenge(kind={self.kind!r}, when={self.when!r})"


def check_challenge(challenge: Challenge) -> None:
    """Raise ValueError, which begins with the field's name, for settings that don't fit together."""
    if challenge.when == "limit" and not challenge.after:
        raise ValueError('after must name the profile of a visitor that passed: when = "limit" lifts it from before')
    if challenge.when == "limit" and challenge.after == challenge.before:
        raise ValueError("after must be another profile than before: passing would change nothing")
    if challenge.bind not in get_args(Bind):
        raise ValueError(f"bind must be one of {', '.join(get_args(Bind))}")
    if not 0 < challenge.hours <= MOST_HOURS:
        raise ValueError(f"hours must be a number above 0 and at most {MOST_HOURS}")
    if not 0 < challenge.pressure <= 1:
        raise ValueError("pressure must be a number above 0 and at most 1")
    if not 0 <= challenge.score <= 1:
        raise ValueError("score must be a number from 0 to 1")
    if not 0 < challenge.deadline <= 60:
        raise ValueError("deadline must be a number of seconds above 0 and at most 60")
    if challenge.kind == "proof_of_work":
        if not 1 <= challenge.milliseconds <= MOST_MILLISECONDS:
            raise ValueError(f"milliseconds must be a whole number from 1 to {MOST_MILLISECONDS}")
        return
    for field in ("site_key", "secret"):
        if not getattr(challenge, field):
            raise ValueError(f"{field} is needed: {challenge.kind} gives one for your site")
    if not challenge.hostnames:
        raise ValueError("hostnames must list the hosts of your pages: a solution of another site must not count")
    if challenge.verify_url and not challenge.verify_url.startswith(("https://", "http://")):
        raise ValueError("verify_url must be an http or https URL")
