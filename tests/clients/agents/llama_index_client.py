"""LlamaIndex. OPTIONS["model"] is `openai` (Chat Completions, by OpenAILike) or `responses`."""

import asyncio
import base64
import logging

import openai
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai import OpenAIResponses
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, ConfigDict
from say import image, options, prompt, say, url

logging.disable(logging.CRITICAL)


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str


def weather(city: str) -> str:
    """Tells the weather of a city"""
    return "19 degrees"


settings = {"model": "gpt-4o-mini", "api_base": f"{url}/v1", "api_key": "sk-a-clients-own"}
if not options.get("defaults"):
    settings["max_retries"] = 0
if options["model"] == "responses":
    llm = OpenAIResponses(**settings)
else:
    llm = OpenAILike(**settings, is_chat_model=True, is_function_calling_model=True, should_use_structured_outputs=True)


async def agent() -> None:
    handler = FunctionAgent(tools=[FunctionTool.from_defaults(weather)], llm=llm).run(user_msg=prompt)
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            say("tool", name=event.tool_name, input=event.tool_kwargs)
    say("text", text=str(await handler))
    say("end", reason=None, tokens=None)


def tokens_of(raw):
    usage = raw.response.usage if options["model"] == "responses" else raw.usage
    return usage and usage.total_tokens


def chat() -> None:
    blocks = [TextBlock(text=prompt)]
    if image:
        blocks.append(ImageBlock(image=base64.b64decode(image), image_mimetype="image/png"))
    messages = [ChatMessage(role="user", blocks=blocks)]
    if options.get("format"):
        say("text", text=llm.as_structured_llm(City).chat(messages).raw.model_dump_json())
        return
    more = {} if options["model"] == "responses" else {"stream_options": {"include_usage": True}}
    for answer in llm.stream_chat(messages, **more):
        if options.get("abort") and answer.message.content:
            say("aborted")
            return
    say("text", text=answer.message.content)
    say("end", reason=None, tokens=tokens_of(answer.raw))


try:
    asyncio.run(agent()) if options.get("tools") else chat()
except openai.APIError as error:
    say("error", status=getattr(error, "status_code", None), message=error.message)
