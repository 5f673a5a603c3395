"""The smallest app: a chat endpoint in front of OpenAI, with limits for each caller.

Run it with a key, and ask it:

    python -m pip install '/path/to/checkout[server]'
    export OPENAI_API_KEY=...
    python 01_smallest.py
    curl -N localhost:8000/api/chat -H 'content-type: application/json' \
      -d '{"messages":[{"role":"user","content":"Hello!"}]}'
    curl localhost:8000/api/usage        # what this caller may still spend

The provider is the one at OPENAI_BASE_URL where that is set: any server that speaks OpenAI's chat completions.
"""

from __future__ import annotations

import uvicorn

from chat_nest import create_chat_handler

app = create_chat_handler()

if __name__ == "__main__":
    uvicorn.run(app)
