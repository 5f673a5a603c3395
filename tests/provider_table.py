"""The table of docs/providers.md, printed from the presets: `.venv/bin/python tests/provider_table.py`."""

from __future__ import annotations

from chat_nest.providers import PRESETS
from chat_nest.providers.presets import Preset

HEAD = """\
| `kind` | `base_url` | key | usual model | limit on output | usage in a stream | reasoning | JSON schema | images | abandoned answers |
|---|---|---|---|---|---|---|---|---|---|
"""
FORMATS = {
    "anthropic": "Anthropic's Messages",
    "responses": "OpenAI's Responses",
    "gemini": "Gemini's streamGenerateContent",
    "ollama": "Ollama's `/api/chat`",
}
DEMO = "| `demo` | [a small model](demo.md) on this machine | | | | | | | | stops |\n"


def table() -> str:
    """Return the table in Markdown, with a row for each preset."""
    return HEAD + "".join(_row(kind, preset) for kind, preset in PRESETS.items()) + DEMO


def _row(kind: str, preset: Preset) -> str:
    if preset.wire == "openai":
        usage = "on request" if preset.stream_options else "always"
        usage += ", in every event" if preset.running_usage else ""
        reasoning = preset.reasoning or "unknown"
        reasoning = f"`{reasoning}`" if reasoning.startswith("reasoning") else reasoning
        limit = preset.limit_field if preset.limit_field == "by model" else f"`{preset.limit_field}`"
        facts = [limit, usage, reasoning, preset.json_schema, preset.images]
    else:
        facts = [FORMATS[preset.wire], *[""] * 4]
    url = f"`{preset.base_url}`" if preset.base_url else f"yours: `{preset.url_form}`"
    key = f"`{preset.key_env}`" + ("" if preset.hosted else ", if any")
    model = f"`{preset.model}`" if preset.model else "`gpt-4o-mini`" if kind == "openai" else ""
    bills = f"[{preset.abort_bills}]({preset.abort_source})" if preset.abort_source else preset.abort_bills
    return f"| {' | '.join((f'`{kind}`', url, key, model, *facts, bills))} |\n".replace("  ", " ")


if __name__ == "__main__":
    print(table(), end="")
