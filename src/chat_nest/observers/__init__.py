"""Who is told about a request: at most four calls each, never one a token."""
