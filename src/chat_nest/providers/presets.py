"""Presets of the servers with OpenAI's wire format, as data: URL, how each takes its key, how it differs from others.

The presets of the other wire formats stand with their codecs, and `chat_nest.providers.PRESETS` has them all: `kind` in
the config file is a name there. The file is long because it is one table. Each fact has its source beside it, and one
without a source keeps its default. The table in docs/providers.md is printed from PRESETS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from chat_nest.providers.think_tags import ThinkTags

Known = Literal["yes", "no", "unknown"]
LimitField = Literal["by model", "max_tokens", "max_completion_tokens"]

EVENT_STREAM: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"
NO_SIGNATURE: Final = "skip_thought_signature_validator"
"""Gemini 3 accepts this in place of the signature of an earlier call."""


class Preset(Struct, frozen=True, kw_only=True):
    wire: str = "openai"
    """The name of its wire format in PROVIDERS."""
    base_url: str = ""
    """Empty if only the operator knows it. Paths begin where it ends."""
    url_form: str = ""
    """The form of a URL that only the operator knows. The variable of that name replaces a part in braces."""
    hosts: str = ""
    """A regular expression of the hosts that get the key from `key_env`. Empty is `base_url`'s, or all without one."""
    hosted: bool = True
    """A vendor's service, which needs a key and bills; else a server that the operator runs."""
    imitated: bool = False
    """Public model servers have this vendor's API, too: one on this machine may be such a server."""
    proxy: bool = False
    """Passes requests on to providers that bill, so its answers are not free on this machine either."""
    cloud: Literal["", "aws", "google"] = ""
    """The cloud of the credentials that it also takes; see `providers.credentials`."""
    key_env: str = ""
    """The variable in which this vendor's users keep their key."""
    key_header: str = "authorization"
    key_prefix: str = "Bearer "
    headers: Mapping[str, str] = {}
    """Headers of every request besides the key."""
    media_type: str = EVENT_STREAM
    check_path: str = "/models"
    """A GET that costs nothing, and that needs the key if one is needed."""
    lists_models: bool = True
    """Whether the answer at `check_path` lists every name that a request may have as its model."""
    abort_bills: Literal["stops", "full", "unknown"] = "unknown"
    """What an abandoned answer costs; see Provider. Applies to `base_url`'s own host, and if not `hosted`."""
    abort_source: str = ""
    """The page that documents it; for `unknown` the nearest there is."""
    model: str = ""
    """The model if the operator gave only the key; empty if the vendor's pages name none that stays."""
    reasoning: str = ""
    """The place of thoughts in a stream, for the documentation: the codec reads every field. Empty is unknown."""
    think_tags: ThinkTags = "off"
    """Whether the text may begin with thoughts between tags; see `providers.think_tags`."""
    think_tag: str = "think"
    images: Known = "unknown"
    """Whether some models take images. With `no` none is sent."""
    files: bool = False
    """Takes PDF files."""

    # OpenAI's wire format only.
    stream_options: bool = True
    """Understands `stream_options.include_usage`. A server without it sends its usage anyway, or none."""
    running_usage: bool = False
    """Understands `stream_options.continuous_usage_stats`, for an exact count up to the time when a reader left."""
    limit_field: LimitField = "by model"
    """The limit of output: one field, or `max_completion_tokens` for OpenAI's newer models, else `max_tokens`."""
    json_schema: Known = "unknown"
    """Takes `response_format` with a `json_schema`. A request for one is refused if the server does not take it."""
    seed_field: str = "seed"
    top_k: bool = False
    """Takes `top_k`, which OpenAI does not have."""
    reasoning_effort: Literal["reasoning models", "all models", "none"] = "none"
    """The models that take `reasoning_effort`; others refuse the request."""
    calls_need: Literal["", "thoughts", "signatures"] = ""
    """What the vendor's thinking models refuse an earlier call without: `reasoning_content`, or Google's signature."""
    deployments: bool = False
    """Azure's URLs: a deployment instead of a model, and `api-version`."""


OPENAI = Preset(
    imitated=True,
    base_url="https://api.openai.com/v1",
    key_env="OPENAI_API_KEY",
    abort_bills="stops",
    reasoning="hidden",
    json_schema="yes",
    images="yes",
    files=True,
    reasoning_effort="reasoning models",
)

