"""Callers without an account: each visitor has a signed random id, in a cookie or as a token."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableSequence, Sequence
from functools import lru_cache
from ipaddress import IPv6Network, ip_network

from msgspec.structs import replace

from chat_nest.core import header_fields
from chat_nest.core.limits import Limits, Share
from chat_nest.core.messages import Caller, Visit
from chat_nest.core.protocols import Now, Scope
from chat_nest.identity.bearer import refused
from chat_nest.identity.peer import KNOWN_ADDRESSES, PeerAddress
from chat_nest.identity.signed_ids import LONGEST_AGE, PREFIX, SignedIds

ANSWER_HEADERS = "chat_nest.headers"
"""The name of a scope's entry: the list of headers of the response, to which an identification may add."""
COOKIE = b"chat-nest"
SECURE_COOKIE = b"__Host-chat-nest"
"""The name over https: no other host of the domain can set it (RFC 6265bis, section 4.1.3.2)."""
COOKIE_SECONDS = 365 * 86_400
RENEW_SECONDS = 30 * 86_400
"""The age from which a cookie is set again, so that a visitor who returns keeps its id."""
REPEAT_SECONDS = 3_600
"""How long a first request is expected to come again with its cookie: stores know a key for an hour at least."""
_LONGEST_COOKIES = 16_384
_NO_LIMITS = Limits()


