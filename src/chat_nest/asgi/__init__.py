"""The chat endpoint as an ASGI application that programs can embed."""
