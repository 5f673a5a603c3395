"""The output of `chat-nest caller`: the two names of one caller."""

from __future__ import annotations

import re
from ipaddress import ip_address

from chat_nest.observers.log import log_name
from chat_nest.server.config.caller_names import caller_of, caller_secret, secret_path
from chat_nest.server.config.settings import Config

USAGE_NAME = re.compile(r"[0-9a-f]{16}")
ID = re.compile(r"(user|key|jwt):.+", re.DOTALL)
NO_ID = (
    "WHO must be an IP address, 16 hex digits of `chat-nest usage`, or a name with its kind: user:ada for the name "
    "in caller_header, key:ada for the caller of an API key, jwt:ada for the subject of a token"
)


def is_id(who: str) -> bool:
    """Return whether `who` can identify a caller. A plain name can't."""
    who = who.strip()
    if USAGE_NAME.fullmatch(who) or ID.fullmatch(who):
        return True
    try:
        ip_address(who)
    except ValueError:
        return False
    return True


def names(config: Config, who: str) -> str:
    """Return the name in the log, then the name in usage and the store, a line each. Raises OSError."""
    key = who if USAGE_NAME.fullmatch(who) else caller_of(who.strip()).key
    forgets = not config.server.caller_secret and secret_path(config) is None
    name = f"{log_name(caller_secret(config), key)} in the log"
    if forgets:
        name = "(memory:// keeps no secret, so the log has new names after each start: set server.caller_secret)"
    return f"{name}\n{key} in usage and the store"
