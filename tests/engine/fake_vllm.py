"""A stand-in for a vLLM server that really generates: our engine behind the routes that rollouts use.

Routes and fields are those of vLLM 0.32 (docs/rollouts.md names the sources). `faults` holds what goes wrong at
the next calls of a path; `stale` acknowledges new weights without reading them.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from torch import nn

from demeanor.core.errors import EngineError
from demeanor.core.types import Decoding
from demeanor.engine.local import LocalEngine
from demeanor.engine.scheduler import Request
from demeanor.model import adapters, checkpoints
from demeanor.model.llama import Llama
from demeanor.text.tokenizer import Tokenizer
from tests.server.live import other_server

Fault = Callable[[dict[str, Any]], dict[str, Any]] | int | str
"""A status, `drop` or `hang`, or a change of the answer."""


@dataclass
class FakeVllm:
    """The server's state: weights by model id, and what it was asked."""

    folder: Path
    tokenizer: Tokenizer
    name: str = "policy"
    context: int = 512
    raw: bool = False  # log-probs before the temperature
    stale: bool = False
    faults: defaultdict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    engines: dict[str, LocalEngine] = field(default_factory=dict)
    loras: dict[str, Path] = field(default_factory=dict)
    version: str | None = None
    paused: bool = False

    def __post_init__(self) -> None:
        self.read(self.folder)

    def read(self, folder: Path) -> None:
        """Serve the whole weights of a folder, and every adapter on top of them."""
        self.folder = folder
        self.serve(self.name, None)
        for name, adapter in self.loras.items():
            self.serve(name, adapter)

    def serve(self, name: str, adapter: Path | None) -> None:
        """An engine with the whole weights, or with an adapter on them, whatever base the adapter's file names."""
        if name in self.engines:
            self.engines.pop(name).close()
        model: nn.Module = checkpoints.load(self.folder)
        if adapter is not None:
            model = adapters.merge(adapters.add(model, adapter))
        assert isinstance(model, Llama)
        self.engines[name] = LocalEngine(model, self.tokenizer, max_context=self.context)

    def close(self) -> None:
        while self.engines:
            self.engines.popitem()[1].close()

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    # ---- routes ----

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        match path:
            case "/v1/models":
                return 200, {"data": [{"id": n, "max_model_len": self.context} for n in self.engines]}
            case "/v1/completions":
                return self.completion(body)
            case "/inference/v1/generate":
                return self.generated(body)
            case "/v1/load_lora_adapter":
                if body["lora_name"] in self.engines:
                    return 400, {
                        "message": f"The lora adapter '{body['lora_name']}' has already been loaded."
                    }
                self.loras[body["lora_name"]] = Path(body["lora_path"])
                self.serve(body["lora_name"], None if self.stale else Path(body["lora_path"]))
                return 200, f"Success: LoRA adapter '{body['lora_name']}' added successfully."
            case "/v1/unload_lora_adapter":
                if body["lora_name"] not in self.engines:
                    return 404, {"message": f"The lora adapter '{body['lora_name']}' cannot be found."}
                self.engines.pop(body["lora_name"]).close()
                del self.loras[body["lora_name"]]
                return 200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully."
            case "/pause?mode=wait":
                self.paused = True
                return 200, {"status": "paused"}
            case "/resume":
                self.paused = False
                return 200, {"status": "resumed"}
            case "/collective_rpc":
                assert body["method"] == "reload_weights"
                assert self.paused, "weights are read while nothing is drawn"
                if not self.stale:
                    self.read(Path(body["kwargs"]["weights_path"]))
                return 200, {"results": [None]}
            case "/reset_prefix_cache":
                return 200, {"success": True}
            case "/update_weight_version":
                self.version = body["new_version"]
                return 200, {"success": True, "new_version": self.version}
            case "/weight_info":
                return 200, {"weight_version": self.version}
        return 404, {"detail": "Not Found"}

    def completion(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] not in self.engines:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}}
        engine, prompt = self.engines[body["model"]], tuple(body["prompt"])
        choice: dict[str, Any] = {"index": 0, "text": "", "finish_reason": "length"}
        if "prompt_logprobs" in body:
            request = Request(prompt, Decoding(0.0, max_tokens=0), prompt_logprobs=0)
            ((piece,),) = engine.generate([request])
            rows = [None, *({str(t.token): {"logprob": t.logprob}} for t in piece.prompt[1:])]
            return 200, {"choices": [{**choice, "prompt_logprobs": rows}]}
        if body.get("return_tokens_as_token_ids"):
            logits = {}
            for token in range(40):
                ((piece,),) = engine.generate(
                    [Request((*prompt, token), Decoding(0.0, max_tokens=0), prompt_logprobs=0)]
                )
                logits[f"token_id:{token}"] = piece.prompt[-1].logprob
            if not self.raw:
                scaled = {t: x / body["temperature"] for t, x in logits.items() if x is not None}
                total = math.log(sum(map(math.exp, scaled.values())))
                logits = {t: x - total for t, x in scaled.items()}
            return 200, {"choices": [{**choice, "logprobs": {"top_logprobs": [logits]}}]}
        pieces = self.drawn(engine, prompt, body)
        logprobs = [p.logprob if self.raw else p.sampled for p in pieces]
        return 200, {
            "choices": [
                {
                    **choice,
                    "finish_reason": pieces[-1].finish,
                    "token_ids": [p.token for p in pieces],
                    "prompt_token_ids": list(prompt),
                    "logprobs": {"token_logprobs": logprobs, "tokens": [], "top_logprobs": []},
                }
            ]
        }

    def generated(self, body: dict[str, Any]) -> tuple[int, Any]:
        pieces = self.drawn(self.engines[body["model"]], tuple(body["token_ids"]), body["sampling_params"])
        return 200, {
            "choices": [
                {
                    "index": 0,
                    "finish_reason": pieces[-1].finish,
                    "token_ids": [p.token for p in pieces],
                    "logprobs": {"content": [{"logprob": p.sampled} for p in pieces]},
                    "sampling_mask": [list(p.kept) or [p.token] for p in pieces],
                }
            ]
        }

    def drawn(self, engine: LocalEngine, prompt: tuple[int, ...], asked: dict[str, Any]) -> list[Any]:
        assert not self.paused
        decoding = Decoding(
            asked["temperature"],
            asked["top_p"],
            asked["max_tokens"],
            asked.get("seed"),
            tuple(asked.get("stop", ())),
            top_k=asked.get("top_k"),
            min_p=asked.get("min_p", 0.0),
        )
        request = Request(prompt, decoding, frozenset(asked["stop_token_ids"]), recorded=True)
        return engine.generate([request])[0]


@contextmanager
def serving(fake: FakeVllm) -> Iterator[str]:
    """Serve a fake on a free port; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            with suppress(OSError, EngineError):  # the client has left, or this server is closed
                self.reply()

        def reply(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(size) or b"{}")
            fake.asked.append((self.path, body))
            fault = fake.faults[self.path].pop(0) if fake.faults[self.path] else None
            if fault == "drop":
                self.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"choices": [{')
                self.wfile.flush()
                self.close_connection = True
                return
            if fault == "hang":
                time.sleep(2.3)
                self.close_connection = True
                return
            status, found = (
                (fault, {"error": "broken"}) if isinstance(fault, int) else fake.answer(self.path, body)
            )
            if callable(fault):
                found = fault(found)
            sent = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *args: object) -> None:
            pass

    with other_server(Handler) as url:
        try:
            yield url
        finally:
            fake.close()
