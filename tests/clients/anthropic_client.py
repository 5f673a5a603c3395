from anthropic import Anthropic, APIError
from say import format, image, options, prompt, say, url, weather

client = Anthropic(base_url=url, api_key="sk-a-clients-own")
content = [{"type": "text", "text": prompt}]
if image:
    content.append({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": image}})
request = {"model": "gpt-4o-mini", "max_tokens": 100, "messages": [{"role": "user", "content": content}]}
if options.get("format"):
    request["output_config"] = {"format": {"type": "json_schema", "schema": format["schema"]}}
if options.get("tools"):
    request["tools"] = [{**weather, "input_schema": weather["parameters"]}]
    del request["tools"][0]["parameters"]


def streamed(messages) -> None:
    with client.messages.stream(**{**request, "messages": messages}) as stream:
        for _text in stream.text_stream:
            if options.get("abort"):
                say("aborted")
                return
        message = tell(stream.get_final_message())
    calls = [block for block in message.content if block.type == "tool_use"]
    if options.get("round") and calls:
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "19 degrees"} for call in calls]
        said = {"role": "assistant", "content": message.content}
        streamed([*messages, said, {"role": "user", "content": results}])


def tell(message):
    for block in message.content:
        if block.type == "thinking":
            say("reasoning", text=block.thinking)
        if block.type == "text":
            say("text", text=block.text)
        if block.type == "tool_use":
            say("tool", name=block.name, input=block.input)
    if not (options.get("round") and message.stop_reason == "tool_use"):
        say("end", reason=message.stop_reason, tokens=message.usage.input_tokens + message.usage.output_tokens)
    return message


try:
    tell(client.messages.create(**request)) if options.get("stream") is False else streamed(request["messages"])
except APIError as error:
    say("error", status=getattr(error, "status_code", None), message=error.message)
