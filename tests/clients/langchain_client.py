"""LangChain's chat models. OPTIONS["model"] is `openai` (Chat Completions), `responses` or `anthropic`."""

import json

import anthropic
import openai
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from say import format, image, options, picture, prompt, say, url, weather

KEY = "sk-a-clients-own"


def chat_model():
    if options["model"] == "anthropic":
        return ChatAnthropic(model="gpt-4o-mini", base_url=url, api_key=KEY, max_tokens=100)
    responses = options["model"] == "responses"
    return ChatOpenAI(
        model="gpt-4o-mini", base_url=f"{url}/v1", api_key=KEY, stream_usage=True, use_responses_api=responses
    )


def ask(model, messages):
    """Return the whole message, or None after an abort."""
    whole = None
    for chunk in model.stream(messages):
        whole = chunk if whole is None else whole + chunk
        if options.get("abort") and whole.text:
            say("aborted")
            return None
    return whole


def tell(message) -> None:
    reasoning = [block.get("reasoning", "") for block in message.content_blocks if block["type"] == "reasoning"]
    if any(reasoning):
        say("reasoning", text="".join(reasoning))
    if message.text:
        say("text", text=message.text)
    for call in message.tool_calls:
        say("tool", name=call["name"], input=call["args"])


def chat() -> None:
    model = chat_model()
    content = [{"type": "text", "text": prompt}]
    if image:
        content.append({"type": "image_url", "image_url": {"url": picture}})
    messages = [HumanMessage(content)]
    if options.get("format"):
        schema = {"title": format["name"], "description": "A city", **format["schema"]}
        structured = model.with_structured_output(schema, method="json_schema").invoke(messages)
        say("text", text=json.dumps(structured, separators=(",", ":")))
        return
    if options.get("tools"):
        model = model.bind_tools([{"type": "function", "function": weather}])
    if (message := ask(model, messages)) is None:
        return
    tell(message)
    if options.get("round"):
        results = [ToolMessage("19 degrees", tool_call_id=call["id"]) for call in message.tool_calls]
        message = ask(model, [*messages, message, *results])
        tell(message)
    known = message.response_metadata
    reason = known.get("finish_reason") or known.get("stop_reason") or known.get("status")
    say("end", reason=reason, tokens=message.usage_metadata["total_tokens"])


try:
    chat()
except (openai.APIError, anthropic.APIError) as error:
    say("error", status=getattr(error, "status_code", None), message=error.message)
