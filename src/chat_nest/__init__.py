"""The streaming chat endpoint that you can put on the public internet with your own API key behind it."""

from chat_nest.asgi.create import create_chat_handler
from chat_nest.asgi.handler import ChatHandler
from chat_nest.errors import ChatError, Forbidden, Unauthorized
from chat_nest.identity.api_keys import ApiKeys
from chat_nest.identity.jwt import JsonWebTokens
from chat_nest.identity.peer import PeerAddress
from chat_nest.limits import BALANCED, CONSTRAINED, EXPANDED, Allowance, HardCaps, Limits, Profile, Timeouts
from chat_nest.messages import Caller
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.stores.memory import MemoryStore
from chat_nest.stores.sqlite import SQLiteStore

__version__ = "0.1.0"

__all__ = [
    "BALANCED",
    "CONSTRAINED",
    "EXPANDED",
    "Allowance",
    "ApiKeys",
    "Caller",
    "ChatError",
    "ChatHandler",
    "Forbidden",
    "HardCaps",
    "JsonWebTokens",
    "Limits",
    "MemoryStore",
    "OpenAIProvider",
    "PeerAddress",
    "Profile",
    "SQLiteStore",
    "Timeouts",
    "Unauthorized",
    "create_chat_handler",
]
