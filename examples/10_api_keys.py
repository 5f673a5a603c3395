"""Only who holds a key may ask: `uvicorn 10_api_keys:app`.

Keys are made, listed and revoked by `chat-nest keys`; the file has only their hashes.

    export CHAT_NEST_IDENTITY_KEYS_FILE=keys.json
    export CHAT_NEST_IDENTITY_SECRET=$(openssl rand -hex 32)
    chat-nest keys create ada > ada.key
    curl -N localhost:8000/api/chat -H "authorization: Bearer $(cat ada.key)" -H 'content-type: application/json' \
      -d '{"messages":[{"role":"user","content":"Hello!"}]}'
"""

from __future__ import annotations

import os
import sys

from chat_nest import ApiKeys, create_chat_handler


def setting(name: str) -> str:
    """The variable's value; without one the program ends with a sentence."""
    value = os.environ.get(name)
    if not value:
        sys.exit(f"{name} is not set: export it, as the beginning of {__file__} shows")
    return value


keys = ApiKeys(setting("CHAT_NEST_IDENTITY_KEYS_FILE"), setting("CHAT_NEST_IDENTITY_SECRET"))
app = create_chat_handler(identify=keys)
