"""Strands' agents. OPTIONS["model"] is `openai` (Chat Completions), `responses` or `anthropic`."""

import asyncio
import base64
import logging

import anthropic
import openai
from pydantic import BaseModel, ConfigDict
from say import image, options, prompt, say, url
from strands import Agent, tool
from strands.models.anthropic import AnthropicModel
from strands.models.openai import OpenAIModel
from strands.models.openai_responses import OpenAIResponsesModel
from strands.types.exceptions import ContextWindowOverflowException, ModelThrottledException

logging.disable(logging.CRITICAL)


class City(BaseModel):
    """A city"""

    model_config = ConfigDict(extra="forbid")
    city: str


@tool
def weather(city: str) -> str:
    """Tells the weather of a city"""
    return "19 degrees"


client = {"api_key": "sk-a-clients-own", "max_retries": 0}
if options["model"] == "anthropic":
    model = AnthropicModel(client_args={"base_url": url, **client}, model_id="gpt-4o-mini", max_tokens=100)
else:
    kind = OpenAIResponsesModel if options["model"] == "responses" else OpenAIModel
    model = kind(client_args={"base_url": f"{url}/v1", **client}, model_id="gpt-4o-mini")
settings = {} if options.get("defaults") else {"retry_strategy": None}


async def chat() -> None:
    agent = Agent(
        model=model,
        tools=[weather] if options.get("tools") else None,
        structured_output_model=City if options.get("format") else None,
        callback_handler=None,
        **settings,
    )
    asked = [{"text": prompt}]
    if image:
        asked.append({"image": {"format": "png", "source": {"bytes": base64.b64decode(image)}}})
    stream = agent.stream_async(asked)
    async for event in stream:
        if options.get("abort") and event.get("data"):
            await stream.aclose()
            say("aborted")
            return
        for content in event.get("message", {}).get("content", []):
            if "toolUse" in content and not options.get("format"):
                say("tool", name=content["toolUse"]["name"], input=content["toolUse"]["input"])
        if "result" in event:
            result = event["result"]
    if options.get("format"):
        say("text", text=result.structured_output.model_dump_json())
        return
    say("text", text="".join(part["text"] for part in result.message["content"] if "text" in part))
    say("end", reason=result.stop_reason, tokens=result.metrics.accumulated_usage["totalTokens"])


try:
    asyncio.run(chat())
except (openai.APIError, anthropic.APIError, ModelThrottledException, ContextWindowOverflowException) as error:
    say("error", status=getattr(error, "status_code", None), message=str(error))
