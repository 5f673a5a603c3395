"""Wire dialects, one file each: parse a body, encode batches, refuse."""

from chat_nest.dialects.ag_ui import AGUI
from chat_nest.dialects.ai_sdk import AISDK
from chat_nest.dialects.anthropic import Anthropic
from chat_nest.dialects.blog import Blog
from chat_nest.dialects.native import Native
from chat_nest.dialects.openai import OpenAI
from chat_nest.dialects.responses import Responses

__all__ = ["AGUI", "AISDK", "Anthropic", "Blog", "Native", "OpenAI", "Responses"]
