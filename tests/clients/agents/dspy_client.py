"""DSPy. Its programs ask for an answer in a form; with tools, ReActV2 ends by the tool `submit`."""

import asyncio
import json
import logging
import warnings

import dspy
from dspy.utils.exceptions import LMError
from say import image, options, picture, prompt, say, url

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")  # that ReActV2 is new
settings = {} if options.get("defaults") else {"num_retries": 0}
lm = dspy.LM(
    "openai/gpt-4o-mini",
    model_type=options["model"],
    api_base=f"{url}/v1",
    api_key="sk-a-clients-own",
    cache=False,
    **settings,
)


def weather(city: str) -> str:
    """Tells the weather of a city"""
    say("tool", name="weather", input={"city": city})
    return "19 degrees"


async def ask():
    """Return what the program yields, and in the end its prediction."""
    if options.get("format"):
        return await dspy.Predict("question -> city").acall(question=prompt)
    if options.get("tools"):
        return await dspy.ReActV2("question -> answer", tools=[weather]).acall(question=prompt)
    pictures = {"picture": dspy.Image(picture)} if image else {}
    signature = "question, picture: dspy.Image -> answer" if image else "question -> answer"
    listeners = [dspy.streaming.StreamListener(signature_field_name="answer")]
    program = dspy.streamify(dspy.Predict(signature), stream_listeners=listeners, is_async_program=True)
    stream = program(question=prompt, **pictures)
    async for part in stream:
        if options.get("abort") and isinstance(part, dspy.streaming.StreamResponse):
            await stream.aclose()
            return None
    return part


async def chat() -> None:
    adapter = dspy.JSONAdapter() if options.get("format") else dspy.ChatAdapter(use_native_function_calling=True)
    with dspy.context(lm=lm, adapter=adapter, track_usage=True):
        answer = await ask()
    if answer is None:
        say("aborted")
        return
    say("text", text=json.dumps({"city": answer.city}) if options.get("format") else answer.answer)
    usage = (answer.get_lm_usage() or {}).get("openai/gpt-4o-mini", {})
    say("end", reason=None, tokens=usage.get("total_tokens"))


def errors_of(error):
    return (
        [each for inner in error.exceptions for each in errors_of(inner)] if hasattr(error, "exceptions") else [error]
    )


try:
    asyncio.run(chat())
except (LMError, ExceptionGroup) as error:
    [error] = errors_of(error)
    say("error", status=getattr(error, "status", None), message=str(error))
