"""The server of `chat-nest serve`, around the handler."""
