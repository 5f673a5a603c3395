"""Agno's agents. OPTIONS["model"] is `openai` (Chat Completions), `responses` or `anthropic`."""

import base64
import logging

from agno.agent import Agent
from agno.media import Image
from agno.models.anthropic import Claude
from agno.models.openai import OpenAIChat, OpenAIResponses
from agno.run.agent import RunEvent
from pydantic import BaseModel, ConfigDict
from say import image, options, prompt, say, url

logging.disable(logging.CRITICAL)


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str


def weather(city: str) -> str:
    """Tells the weather of a city"""
    return "19 degrees"


settings = {"id": "gpt-4o-mini", "api_key": "sk-a-clients-own"}
if options["model"] == "anthropic":
    if not options.get("defaults"):
        settings["client_params"] = {"base_url": url, "max_retries": 0}
    else:
        settings["client_params"] = {"base_url": url}
    model = Claude(**settings)
else:
    if not options.get("defaults"):
        settings["max_retries"] = 0
    kind = OpenAIResponses if options["model"] == "responses" else OpenAIChat
    model = kind(base_url=f"{url}/v1", **settings)


def chat() -> None:
    agent = Agent(
        model=model,
        tools=[weather] if options.get("tools") else None,
        output_schema=City if options.get("format") else None,
    )
    shown = [Image(content=base64.b64decode(image), mime_type="image/png")] if image else None
    text = ""
    for event in agent.run(prompt, images=shown, stream=True, stream_events=True):
        if event.event == RunEvent.run_content:
            if options.get("abort"):
                say("aborted")
                return
            text += event.content if isinstance(event.content, str) else ""
        elif event.event == RunEvent.tool_call_started:
            say("tool", name=event.tool.tool_name, input=event.tool.tool_args)
        elif event.event == RunEvent.run_error:
            say("error", status=None, message=event.content)
            return
        elif event.event == RunEvent.run_completed:
            say("text", text=event.content.model_dump_json() if options.get("format") else text)
            say("end", reason=None, tokens=event.metrics.total_tokens)


chat()
