"""The operators' listener: metrics, and what operators see and do over HTTP."""
