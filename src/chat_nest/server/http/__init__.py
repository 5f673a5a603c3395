"""The HTTP/1.1 server of `chat-nest serve`: an ASGI 3 server on llhttp (httptools).

General-purpose servers can't reset a connection, send a piece without waking a task, or limit the time of a client for
a head, a body or a response. `docs/dependencies.md` compares them.
"""
