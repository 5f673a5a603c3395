import json

import httpx
from httpx_sse import connect_sse
from say import options, prompt, say, url

body = {"messages": [{"role": "user", "content": prompt}]}
text = ""
with httpx.Client() as client, connect_sse(client, "POST", f"{url}/api/chat", json=body) as source:
    if source.response.is_error:
        say("error", status=source.response.status_code, message=json.loads(source.response.read())["error"])
    else:
        for event in source.iter_sse():
            match event.event:
                case "token":
                    text += event.json()
                case "error":
                    say("error", status=None, message=event.json()["message"])
                case "done":
                    said = event.json()
                    say("text", text=text)
                    say("end", reason=said["finish_reason"], tokens=said["usage"]["total_tokens"])
            if text and options.get("abort"):
                say("aborted")
                break
