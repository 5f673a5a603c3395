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

try:
    file, secret = os.environ["CHAT_NEST_IDENTITY_KEYS_FILE"], os.environ["CHAT_NEST_IDENTITY_SECRET"]
except KeyError as missing:
    sys.exit(f"Set {missing.args[0]} first, and make a key: the top of this file has the commands")
keys = ApiKeys(file, secret)
app = create_chat_handler(identify=keys)
