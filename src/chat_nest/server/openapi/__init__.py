"""The OpenAPI document at /openapi.json: requests and responses of each path."""

from chat_nest.server.openapi.paths import add_chat, document

__all__ = ["add_chat", "document"]
