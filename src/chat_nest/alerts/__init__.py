"""Alerts to operators: by webhook and by e-mail, each once for the whole fleet."""
