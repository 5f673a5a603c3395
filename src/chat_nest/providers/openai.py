"""Providers with OpenAI's chat completions API: OpenAI, Azure, llama.cpp, vLLM, Groq, OpenRouter and others.

openai_codec.py has the format, presets.py the differences between servers, as data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import quote

from msgspec.structs import replace

from chat_nest.core.deltas import Batch
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.providers.openai_codec import lacks, openai_codec, request_body, takes
from chat_nest.providers.presets import OPENAI, Preset
from chat_nest.providers.stream import ModelServer, codec_for

AZURE_API_VERSION = "2024-10-21"


class OpenAIProvider:
    """An OpenAI-compatible server. `base_url` ends where `/chat/completions` begins.

    `preset` is one of `presets.PRESETS` whose `wire` is "openai"; its `base_url` is the default. For Azure `base_url`
    is the resource's (https://NAME.openai.azure.com), the model is the deployment's name, and `api_version` a version
    of its API. For the other arguments see ModelServer. Raises ValueError, which names the argument and never holds its
    value.
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
        api_keys: Sequence[str] = (),
        api_keys_file: str | Path | None = None,
        credentials: str | None = None,
        think_tags: str | None = None,
    ) -> None:
        self._preset = preset
        self._query = ""
        if preset.deployments:
            self._query = f"?api-version={quote(api_version, safe='')}"
            preset = replace(preset, check_path=preset.check_path + self._query)
        self._server = ModelServer(
            preset,
            api_key,
            base_url,
            abort_bills=abort_bills,
            headers=headers,
            api_keys=api_keys,
            api_keys_file=api_keys_file,
            credentials=credentials,
            think_tags=think_tags,
        )
        self.base_url = self._server.base_url
        self.abort_bills = self._server.abort_bills
        self.key_in_clear = self._server.key_in_clear
        self.check = self._server.check
        self.key_rests = self._server.key_rests
        self.aclose = self._server.aclose

    def __repr__(self) -> str:
        return f"OpenAIProvider({self.base_url!r})"

    def lacks(self, prompt: Prompt) -> Sequence[str]:
        """See Provider."""
        return lacks(prompt, self._preset)

    def takes(self, model: str) -> frozenset[str]:
        """See Provider."""
        return takes(model, self._preset)

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Applies only `timeouts.connect`; the caller applies the others, by cancelling."""
        path = "/chat/completions"
        if self._preset.deployments:
            path = f"/openai/deployments/{quote(prompt.model, safe='')}{path}{self._query}"
        return self._server.open(
            prompt.model, path, request_body(prompt, self._preset), codec_for(openai_codec, prompt), timeouts
        )
