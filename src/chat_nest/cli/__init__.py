"""The command line `chat-nest`."""
