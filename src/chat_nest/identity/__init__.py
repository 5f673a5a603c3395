"""Identification of callers: by IP address, API key, JSON Web Token or a proxy's header."""
