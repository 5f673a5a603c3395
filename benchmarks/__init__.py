"""What the relay costs beside a proxy that only copies bytes: `python -m benchmarks` (docs/performance.md)."""
