"""smolagents: its model, and with tools its ToolCallingAgent, which ends by the tool `final_answer`."""

import base64
import io

import openai
import PIL.Image
from say import format, image, options, prompt, say, url
from smolagents import FinalAnswerStep, LogLevel, OpenAIModel, ToolCall, ToolCallingAgent, tool
from smolagents.models import agglomerate_stream_deltas
from smolagents.utils import AgentError

settings = {} if options.get("defaults") else {"retry": False, "client_kwargs": {"max_retries": 0}}
model = OpenAIModel("gpt-4o-mini", api_base=f"{url}/v1", api_key="sk-a-clients-own", **settings)


@tool
def weather(city: str) -> str:
    """Tells the weather of a city

    Args:
        city: The city
    """
    return "19 degrees"


def agent() -> None:
    for step in ToolCallingAgent([weather], model, verbosity_level=LogLevel.OFF).run(prompt, stream=True):
        if isinstance(step, ToolCall) and step.name != "final_answer":
            say("tool", name=step.name, input=step.arguments)
        elif isinstance(step, FinalAnswerStep):
            say("text", text=step.output)
            say("end", reason=None, tokens=None)


def chat() -> None:
    content = [{"type": "text", "text": prompt}]
    if image:
        content.append({"type": "image", "image": PIL.Image.open(io.BytesIO(base64.b64decode(image)))})
    messages = [{"role": "user", "content": content}]
    if options.get("format"):
        schema = {"name": format["name"], "schema": format["schema"], "strict": True}
        answer = model.generate(messages, response_format={"type": "json_schema", "json_schema": schema})
        say("text", text=answer.content)
        return
    deltas = []
    for delta in model.generate_stream(messages):
        deltas.append(delta)
        if options.get("abort") and delta.content:
            say("aborted")
            return
    answer = agglomerate_stream_deltas(deltas)
    say("text", text=answer.content)
    say("end", reason=None, tokens=answer.token_usage.total_tokens)


try:
    agent() if options.get("tools") else chat()
except (openai.APIError, AgentError) as error:
    say("error", status=getattr(error, "status_code", None), message=error.message)
