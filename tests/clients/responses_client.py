import json

from openai import APIError, OpenAI
from say import format, image, options, picture, prompt, say, url, weather

client = OpenAI(base_url=f"{url}/v1", api_key="sk-a-clients-own")
shown = [{"type": "input_text", "text": prompt}, {"type": "input_image", "image_url": picture, "detail": "auto"}]
request = {"model": "gpt-4o-mini", "input": [{"role": "user", "content": shown if image else prompt}]}
if options.get("tools"):
    request["tools"] = [{"type": "function", **weather, "strict": False}]
if options.get("format"):
    request["text"] = {"format": format}


def streamed(asked):
    with client.responses.stream(**asked) as stream:
        for event in stream:
            if event.type == "response.output_text.delta" and options.get("abort"):
                say("aborted")
                return None
        return tell(stream.get_final_response())


def tell(response):
    for item in response.output:
        if item.type == "reasoning":
            say("reasoning", text="".join(part.text for part in item.summary))
        elif item.type == "message":
            say("text", text="".join(part.text for part in item.content))
        elif item.type == "function_call":
            say("tool", name=item.name, input=json.loads(item.arguments))
    return response


def ask(asked):
    return tell(client.responses.create(**asked)) if options.get("stream") is False else streamed(asked)


try:
    response = ask(request)
    if options.get("round"):
        # The whole conversation again, as a client without a memory on the server has it.
        said = [item.to_dict() for item in response.output]
        outputs = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "19 degrees"}
            for item in response.output
            if item.type == "function_call"
        ]
        response = ask({**request, "input": [*request["input"], *said, *outputs], "store": False})
    if response is not None:
        say("end", reason=response.status, tokens=response.usage.total_tokens)
except APIError as error:
    say("error", status=getattr(error, "status_code", None), message=error.message)
