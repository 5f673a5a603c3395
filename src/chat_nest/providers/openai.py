"""Providers that speak OpenAI's chat completions API: OpenAI, Azure, llama.cpp, vLLM, Groq, OpenRouter and others.

What bytes mean is in openai_codec.py; where the servers differ, as data, in presets.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from urllib.parse import quote

from msgspec.structs import replace

from chat_nest.deltas import Batch
from chat_nest.limits import Timeouts
from chat_nest.protocols import Prompt
from chat_nest.providers.openai_codec import openai_codec, request_body
from chat_nest.providers.presets import OPENAI, Preset
from chat_nest.providers.stream import ModelServer

AZURE_API_VERSION = "2024-10-21"


class OpenAIProvider:
    """An OpenAI-compatible server. `base_url` ends where `/chat/completions` begins.

    `preset` is one of `presets.PRESETS` whose `wire` is "openai"; its `base_url` is used where none is given. For
    Azure `base_url` is the resource's (https://NAME.openai.azure.com), the model is the deployment's name, and
    `api_version` a version of its API. The rest is as for ModelServer. Raises ValueError, which names the argument and
    never holds its value.
    """

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        preset: Preset = OPENAI,
        api_version: str = AZURE_API_VERSION,
        abort_bills: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._preset = preset
        self._query = ""
        if preset.deployments:
            self._query = f"?api-version={quote(api_version, safe='')}"
            preset = replace(preset, check_path=preset.check_path + self._query)
        self._server = ModelServer(preset, api_key, base_url, abort_bills=abort_bills, headers=headers)
        self.base_url = self._server.base_url
        self.abort_bills = self._server.abort_bills
        self.check = self._server.check
        self.aclose = self._server.aclose

    def __repr__(self) -> str:
        return f"OpenAIProvider({self.base_url!r})"

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Only `timeouts.connect` is kept here; the others are for the caller, who cancels."""
        path = "/chat/completions"
        if self._preset.deployments:
            path = f"/openai/deployments/{quote(prompt.model, safe='')}{path}{self._query}"
        return self._server.open(path, request_body(prompt, self._preset), openai_codec(), timeouts)
