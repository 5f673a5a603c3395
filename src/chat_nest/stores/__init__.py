"""Stores of counters: one contract, several engines."""
