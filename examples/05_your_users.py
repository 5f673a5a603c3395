"""Who is asking, by your own login: `uvicorn 05_your_users:app`.

Without `identify`, callers are told apart by their network address. Here each user has an account of their own, and
their plan is the profile that nothing in a request can raise. Someone who is not logged in gets 401.

    curl -N localhost:8000/api/chat -H 'cookie: session=ada' -H 'content-type: application/json' \
      -d '{"messages":[{"role":"user","content":"Hello!"}]}'
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie

from chat_nest import Caller, Scope, Unauthorized, create_chat_handler

SESSIONS = {  # yours are random and stand in a database: `identify` may be an async function
    "ada": Caller(id="user-1", profile="expanded"),
    "bob": Caller(id="user-2", profile="constrained"),
}


def identify(scope: Scope) -> Caller:
    """The user behind the session cookie."""
    headers = dict(scope["headers"])
    try:
        session = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get("session")
    except CookieError:
        session = None
    caller = SESSIONS.get(session.value) if session else None
    if caller is None:
        raise Unauthorized("Please log in")
    return caller


# No other site's pages may use the cookie, so no other origin is let in.
app = create_chat_handler(identify=identify, origins=())
