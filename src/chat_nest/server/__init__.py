"""What `chat-nest serve` adds around the handler."""
