"""A streaming chat endpoint that you can put on the public internet with your own API key behind it.

The public names are in this module, `chat_nest.providers`, `chat_nest.dialects`, `chat_nest.stores.*`,
`chat_nest.metrics`, `chat_nest.traces`, `chat_nest.server.openapi` and `chat_nest.testing`. Every other module may
change.
"""

import logging

from chat_nest.asgi.create import create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.challenges.settings import Challenge
from chat_nest.core.deltas import (
    Batch,
    FinishDelta,
    ReasoningDelta,
    SignatureDelta,
    TextDelta,
    ToolCallDelta,
    UsageDelta,
)
from chat_nest.core.errors import ChatError, Forbidden, Unauthorized, UpstreamError
from chat_nest.core.limits import Limits, Share, Totals
from chat_nest.core.messages import Caller, ChatRequest, Message
from chat_nest.core.protocols import (
    Dialect,
    Encoder,
    Ending,
    FollowsSteps,
    Identify,
    Observer,
    Prompt,
    Provider,
    Report,
    Reported,
    RunLogs,
    Scope,
    Store,
)
from chat_nest.core.timeouts import Timeouts
from chat_nest.core.usage import Price, Usage
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.first_of import FirstOf
from chat_nest.identity.jwt import JsonWebTokens
from chat_nest.identity.peer import PeerAddress
from chat_nest.identity.sessions import Session, Sessions
from chat_nest.identity.trusted_header import TrustedHeader
from chat_nest.identity.visitors import Visitors, VisitorTokens
from chat_nest.limits.prices import price
from chat_nest.limits.spec import (
    BALANCED,
    CONSTRAINED,
    EXPANDED,
    Allowance,
    HardCaps,
    Profile,
    Queue,
    Rung,
    built_in_profiles,
)
from chat_nest.observers.log import LogObserver
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore

__version__ = "0.1.0"

# The application decides what is logged, and where: without a decision nothing goes to standard error.
logging.getLogger(__name__).addHandler(logging.NullHandler())

__all__ = [
    "BALANCED",
    "CONSTRAINED",
    "EXPANDED",
    "Allowance",
    "ApiKeys",
    "Batch",
    "Caller",
    "Challenge",
    "ChatError",
    "ChatHandler",
    "ChatRequest",
    "Dialect",
    "Encoder",
    "Ending",
    "FinishDelta",
    "FirstOf",
    "FollowsSteps",
    "Forbidden",
    "HardCaps",
    "Identify",
    "JsonWebTokens",
    "Limits",
    "LogObserver",
    "MemoryStore",
    "Message",
    "Observer",
    "OpenAIProvider",
    "PeerAddress",
    "Price",
    "Profile",
    "Prompt",
    "Provider",
    "Queue",
    "ReasoningDelta",
    "Report",
    "Reported",
    "RunLogs",
    "Rung",
    "SQLiteStore",
    "Scope",
    "Session",
    "Sessions",
    "Share",
    "SignatureDelta",
    "Store",
    "TextDelta",
    "Timeouts",
    "ToolCallDelta",
    "Totals",
    "TrustedHeader",
    "Unauthorized",
    "UpstreamError",
    "Usage",
    "UsageDelta",
    "VisitorTokens",
    "Visitors",
    "built_in_profiles",
    "create_chat_handler",
    "price",
]
