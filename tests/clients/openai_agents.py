"""OpenAI's agents, which speak Responses and run the tools themselves."""

import asyncio
import json
import logging
from typing import Any

from agents import Agent, FunctionTool, OpenAIResponsesModel, Runner
from openai import APIError, AsyncOpenAI
from pydantic import BaseModel
from say import image, options, picture, prompt, say, url, weather


logging.getLogger("openai.agents").setLevel(logging.CRITICAL)  # it logs what it raises, too


class City(BaseModel):
    city: str


async def told(_context: Any, _arguments: str) -> str:
    return "19 degrees"


client = AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-a-clients-own")
tool = FunctionTool(weather["name"], weather["description"], weather["parameters"], told, strict_json_schema=False)
agent = Agent(
    name="Assistant",
    model=OpenAIResponsesModel("gpt-4o-mini", client),
    tools=[tool] if options.get("tools") else [],
    output_type=City if options.get("format") else None,
    tool_use_behavior="run_llm_again" if options.get("round") else "stop_on_first_tool",
)


async def chat() -> None:
    shown = [{"type": "input_text", "text": prompt}, {"type": "input_image", "image_url": picture, "detail": "auto"}]
    run = Runner.run_streamed(agent, [{"role": "user", "content": shown}] if image else prompt)
    async for event in run.stream_events():
        if event.type != "raw_response_event":
            continue
        if event.data.type == "response.output_text.delta" and options.get("abort"):
            run.cancel()
            say("aborted")
            return
        if event.data.type == "error":
            say("error", status=None, message=event.data.message)
            return
    for item in (item for response in run.raw_responses for item in response.output):
        if item.type == "reasoning":
            say("reasoning", text="".join(part.text for part in item.summary))
        elif item.type == "message":
            say("text", text="".join(part.text for part in item.content))
        elif item.type == "function_call":
            say("tool", name=item.name, input=json.loads(item.arguments))
    usage = run.context_wrapper.usage
    say("end", reason="completed", tokens=usage.total_tokens)


async def main() -> None:
    try:
        await chat()
    except APIError as error:
        say("error", status=getattr(error, "status_code", None), message=error.message)
    await client.close()


asyncio.run(main())