class Visitors:
    """Identifies visitors by a signed random id, and sets the cookie of a new one.

    Each request of a visitor draws on its own limits (`limits`), on those of its address (an IPv4 address or an IPv6
    /64), and on those of its network (IPv4 /24, IPv6 /48) together. A request without a valid id counts as one of its
    address: so an id that is made up or thrown away has no counters, and gains nothing.

    `secrets` are one or two, of at least 32 bytes each: the first signs, both are accepted. `trusted_proxies` are as
    for PeerAddress; over https, which a trusted proxy may report in `X-Forwarded-Proto`, the cookie is `Secure`. Raises
    ValueError for secrets or proxies that can't be used, and if `addresses` and `networks` limit nothing: anybody can
    be a thousand visitors.
    """

    def __init__(
        self,
        secrets: Sequence[str | bytes],
        *,
        addresses: Limits,
        networks: Limits = _NO_LIMITS,
        limits: Limits = _NO_LIMITS,
        trusted_proxies: Sequence[str] = (),
        now: Now = time.time,
    ) -> None:
        if _NO_LIMITS == addresses == networks:
            raise ValueError("visitors need a limit in addresses or networks: one client can be a thousand visitors")
        self.limits = limits
        self.addresses = addresses
        self.networks = networks
        self.secrets = tuple(secrets)
        self.ids = SignedIds(secrets)
        self._peers = PeerAddress(trusted_proxies)
        self._now = now
        self._places = lru_cache(KNOWN_ADDRESSES)(self._shares)

    @property
    def all_limits(self) -> Mapping[str, Limits]:
        """The limits by what they limit."""
        return {"visitors": self.limits, "addresses": self.addresses, "networks": self.networks}

    def __call__(self, scope: Scope) -> Caller:
        address = self._peers(scope).id
        visit = self.visit_of(scope)
        places = self._places(address)
        if visit is None:
            visit = self.new(scope, counted_as=address)
            self.set_cookie(scope, visit)
            return Caller(id=f"visitor:{visit.id}", shares=places, visit=visit)
        if visit.first and self._now() < visit.issued + REPEAT_SECONDS:
            visit = replace(visit, repeats_as=address)
        if self.limits is not _NO_LIMITS:
            places = (Share(scope="visitor", id=visit.id, limits=self.limits), *places)
        return Caller(id=f"visitor:{visit.id}", shares=places, visit=visit)

    def is_stranger(self, scope: Scope) -> bool:  # noqa: ARG002 - see AcceptsStrangers
        """Return True: any program can be a visitor."""
        return True

    def visit_of(self, scope: Scope) -> Visit | None:
        """Return the visit of the request's token or cookie; None without a valid one. Renews an old cookie.

        Raises Unauthorized for a token that is not valid, because its client can get another one.
        """
        token = token_of(scope)
        if token:
            visit = self.ids.read(token, self._now())
            if visit is None:
                raise refused()
            return replace(visit, address=self.address(scope))
        visit = self.ids.read(self._cookie(scope), self._now())
        if visit is None:
            return None
        if self._now() - visit.issued > RENEW_SECONDS:
            self.set_cookie(scope, self.renewed(visit))
        return replace(visit, address=self.address(scope))

    def new(self, scope: Scope, counted_as: str = "") -> Visit:
        """Return a new visitor."""
        return replace(self.ids.new(self._now(), counted_as), address=self.address(scope))

    def renewed(self, visit: Visit) -> Visit:
        """Return the same visit, issued now."""
        now = int(self._now())
        return Visit(id=visit.id, issued=now, passed=visit.passed, passed_until=visit.passed_until)

    def token(self, visit: Visit) -> tuple[str, int]:
        """Return the token of a visit, and its end in Unix seconds."""
        return self.ids.sign(visit), visit.issued + LONGEST_AGE

    def address(self, scope: Scope) -> str:
        """Return the IP address of the request, as PeerAddress finds it."""
        return self._peers(scope).id

    def set_cookie(self, scope: Scope, visit: Visit) -> None:
        """Add the visit's cookie to the response."""
        headers: MutableSequence[tuple[bytes, bytes]] | None = scope.get(ANSWER_HEADERS)
        if headers is not None:
            headers.append((b"set-cookie", self._set(scope, visit)))

    def new_cookie(self, scope: Scope) -> bytes:
        """Return the value of Set-Cookie for a request without a valid cookie; empty for any other."""
        if self.ids.read(self._cookie(scope), self._now()) is not None:
            return b""
        return self._set(scope, self.new(scope))

    def _set(self, scope: Scope, visit: Visit) -> bytes:
        secure = self._is_https(scope)
        name, end = (SECURE_COOKIE, b"; Secure") if secure else (COOKIE, b"")
        value = self.ids.sign(visit).encode("ascii")
        return b"%b=%b; Max-Age=%d; Path=/; HttpOnly; SameSite=Lax%b" % (name, value, COOKIE_SECONDS, end)

    def _cookie(self, scope: Scope) -> str:
        """Return the cookie's value. Over https only the name counts that other hosts of the domain can't set."""
        wanted = SECURE_COOKIE if self._is_https(scope) else COOKIE
        for line in header_fields.values(scope, b"cookie"):
            for pair in line.split(b";") if len(line) <= _LONGEST_COOKIES else ():
                name, _, value = pair.partition(b"=")
                if name.strip(header_fields.BLANKS) == wanted:
                    return header_fields.text(value.strip(header_fields.BLANKS))
        return ""

    def _is_https(self, scope: Scope) -> bool:
        """Return whether the client's connection is encrypted, as far as a trusted proxy reports it."""
        if scope.get("scheme") == "https":
            return True
        if not self._peers.trusts(scope):
            return False
        reported = header_fields.value(scope, b"x-forwarded-proto") or b""
        return header_fields.word(reported.partition(b",")[0]) == b"https"

    def _shares(self, address: str) -> tuple[Share, ...]:
        shares = (
            Share(scope="address", id=address, limits=self.addresses),
            Share(scope="network", id=network_of(address), limits=self.networks),
        )
        return tuple(share for share in shares if share.limits != _NO_LIMITS)


class VisitorTokens:
    """The tokens of `visitors` as a way of their own, for servers that accept other credentials, too."""

    def __init__(self, visitors: Visitors) -> None:
        self._visitors = visitors

    def __call__(self, scope: Scope) -> Caller:
        if not token_of(scope):
            raise refused()
        return self._visitors(scope)

    def claims(self, credential: str) -> bool:
        """Return whether a credential begins like a visitor's token."""
        return credential.startswith(PREFIX)


def token_of(scope: Scope) -> str:
    """Return the request's credential if it begins like a visitor's token, valid or not; else an empty string."""
    for name, value in scope["headers"]:
        if name.lower() in (b"authorization", b"x-api-key") and PREFIX.encode() in value:
            text = header_fields.text(header_fields.trim(value))
            scheme, _, rest = text.partition(" ")
            if name.lower() == b"authorization" and scheme.lower() == "bearer":
                text = rest.strip(" ")
            return text if text.startswith(PREFIX) else ""
    return ""


def network_of(address: str) -> str:
    """Return the network of an address in PeerAddress's form: IPv4 /24, IPv6 /48. A name is returned unchanged."""
    try:
        found = ip_network(address)
    except ValueError:
        return address
    return str(found.supernet(new_prefix=48 if isinstance(found, IPv6Network) else 24))
