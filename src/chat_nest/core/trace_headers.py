"""The trace header of the request that is being answered, for the call of its provider (W3C Trace Context)."""

from __future__ import annotations

from contextvars import ContextVar

TRACEPARENT: ContextVar[str] = ContextVar("chat_nest_traceparent", default="")
"""The value of `traceparent` for requests to a provider in this context; empty: none is sent."""
