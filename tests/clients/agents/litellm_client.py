"""LiteLLM. OPTIONS["model"] is `openai` (Chat Completions), `responses` or `anthropic`."""

import json
import logging
import warnings

import litellm
import openai
from say import format, image, options, picture, prompt, say, url, weather

logging.disable(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydantic")  # of its own records of Responses
litellm.suppress_debug_info = True  # printed to standard output with each error
NAMES = {"anthropic": ("anthropic/gpt-4o-mini", url)}
name, base = NAMES.get(options["model"], ("openai/gpt-4o-mini", f"{url}/v1"))
common = {"model": name, "api_base": base, "api_key": "sk-a-clients-own", "stream": True}
if not options.get("defaults"):
    common["num_retries"] = 0


def ask(messages):
    """Return the whole message, or None after an abort."""
    if options.get("tools"):
        common["tools"] = [{"type": "function", "function": weather}]
    if options.get("format"):
        schema = {"name": format["name"], "schema": format["schema"], "strict": True}
        common["response_format"] = {"type": "json_schema", "json_schema": schema}
    stream = litellm.completion(**common, messages=messages, stream_options={"include_usage": True})
    chunks = []
    for chunk in stream:
        chunks.append(chunk)
        if options.get("abort") and chunk.choices and chunk.choices[0].delta.content:
            stream.close()
            say("aborted")
            return None
    return litellm.stream_chunk_builder(chunks, messages=messages)


def chat() -> None:
    content = prompt
    if image:
        content = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": picture}}]
    messages = [{"role": "user", "content": content}]
    while answer := ask(messages):
        message = answer.choices[0].message
        if message.content:
            say("text", text=message.content)
        for call in message.tool_calls or []:
            say("tool", name=call.function.name, input=json.loads(call.function.arguments))
        if not message.tool_calls:
            say("end", reason=answer.choices[0].finish_reason, tokens=answer.usage.total_tokens)
            return
        messages.append(message.model_dump(exclude_none=True))
        messages += [{"role": "tool", "tool_call_id": call.id, "content": "19 degrees"} for call in message.tool_calls]


def respond() -> None:
    content = [{"type": "input_text", "text": prompt}]
    if image:
        content.append({"type": "input_image", "image_url": picture, "detail": "auto"})
    if options.get("tools"):
        common["tools"] = [{"type": "function", **weather}]
    if options.get("format"):
        common["text"] = {"format": {**format, "strict": True}}
    input = [{"role": "user", "content": content}]
    while True:
        for event in litellm.responses(**common, input=input):
            if options.get("abort") and event.type == "response.output_text.delta":
                say("aborted")
                return
        response = event.response
        for item in response.output:
            if item.type == "message":
                say("text", text="".join(part.text for part in item.content))
        calls = [item for item in response.output if item.type == "function_call"]
        for call in calls:
            say("tool", name=call.name, input=json.loads(call.arguments))
        if not calls:
            say("end", reason=response.status, tokens=response.usage.total_tokens)
            return
        input += [item.model_dump(exclude_none=True) for item in response.output]
        input += [{"type": "function_call_output", "call_id": each.call_id, "output": "19 degrees"} for each in calls]


try:
    (respond if options["model"] == "responses" else chat)()
except openai.APIError as error:  # which LiteLLM's are
    say("error", status=getattr(error, "status_code", None), message=error.message)
