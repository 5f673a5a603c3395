"""The embeddable ASGI application."""