OPENROUTER_LIST: Final = "https://openrouter.ai/docs/api-reference/streaming"
"""The router's list of providers that stop an abandoned answer and its billing. Vendors' pages do not mention it."""

OPENAI_COMPATIBLE: Final[Mapping[str, Preset]] = {
    "ollama_v1": Preset(
        think_tags="on",
        base_url="http://localhost:11434/v1",
        hosted=False,
        key_env="OLLAMA_API_KEY",
        abort_bills="stops",
        limit_field="max_tokens",
    ),
    "vllm": Preset(
        think_tags="on",
        base_url="http://localhost:8000/v1",
        hosted=False,
        key_env="VLLM_API_KEY",
        abort_bills="stops",
        abort_source="https://github.com/vllm-project/vllm/pull/32442",
        running_usage=True,
        limit_field="max_tokens",
        reasoning="reasoning_content",  # https://docs.vllm.ai/en/v0.7.2/features/reasoning_outputs.html
        top_k=True,
        reasoning_effort="all models",
    ),
    "llamacpp": Preset(
        think_tags="on",
        base_url="http://localhost:8080/v1",
        lists_models=False,  # it accepts any name
        hosted=False,
        key_env="LLAMA_API_KEY",
        abort_bills="stops",
        limit_field="max_tokens",
        top_k=True,
    ),
    # Facts of LM Studio without a page of their own: https://lmstudio.ai/docs/developer/openai-compat/chat-completions
    "lmstudio": Preset(
        think_tags="on",
        base_url="http://localhost:1234/v1",  # https://lmstudio.ai/docs/developer
        hosted=False,
        key_env="LM_API_TOKEN",  # https://lmstudio.ai/docs/developer/anthropic-compat
        abort_bills="stops",
        abort_source="https://github.com/lmstudio-ai/.github/issues/10",
        limit_field="max_tokens",
        json_schema="yes",  # https://lmstudio.ai/docs/developer
        images="yes",  # https://lmstudio.ai/docs/api/openai-api
        top_k=True,
    ),
    # https://github.com/sgl-project/sglang/blob/main/python/sglang/srt/entrypoints/openai/protocol.py
    "sglang": Preset(
        think_tags="on",
        base_url="http://localhost:30000/v1",  # https://docs.sglang.io/docs/basic_usage/send_request
        hosted=False,
        key_env="SGLANG_API_KEY",  # our name for what is given to its --api-key
        abort_bills="stops",
        abort_source="https://github.com/sgl-project/sglang/pull/457",
        running_usage=True,
        limit_field="max_tokens",
        reasoning="reasoning_content",
        json_schema="yes",
        images="yes",
        top_k=True,
    ),
    "jan": Preset(
        think_tags="on",
        base_url="http://localhost:1337/v1",  # https://jan.ai/docs/local-api
        hosted=False,
        key_env="JAN_API_KEY",  # our name for the key of its settings
        abort_bills="stops",
        abort_source="https://www.mintlify.com/janhq/jan/features/api-server",
        limit_field="max_tokens",
        top_k=True,
    ),
    "tgi": Preset(
        think_tags="on",
        base_url="http://localhost:8080/v1",  # the port that its container is published at, `-p 8080:80`
        lists_models=False,  # it accepts any name
        hosted=False,
        key_env="TGI_API_KEY",  # our name for what is given to its --api-key
        abort_bills="stops",
        abort_source="https://github.com/huggingface/text-generation-inference/issues/495",
        limit_field="max_tokens",
    ),
    # No page confirms that an abandoned answer stops: on another machine than this one the whole hold is charged.
    "localai": Preset(
        think_tags="on",
        base_url="http://localhost:8080/v1",  # https://promptfoo.dev/docs/providers/localai
        hosted=False,
        key_env="LOCALAI_API_KEY",  # our name for its API_KEY, which is too general
        abort_source="https://github.com/mudler/LocalAI/issues/974",
        limit_field="max_tokens",
        top_k=True,
    ),
    # The cost of an abandoned answer depends on the provider, and on whether the proxy cancels the request there.
    "litellm": Preset(
        base_url="http://localhost:4000/v1",  # https://docs.litellm.ai/docs/proxy_server
        hosted=False,
        proxy=True,
        key_env="LITELLM_PROXY_API_KEY",  # the name that its own client reads
        abort_source="https://github.com/BerriAI/litellm/pull/30223",
    ),
    # Its profiles decide whether an answer outlives its reader; its providers decide what that costs.
    "chat_nest": Preset(
        url_form="https://NEST.example.com/v1",
        hosted=False,
        proxy=True,
        key_env="OTHER_CHAT_NEST_API_KEY",
        abort_source="runs.md",
        reasoning="reasoning_content",
        files=True,
    ),
    "groq": Preset(
        base_url="https://api.groq.com/openai/v1",
        key_env="GROQ_API_KEY",
        abort_source=OPENROUTER_LIST,
        limit_field="max_tokens",
    ),
    # The cost of an abandoned answer depends on the provider that the router chose.
    "openrouter": Preset(
        base_url="https://openrouter.ai/api/v1",
        key_env="OPENROUTER_API_KEY",
        check_path="/key",
        lists_models=False,
        abort_source=OPENROUTER_LIST,
        reasoning="reasoning",  # https://openrouter.ai/docs/use-cases/reasoning-tokens
        files=True,  # https://openrouter.ai/docs/guides/overview/multimodal/pdfs
        top_k=True,
        reasoning_effort="all models",
    ),
    # Refuses every unknown field with 422, and always sends its usage.
    "mistral": Preset(
        base_url="https://api.mistral.ai/v1",
        key_env="MISTRAL_API_KEY",
        abort_source=OPENROUTER_LIST,
        stream_options=False,
        limit_field="max_tokens",
        seed_field="random_seed",
    ),
    "azure": Preset(
        url_form="https://NAME.openai.azure.com",
        key_env="AZURE_OPENAI_API_KEY",
        key_header="api-key",
        key_prefix="",
        check_path="/openai/models",
        lists_models=False,  # a request names a deployment
        abort_source=OPENROUTER_LIST,
        deployments=True,
        reasoning="hidden",
        json_schema="yes",
        images="yes",
        files=True,
        reasoning_effort="reasoning models",
    ),
    "deepseek": Preset(
        base_url="https://api.deepseek.com",  # https://api-docs.deepseek.com/guides/reasoning_model
        key_env="DEEPSEEK_API_KEY",
        abort_source=OPENROUTER_LIST,
        limit_field="max_tokens",  # https://api-docs.deepseek.com/guides/reasoning_model
        reasoning="reasoning_content",  # the same
        json_schema="no",  # https://api-docs.deepseek.com/guides/json_mode
        calls_need="thoughts",  # https://api-docs.deepseek.com/guides/thinking_mode
    ),
    # Facts of xAI without another source: https://docs.apiyi.com/en/api-capabilities/grok/chat (measured in July 2026)
    "xai": Preset(
        base_url="https://api.x.ai/v1",  # https://docs.pipecat.ai/server/services/llm/grok, as the key's variable
        key_env="XAI_API_KEY",
        abort_source=OPENROUTER_LIST,
        limit_field="max_completion_tokens",  # https://hexdocs.pm/req_llm/xai.html
        reasoning="reasoning_content",
        json_schema="yes",
        images="yes",
    ),
    "together": Preset(
        base_url="https://api.together.xyz/v1",  # https://github.com/togethercomputer/openapi/blob/main/openapi.yaml
        key_env="TOGETHER_API_KEY",
        abort_source=OPENROUTER_LIST,
        limit_field="max_tokens",
        model="openai/gpt-oss-20b",  # https://docs.together.ai/docs/inference/chat/reasoning
        reasoning="reasoning",  # the same
    ),
    "fireworks": Preset(
        base_url="https://api.fireworks.ai/inference/v1",  # https://asyncapi.apis.io/asyncapis/fireworks-ai/
        lists_models=False,  # models that are deployed on demand are not in it
        key_env="FIREWORKS_API_KEY",
        abort_source=OPENROUTER_LIST,
        limit_field="max_tokens",
        reasoning="reasoning_content",  # https://docs.getbifrost.ai/providers/supported-providers/fireworks
    ),
    "moonshot": Preset(
        base_url="https://api.moonshot.ai/v1",  # https://ai-sdk.dev/providers/ai-sdk-providers/moonshotai
        key_env="MOONSHOT_API_KEY",  # https://platform.kimi.ai/docs/api/chat
        limit_field="max_completion_tokens",  # the same: max_tokens is deprecated
        model="kimi-k2.5",  # the same
        reasoning="reasoning_content",  # https://www.lava.so/docs/reference/providers/moonshot
        images="yes",  # https://platform.kimi.ai/docs/api/chat
        calls_need="thoughts",  # https://platform.kimi.ai/docs/guide/use-kimi-k2-thinking-model
    ),
    "qwen": Preset(
        base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",  # .../help/doc-detail/2833609.html
        key_env="DASHSCOPE_API_KEY",  # https://www.alibabacloud.com/help/en/model-studio/deep-thinking
        lists_models=False,
        abort_source=OPENROUTER_LIST,
        limit_field="max_tokens",
        model="qwen-plus",  # the same page, as for stream_options
        reasoning="reasoning_content",  # the same
    ),
    "zai": Preset(
        base_url="https://api.z.ai/api/paas/v4",  # https://docs.z.ai/guides/capabilities/streaming
        key_env="ZAI_API_KEY",  # https://ai-sdk.dev/providers/ai-sdk-providers/zai
        lists_models=False,
        stream_options=False,  # the same: the last event has the usage
        limit_field="max_tokens",
        model="glm-4.7",  # the same
        reasoning="reasoning_content",  # the same
        json_schema="no",  # https://docs.z.ai/guides/capabilities/struct-output
        images="yes",  # https://docs.z.ai/api-reference/llm/chat-completion
    ),
    "cerebras": Preset(
        base_url="https://api.cerebras.ai/v1",  # https://flo2.com/blog/cerebras-openai-compatible-api
        key_env="CEREBRAS_API_KEY",  # https://inference-docs.cerebras.ai/capabilities/streaming
        limit_field="max_completion_tokens",  # https://inference-docs.cerebras.ai/capabilities/reasoning
        model="gpt-oss-120b",  # https://inference-docs.cerebras.ai/capabilities/streaming
        reasoning="reasoning",  # https://inference-docs.cerebras.ai/capabilities/reasoning
        json_schema="yes",  # https://inference-docs.cerebras.ai/capabilities/structured-outputs
    ),
    # It also bills a fee for each request, by the size of its search: https://docs.perplexity.ai/guides/pricing
    "perplexity": Preset(
        base_url="https://api.perplexity.ai",
        key_env="PERPLEXITY_API_KEY",
        lists_models=False,
        abort_source=OPENROUTER_LIST,
        stream_options=False,  # https://docs.perplexity.ai/docs/sonar/features: the last events have the usage
        limit_field="max_tokens",
        model="sonar",  # the same
        reasoning="`<think>` in the text",
        think_tags="on",  # https://docs.perplexity.ai/faq/faq
        json_schema="yes",  # https://docs.perplexity.ai/docs/sonar/features
    ),
    # https://docs.aws.amazon.com/bedrock/latest/userguide/inference-chat-completions.html
    "bedrock": Preset(
        url_form="https://bedrock-runtime.{AWS_REGION}.amazonaws.com/openai/v1",
        hosts=r"bedrock-runtime\.[a-z0-9-]+\.amazonaws\.com|bedrock-mantle\.[a-z0-9-]+\.api\.aws",
        key_env="AWS_BEARER_TOKEN_BEDROCK",
        cloud="aws",
        lists_models=False,
        abort_source="https://github.com/BerriAI/litellm/pull/36008",
        limit_field="max_completion_tokens",  # .../userguide/model-parameters-openai.html
        model="openai.gpt-oss-20b-1:0",  # the same
        reasoning="`<reasoning>` in the text",  # https://github.com/promptfoo/promptfoo/pull/9587
        think_tags="on",
        think_tag="reasoning",
        images="no",  # the same, of OpenAI's open models
    ),
    # https://cloud.google.com/vertex-ai/generative-ai/docs/migrate/openai/overview
    "vertex": Preset(
        url_form="https://LOCATION-aiplatform.googleapis.com/v1/projects/PROJECT/locations/LOCATION/endpoints/openapi",
        hosts=r"(?:[a-z0-9-]+-)?aiplatform\.googleapis\.com",
        cloud="google",
        key_env="VERTEX_ACCESS_TOKEN",  # our name for the output of `gcloud auth print-access-token`, valid for an hour
        lists_models=False,
        abort_source=OPENROUTER_LIST,
        limit_field="max_tokens",
        images="yes",
        calls_need="signatures",  # https://docs.cloud.google.com/vertex-ai/generative-ai/docs/thought-signatures
    ),
}
