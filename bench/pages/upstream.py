"""A scripted OpenAI-compatible server: what a page's `http://127.0.0.1:8000/v1` is while its commands run.

It answers a sum, cites the first passage it is given, prefers the first of two answers when it is asked as a judge, and else
says hello. `Please open a ticket.` makes it call the tool `open_ticket`.
"""

from __future__ import annotations

import json
import re
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def answer(messages: list[dict[str, Any]]) -> str:
    """The reply to the last question."""
    whole = "\n".join(str(m.get("content") or "") for m in messages)
    said = next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
    for form, verdict in (("Better:", "Better: 1"), ("Rating:", "Rating: 7"), ("Verdict:", "Verdict: yes")):
        if form in said.strip().splitlines()[-1]:
            return verdict
    if found := re.search(r"(\d+) (?:times|x|\*) (\d+)", said):
        return str(int(found[1]) * int(found[2])) + "."
    if "[1]" in whole:
        return "It is on the page. [1]"
    return "Hello."


class Handler(BaseHTTPRequestHandler):
    """Chat completions, whole and streamed, and the list of models."""

    def do_GET(self) -> None:
        self._reply({"object": "list", "data": [{"id": "my-model", "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        messages = body.get("messages", [])
        text = answer(messages)
        if "response_format" in body and ": " in text:
            text = json.dumps({"verdict": text})
        usage = {"prompt_tokens": 40, "completion_tokens": 8, "total_tokens": 48}
        if not body.get("stream"):
            message = {"role": "assistant", "content": text}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            self._reply({"id": "c", "object": "chat.completion", "choices": [choice], "usage": usage})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
        for part in ({"choices": [choice]}, {"choices": [], "usage": usage}):
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _reply(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Nothing is logged."""


def serve(port: int) -> int:
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
    return 0


def wait(port: int, seconds: float = 20) -> None:
    """Until the server accepts a connection."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            with socket.create_connection(("127.0.0.1", port), 1):
                return
        except OSError:
            time.sleep(0.02)
    raise TimeoutError(f"the scripted server did not start on port {port}")
