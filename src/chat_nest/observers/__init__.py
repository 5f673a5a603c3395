"""Observers of requests: at most four calls each, never one a token."""
