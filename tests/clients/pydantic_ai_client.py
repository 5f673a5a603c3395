"""pydantic-ai's agents. OPTIONS["model"] is `openai` (Chat Completions), `responses` or `anthropic`."""

import asyncio
import json

import anthropic
import openai
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, Tool
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ModelResponse, PartDeltaEvent, PartStartEvent, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider
from say import image, options, prompt, say, url, weather

KEY = "sk-a-clients-own"


class City(BaseModel):
    city: str


def chat_model():
    if options["model"] == "anthropic":
        client = anthropic.AsyncAnthropic(base_url=url, api_key=KEY)
        # It knows from the name whether a model has structured output, and this name is not Anthropic's.
        profile = ModelProfile(supports_json_schema_output=True)
        provider = AnthropicProvider(anthropic_client=client)
        return client, AnthropicModel("gpt-4o-mini", provider=provider, profile=profile)
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY)
    kind = OpenAIResponsesModel if options["model"] == "responses" else OpenAIChatModel
    return client, kind("gpt-4o-mini", provider=OpenAIProvider(openai_client=client))


async def told(**_arguments: str) -> str:
    return "19 degrees"


async def chat(model) -> None:
    tool = Tool.from_schema(told, weather["name"], weather["description"], weather["parameters"])
    agent = Agent(
        model,
        tools=[tool] if options.get("tools") else [],
        output_type=NativeOutput(City) if options.get("format") else str,
    )
    words = [prompt, BinaryContent.from_data_uri(f"data:image/png;base64,{image}")] if image else prompt
    responses: list[ModelResponse] = []
    async with agent.iter(words) as run:
        async for node in run:
            if not Agent.is_model_request_node(node):
                continue
            async with node.stream(run.ctx) as stream:
                async for event in stream:
                    if options.get("abort") and isinstance(event, PartStartEvent | PartDeltaEvent):
                        say("aborted")
                        return
            responses.append(stream.response)
            if options.get("tools") and not options.get("round"):
                break
    for part in (part for response in responses for part in response.parts):
        if isinstance(part, ThinkingPart) and part.content:
            say("reasoning", text=part.content)
        elif isinstance(part, TextPart) and part.content:
            say("text", text=part.content)
        elif isinstance(part, ToolCallPart):
            say("tool", name=part.tool_name, input=json.loads(part.args) if isinstance(part.args, str) else part.args)
    usage = responses[-1].usage
    say("end", reason=responses[-1].finish_reason, tokens=usage.input_tokens + usage.output_tokens)


async def main() -> None:
    client, model = chat_model()
    try:
        await chat(model)
    except (ModelAPIError, openai.APIError, anthropic.APIError) as error:
        say("error", status=getattr(error, "status_code", None), message=str(error))
    await client.close()


asyncio.run(main())
