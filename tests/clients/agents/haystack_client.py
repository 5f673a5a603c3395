"""Haystack's generators. OPTIONS["model"] is `openai` (Chat Completions) or `responses`."""

import asyncio
import logging
import warnings

import openai
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage, ImageContent
from haystack.tools import Tool
from haystack.utils import Secret
from pydantic import BaseModel, ConfigDict
from say import image, options, prompt, say, url, weather

logging.disable(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydantic")  # of a parsed answer that Haystack turns into a dictionary
responses = options["model"] == "responses"


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str


async def main() -> None:
    kind = OpenAIResponsesChatGenerator if responses else OpenAIChatGenerator
    settings = {} if options.get("defaults") else {"max_retries": 0}
    tool = Tool(weather["name"], weather["description"], weather["parameters"], lambda city: "19 degrees")
    generator = kind(
        model="gpt-4o-mini",
        api_base_url=f"{url}/v1",
        api_key=Secret.from_token("sk-a-clients-own"),
        tools=[tool] if options.get("tools") else None,
        **settings,
    )
    try:
        await chat(generator)
    except openai.APIError as error:
        say("error", status=getattr(error, "status_code", None), message=error.message)
    await generator.close_async()


async def chat(generator) -> None:
    parts = [prompt, ImageContent(image, mime_type="image/png")] if image else [prompt]
    messages = [ChatMessage.from_user(content_parts=parts)]
    if options.get("format"):
        asked = {"text_format" if responses else "response_format": City}
        [reply] = (await generator.run_async(messages, generation_kwargs=asked))["replies"]
        say("text", text=reply.text)
        return
    asked = {} if responses else {"stream_options": {"include_usage": True}}
    begun = asyncio.Event()

    async def show(chunk) -> None:
        if chunk.content:
            begun.set()

    while True:
        running = asyncio.create_task(generator.run_async(messages, streaming_callback=show, generation_kwargs=asked))
        if options.get("abort"):
            await begun.wait()
            running.cancel()
            await asyncio.wait([running])
            say("aborted")
            return
        [reply] = (await running)["replies"]
        if reply.text:
            say("text", text=reply.text)
        for call in reply.tool_calls:
            say("tool", name=call.tool_name, input=call.arguments)
        if not reply.tool_calls:
            usage = reply.meta["usage"]
            say("end", reason=reply.meta.get("finish_reason"), tokens=usage["total_tokens"])
            return
        messages.append(reply)
        messages += [ChatMessage.from_tool("19 degrees", origin=call) for call in reply.tool_calls]


asyncio.run(main())
