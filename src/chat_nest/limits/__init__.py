"""Limits of a caller: profiles, windows, rates, prices, and the texts of a refusal."""
