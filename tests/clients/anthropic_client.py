from anthropic import Anthropic, APIError
from say import options, say, url, weather

client = Anthropic(base_url=url, api_key="sk-a-clients-own")
request = {"model": "gpt-4o-mini", "max_tokens": 100, "messages": [{"role": "user", "content": "Hello"}]}
if options.get("tools"):
    request["tools"] = [{**weather, "input_schema": weather["parameters"]}]
    del request["tools"][0]["parameters"]


def streamed() -> None:
    with client.messages.stream(**request) as stream:
        for _text in stream.text_stream:
            if options.get("abort"):
                say("aborted")
                return
        tell(stream.get_final_message())


def tell(message) -> None:
    for block in message.content:
        if block.type == "thinking":
            say("reasoning", text=block.thinking)
        if block.type == "text":
            say("text", text=block.text)
        if block.type == "tool_use":
            say("tool", name=block.name, input=block.input)
    say("end", reason=message.stop_reason, tokens=message.usage.input_tokens + message.usage.output_tokens)


try:
    tell(client.messages.create(**request)) if options.get("stream") is False else streamed()
except APIError as error:
    say("error", status=getattr(error, "status_code", None), message=error.message)
