"""Model providers, one file each, with a sans-IO codec. http.py holds the only HTTP session."""

from chat_nest.providers.anthropic import AnthropicProvider
from chat_nest.providers.demo import DemoProvider
from chat_nest.providers.gemini import GeminiProvider
from chat_nest.providers.ollama import OllamaProvider
from chat_nest.providers.openai import OpenAIProvider
from chat_nest.providers.responses import ResponsesProvider

__all__ = [
    "AnthropicProvider",
    "DemoProvider",
    "GeminiProvider",
    "OllamaProvider",
    "OpenAIProvider",
    "ResponsesProvider",
]
