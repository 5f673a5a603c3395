"""Runs: answers kept in memory, on the disk or in Redis for readers who reconnect."""
