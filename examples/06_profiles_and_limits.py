"""Your own profiles, limits for everybody together, and budgets that survive a restart.

Run it with `uvicorn 06_profiles_and_limits:app --workers 2`: both workers share the file, and with it the budgets.
"""

from __future__ import annotations

import os

from chat_nest import Limits, Profile, create_chat_handler

app = create_chat_handler(
    profiles={
        # The default profile: a caller gets it unless the request names another one that is open.
        "balanced": Profile(
            model="openai:gpt-4o-mini",
            max_output_tokens=300,
            tokens_per_day=20_000,
            requests_per_minute=6,
            concurrent_streams=2,
        ),
        # A client asks for it with "profile": "short". Without open=True no client may choose it.
        "short": Profile(
            open=True,
            model="openai:gpt-4o-mini",
            fallbacks=("openai:gpt-4.1-nano",),
            max_output_tokens=60,
            tokens_per_day=20_000,
        ),
    },
    # All callers together never spend more than this, whoever asks and however many of them.
    limits=Limits(tokens_per_day=1_000_000, concurrent_streams=200),
    store=f"sqlite:///{os.environ.get('CHAT_DB', 'chat.db')}",
    time_zone="Europe/Berlin",  # where a day begins at midnight
)
