import json

from openai import APIError, OpenAI
from say import format, image, options, picture, prompt, say, url, weather

client = OpenAI(base_url=f"{url}/v1", api_key="sk-a-clients-own")
shown = [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": picture}}]
request = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": shown if image else prompt}]}
if options.get("format"):
    wanted = {name: format[name] for name in ("name", "schema")}
    request["response_format"] = {"type": "json_schema", "json_schema": wanted}
if options.get("tools"):
    request["tools"] = [{"type": "function", "function": weather}]


def streamed(messages) -> None:
    with client.chat.completions.stream(
        **{**request, "messages": messages}, stream_options={"include_usage": True}
    ) as stream:
        reasoning = ""
        for event in stream:
            if event.type == "chunk" and event.chunk.choices:
                reasoning += getattr(event.chunk.choices[0].delta, "reasoning_content", None) or ""
            if event.type == "content.delta" and event.delta and options.get("abort"):
                say("aborted")
                return
        if reasoning:
            say("reasoning", text=reasoning)
        message = tell(stream.get_final_completion())
    if options.get("round") and message.tool_calls:
        results = [{"role": "tool", "tool_call_id": call.id, "content": "19 degrees"} for call in message.tool_calls]
        streamed([*messages, message, *results])


def tell(completion):
    message = completion.choices[0].message
    if options.get("stream") is False and (reasoning := getattr(message, "reasoning_content", None)):
        say("reasoning", text=reasoning)
    if message.content:
        say("text", text=message.content)
    for call in message.tool_calls or []:
        say("tool", name=call.function.name, input=json.loads(call.function.arguments or "{}"))
    if not (options.get("round") and message.tool_calls):
        say("end", reason=completion.choices[0].finish_reason, tokens=completion.usage.total_tokens)
    return message


try:
    if options.get("models"):
        for model in client.models.list():
            say("model", id=model.id)
    elif options.get("stream") is False:
        tell(client.chat.completions.create(**request))
    else:
        streamed(request["messages"])
except APIError as error:
    say("error", status=getattr(error, "status_code", None), message=error.message)
