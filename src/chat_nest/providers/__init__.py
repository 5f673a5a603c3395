"""One file a provider, each a sans-IO codec; http.py holds the one client session."""
