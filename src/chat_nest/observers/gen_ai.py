"""OpenTelemetry's names for calls of a model, in one place.

The GenAI conventions are in the state "Development": names still change. Metrics and traces take them from here.
Source: the repository semantic-conventions-genai, docs/gen-ai, as of November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DURATION: Final = "gen_ai.client.operation.duration"
FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"
PER_CHUNK: Final = "gen_ai.client.operation.time_per_output_chunk"
TOKENS: Final = "gen_ai.client.token.usage"

OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - a kind of token, not a secret
FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHED_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
ERROR_TYPE: Final = "error.type"

CHAT: Final = "chat"
INPUT, OUTPUT = "input", "output"

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_CHUNK_SECONDS: Final = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
PER_CHUNK_SECONDS: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKEN_COUNTS: Final = tuple(4**power for power in range(14))

_PROVIDERS: Final[Mapping[str, str]] = {
    "openai": "openai",
    "responses": "openai",
    "azure": "azure.ai.openai",
    "anthropic": "anthropic",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "mistral": "mistral_ai",
    "groq": "groq",
    "deepseek": "deepseek",
    "perplexity": "perplexity",
    "xai": "x_ai",
    "cohere": "cohere",
    "moonshot": "moonshot_ai",
}
"""The well-known values of `gen_ai.provider.name`, by the kind of a provider or by the first word of it."""


def provider_name(kind: str) -> str:
    """Return OpenTelemetry's name for a kind of provider, such as `aws.bedrock`; the kind itself if it has none."""
    return _PROVIDERS.get(kind) or _PROVIDERS.get(kind.replace("_", "-").partition("-")[0]) or kind


def prometheus_name(name: str, unit: str = "") -> str:
    """Return a name as OpenTelemetry writes it for Prometheus: `gen_ai_client_operation_duration_seconds`."""
    written = name.replace(".", "_")
    return f"{written}_{unit}" if unit else written
