import json

from openai import APIError, OpenAI
from say import options, say, url, weather

client = OpenAI(base_url=f"{url}/v1", api_key="sk-a-clients-own")
request = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
if options.get("tools"):
    request["tools"] = [{"type": "function", "function": weather}]


def streamed() -> None:
    with client.chat.completions.stream(**request, stream_options={"include_usage": True}) as stream:
        reasoning = ""
        for event in stream:
            if event.type == "chunk" and event.chunk.choices:
                reasoning += getattr(event.chunk.choices[0].delta, "reasoning_content", None) or ""
            if event.type == "content.delta" and event.delta and options.get("abort"):
                say("aborted")
                return
        if reasoning:
            say("reasoning", text=reasoning)
        tell(stream.get_final_completion())


def tell(completion) -> None:
    message = completion.choices[0].message
    if options.get("stream") is False and (reasoning := getattr(message, "reasoning_content", None)):
        say("reasoning", text=reasoning)
    say("text", text=message.content or "")
    for call in message.tool_calls or []:
        say("tool", name=call.function.name, input=json.loads(call.function.arguments or "{}"))
    say("end", reason=completion.choices[0].finish_reason, tokens=completion.usage.total_tokens)


try:
    if options.get("models"):
        for model in client.models.list():
            say("model", id=model.id)
    elif options.get("stream") is False:
        tell(client.chat.completions.create(**request))
    else:
        streamed()
except APIError as error:
    say("error", status=getattr(error, "status_code", None), message=error.message)
