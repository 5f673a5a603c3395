"""Instructor, whose answers are objects by a schema, and partial ones with each piece of a stream.

OPTIONS["model"] is `openai` (Chat Completions), `responses` or `anthropic`. As installed it uses a tool for the schema;
structured output is a mode of Chat Completions. Without asyncio it shows partial objects only in the end.
"""

import asyncio
import logging

import anthropic
import instructor
import openai
from instructor.core.exceptions import InstructorRetryException
from pydantic import BaseModel, ConfigDict
from say import image, options, prompt, say, url

logging.disable(logging.CRITICAL)


class Answer(BaseModel):
    text: str


class City(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: str


settings = {} if options.get("defaults") else {"max_retries": 0}
kind = options["model"]


def connected():
    """Return the client of Instructor's, and of the SDK below it."""
    if kind == "anthropic":
        below = anthropic.AsyncAnthropic(base_url=url, api_key="sk-a-clients-own", **settings)
        return instructor.from_anthropic(below), below
    below = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-a-clients-own", **settings)
    mode = instructor.Mode.JSON_SCHEMA if options.get("format") else instructor.Mode.TOOLS
    mode = instructor.Mode.RESPONSES_TOOLS if kind == "responses" else mode
    return instructor.from_openai(below, mode=mode), below


async def chat(client) -> None:
    content = [prompt, instructor.Image.from_raw_base64(image)] if image else prompt
    asked = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], **settings}
    if kind == "anthropic":
        asked["max_tokens"] = 100
    if options.get("format"):
        say("text", text=(await client.create(**asked, response_model=City)).model_dump_json())
        return
    async for answer in client.create_partial(**asked, response_model=Answer):
        if options.get("abort") and answer.text:
            say("aborted")
            return
    say("text", text=answer.text)
    say("end", reason=None, tokens=None)


async def main() -> None:
    client, below = connected()
    try:
        await chat(client)
    except (openai.APIError, anthropic.APIError, InstructorRetryException) as error:
        say("error", status=getattr(error, "status_code", None), message=str(error))
    await below.close()


asyncio.run(main())
