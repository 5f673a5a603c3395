"""Providers with OpenAI's chat completions API: OpenAI, Azure, llama.cpp, vLLM, Groq, OpenRouter and others.

openai_codec.py has the format, presets.py the differences between servers, as data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Unpack
from urllib.parse import quote, urlsplit

from msgspec.structs import replace

from chat_nest.core.deltas import Batch
from chat_nest.core.protocols import Prompt
from chat_nest.core.timeouts import Timeouts
from chat_nest.providers.model_server import ModelServer, ServerArguments
from chat_nest.providers.openai_codec import lacks, openai_codec, request_body, takes
from chat_nest.providers.presets import OPENAI, Preset

AZURE_API_VERSION = "2024-10-21"
GOOGLE = "generativelanguage.googleapis.com"
"""The host of Gemini's API, which also speaks OpenAI's format."""


class OpenAIProvider(ModelServer):
    """An OpenAI-compatible server. `base_url` ends where `/chat/completions` begins.

    `preset` is one of `presets.PRESETS` whose `wire` is "openai"; its `base_url` is the default. For Azure `base_url`
    is the resource's (https://NAME.openai.azure.com), the model is the deployment's name, and `api_version` a version
    of its API. For the other arguments see ModelServer. Raises ValueError, which names the argument and never holds its
    value.
    """

    preset = OPENAI

    def __init__(
        self,
        api_key: str | None = None,
        base_url: str | None = None,
        *,
        preset: Preset = OPENAI,
        api_version: str = AZURE_API_VERSION,
        **given: Unpack[ServerArguments],
    ) -> None:
        self._query = ""
        if preset.deployments:
            self._query = f"?api-version={quote(api_version, safe='')}"
            preset = replace(preset, check_path=preset.check_path + self._query)
        self.preset = preset
        super().__init__(api_key, base_url, **given)
        if urlsplit(self.base_url).hostname == GOOGLE:
            self.preset = replace(preset, calls_need="signatures")

    def lacks(self, prompt: Prompt) -> Sequence[str]:
        """See Provider."""
        return lacks(prompt, self.preset)

    def takes(self, model: str) -> frozenset[str]:
        """See Provider."""
        return takes(model, self.preset)

    def open(self, prompt: Prompt, timeouts: Timeouts) -> AbstractAsyncContextManager[AsyncIterator[Batch]]:
        """See Provider. Applies only `timeouts.connect`; the caller applies the others, by cancelling."""
        path = "/chat/completions"
        if self.preset.deployments:
            path = f"/openai/deployments/{quote(prompt.model, safe='')}{path}{self._query}"
        return self._ask(prompt, path, request_body(prompt, self.preset), openai_codec, timeouts)
