"""A vLLM server that samples rollouts: token ids in and out, and the trainer's weights before every iteration.

In: requests, and a policy's folder. Out: pieces as the local engine gives them, with the server's
log-probs. Every answer is checked, because a wrong one would train in silence. It knows no objective.
The protocol is that of vLLM 0.28 to 0.32: docs/rollouts.md names its sources.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import httpx

from demeanor.core.errors import ContextError, EngineError, UpstreamError, UsageError
from demeanor.core.types import FinishReason
from demeanor.engine.chat_stream import json_object, told_error, whole_number
from demeanor.engine.detokenizer import Decode
from demeanor.engine.scheduler import Piece, Request, SequenceState
from demeanor.stack.schema import ServerSpec

WAIT_S = 0.5  # before the first retry; doubled each time ...
MOST_WAIT_S = 30.0  # ... up to this
MOST_CONNECTIONS = 256
MOST_KEPT = 2048  # largest top_k for which vLLM tells the kept tokens
GO_ON = "When the server answers again, run the same command: training goes on from its checkpoint."


@dataclass
class VllmServer:
    """One server: `stream` makes it an engine; `load_adapter` and `load_weights` give it new weights.

    `model` is the id that requests name: the server's own, and after `load_adapter` the adapter's, which names
    its version, so that a server without it answers 404 and not with other weights.
    """

    url: str
    settings: ServerSpec
    decode: Decode
    model: str = ""
    base: str = ""  # the model id of the whole weights
    adapter: str | None = None
    version: str | None = None  # of the whole weights that this process gave it last
    context: int | None = None  # tokens of prompt and answer together, if the server tells it
    _client: httpx.AsyncClient | None = field(default=None, repr=False)

    @property
    def root(self) -> str:
        """The server's address without /v1."""
        return self.url.rstrip("/").removesuffix("/v1")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[VllmServer]:
        """The server with open connections; its model is looked up at the first time. Raises UpstreamError."""
        headers = {"authorization": f"Bearer {self._key()}"} if self._key() else {}
        limits = httpx.Limits(max_connections=MOST_CONNECTIONS, max_keepalive_connections=MOST_CONNECTIONS)
        timeout = httpx.Timeout(
            self.settings.timeout_s, connect=min(10.0, self.settings.timeout_s), pool=None
        )
        async with httpx.AsyncClient(
            headers=headers, limits=limits, timeout=timeout, trust_env=False
        ) as self._client:
            if not self.base:
                self.base = self.model = await self._named()
            yield self
        self._client = None

    # ---- sampling ----

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Yield the tokens of one answer, all at once when it is whole."""
        decoding = request.decoding
        if decoding.form is not None or decoding.logit_bias or decoding.greedy:
            raise EngineError(
                f"{self.url}: rollouts of a server draw freely: no grammar, bias or greedy choice"
            )
        room = decoding.max_tokens if self.context is None else self.context - len(request.tokens)
        if room < 1:
            raise ContextError(
                f"{self.url}: the prompt has {len(request.tokens)} tokens, which leaves no room in its context of "
                f"{self.context}"
            )
        request = replace(request, decoding=replace(decoding, max_tokens=min(decoding.max_tokens, room)))
        truncated = decoding.top_p < 1 or decoding.top_k or decoding.min_p
        found = await (self._generated(request) if truncated else self._completed(request))
        sequence = SequenceState(request, len(found.tokens), self.decode)
        for i, token in enumerate(found.tokens):
            piece = sequence.accept(token, found.logprobs[i], [])
            last = piece.finish is not None or i + 1 == len(found.tokens)
            ended: FinishReason = "stop" if piece.finish == "stop" else found.finish
            finish = ended if last else None
            yield replace(piece, finish=finish, sampled=found.logprobs[i], kept=found.kept[i])
            if last:
                return

    async def _completed(self, request: Request) -> _Answer:
        """An answer by /v1/completions."""
        where = f"{self.url}/completions"
        sent = {
            "model": self.model,
            "prompt": list(request.tokens),
            "logprobs": 1,
            "return_token_ids": True,
            "add_special_tokens": False,
            **_sampling(request),
        }
        choice = _choice(await self._post("/v1/completions", sent), where)
        tokens = _ids(choice.get("token_ids"), where, "choices[0].token_ids")
        told = choice.get("logprobs")
        logprobs = _logprobs(
            told.get("token_logprobs") if isinstance(told, dict) else None, len(tokens), where
        )
        echoed = choice.get("prompt_token_ids")
        if echoed is not None and echoed != sent["prompt"]:
            _wrong(where, "prompt_token_ids", f"{len(echoed)} other tokens", "the prompt's own tokens")
        return _Answer(tokens, logprobs, ((),) * len(tokens), _finish(choice, where))

    async def _generated(self, request: Request) -> _Answer:
        """An answer by /inference/v1/generate, which also tells the tokens that truncation kept."""
        where = f"{self.root}/inference/v1/generate"
        if not 0 < (request.decoding.top_k or 0) <= MOST_KEPT:
            raise UsageError(
                f"rollouts: a vLLM server tells the kept tokens only with a top_k of 1 to {MOST_KEPT}; "
                f"got {request.decoding.top_k}. Set top_k, or leave top_p and min_p out"
            )
        sent = {
            "model": self.model,
            "token_ids": list(request.tokens),
            "sampling_params": {"logprobs": 1, **_sampling(request)},
        }
        choice = _choice(await self._post("/inference/v1/generate", sent), where)
        tokens = _ids(choice.get("token_ids"), where, "choices[0].token_ids")
        told = choice.get("logprobs")
        content = told.get("content") if isinstance(told, dict) else None
        listed = [x.get("logprob") for x in content] if isinstance(content, list) else None
        mask = choice.get("sampling_mask")
        if not isinstance(mask, list) or len(mask) != len(tokens):
            _wrong(
                where,
                "sampling_mask",
                "none",
                "the kept tokens of each draw: start vLLM with --return-sampling-mask",
            )
        kept = tuple(tuple(sorted(_ids(row, where, "sampling_mask"))) for row in mask)
        if any(token not in row for token, row in zip(tokens, kept)):
            _wrong(where, "sampling_mask", "a mask without the drawn token", "one that holds it")
        return _Answer(tokens, _logprobs(listed, len(tokens), where), kept, _finish(choice, where))

    # ---- checks ----

    async def check_logprobs(self, prompt: Sequence[int], temperature: float) -> None:
        """Raise UpstreamError if the server's log-probs do not follow the temperature (its raw mode)."""
        if temperature == 1.0:
            return
        tops = []
        for value in (1.0, temperature):
            sent = {"model": self.model, "prompt": list(prompt), "max_tokens": 1, "logprobs": 5}
            sent |= {"temperature": value, "return_tokens_as_token_ids": True, "add_special_tokens": False}
            told = _choice(await self._post("/v1/completions", sent), self.url).get("logprobs")
            top = told.get("top_logprobs") if isinstance(told, dict) else None
            tops.append(top[0] if isinstance(top, list) and top and isinstance(top[0], dict) else {})
        common = tops[0].keys() & tops[1].keys()
        if common and all(abs(tops[0][t] - tops[1][t]) < 1e-4 for t in common):
            raise UpstreamError(
                f"{self.url}: its log-probs are those before the temperature, also at temperature {temperature:g}; "
                "wanted those of the draw: start vLLM with --logprobs-mode processed_logprobs"
            )

    async def check_weights(self, tokens: Sequence[int], expected: Sequence[float]) -> float:
        """Mean |difference| (nats) of the server's and the trainer's log-probs of a text's tokens after the first.

        Raises UpstreamError if it is larger than `tolerance`: the server has other weights.
        """
        sent = {"model": self.model, "prompt": list(tokens), "max_tokens": 1, "prompt_logprobs": 0}
        choice = _choice(await self._post("/v1/completions", sent | {"add_special_tokens": False}), self.url)
        rows = choice.get("prompt_logprobs")
        where = f"{self.url}/completions"
        if not isinstance(rows, list) or len(rows) != len(tokens):
            _wrong(where, "prompt_logprobs", "none", f"one for each of {len(tokens)} tokens")
        told = [
            row.get(str(token), {}).get("logprob") if isinstance(row, dict) else None
            for row, token in zip(rows[1:], tokens[1:])
        ]
        theirs = _logprobs(told, len(expected), where)
        found = sum(abs(a - b) for a, b in zip(theirs, expected)) / max(1, len(expected))
        if found > self.settings.tolerance:
            raise UpstreamError(
                f"{self.url}: after the update its log-probs differ from the trainer's by {found:.3g} nats a token "
                f"(rollouts.server.tolerance: {self.settings.tolerance:g}): it serves other weights, or rounds much. "
                f"{GO_ON}"
            )
        return found

    # ---- weights ----

    async def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter under a name of its own and ask it from now on; the one before is unloaded.

        A new name for each version, and not `load_inplace`: cached prefixes belong to a name, and a server
        that restarted answers 404.
        """
        if name == self.adapter:
            self.model = name
            return
        try:
            await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        except UpstreamError as error:
            if "already" not in str(error):  # loaded before this process was killed
                raise
        before, self.adapter, self.model = self.adapter, name, name
        if before is not None:
            try:
                await self._post("/v1/unload_lora_adapter", {"lora_name": before})
            except UpstreamError as error:
                if error.status not in (400, 404):  # a server that was restarted has forgotten it
                    raise

    async def load_weights(self, version: str, path: str) -> None:
        """Read whole weights from a folder: pause, reload, forget cached prefixes, resume.

        Nothing is done if the server says that it has this version from this process. A failure after the pause
        leaves the server paused, so that nothing is drawn from half-loaded weights.
        """
        self.model = self.base
        if version == self.version:
            told = await self._send("GET", "/weight_info", None)
            if told.get("weight_version") == version:
                return
        self.version = None
        await self._post("/pause?mode=wait", {})
        await self._post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
        reset = await self._post("/reset_prefix_cache", {})
        if reset.get("success") is False:
            raise UpstreamError(
                f"{self.root}/reset_prefix_cache: the server kept prefixes of earlier weights"
            )
        await self._post("/update_weight_version", {"new_version": version})
        await self._post("/resume", {})
        self.version = version

    # ---- HTTP ----

    def _key(self) -> str | None:
        name = self.settings.key_env
        if name and not os.environ.get(name):
            raise UsageError(f"rollouts.server.key_env: the environment variable {name} is not set")
        return os.environ.get(name) if name else None

    async def _named(self) -> str:
        """The model id to ask: the one that is set, if the server lists it, or its first."""
        listed = (await self._send("GET", "/v1/models", None)).get("data")
        ids = [str(x.get("id")) for x in listed if isinstance(x, dict)] if isinstance(listed, list) else []
        wanted = self.settings.model or (ids[0] if ids else "")
        card = next((x for x in listed or () if isinstance(x, dict) and x.get("id") == wanted), {})
        self.context = whole_number(card.get("max_model_len"))
        if wanted not in ids:
            raise UpstreamError(
                f"{self.url}: serves {', '.join(ids) or 'no model'}; wanted rollouts.server.model: {wanted!r}"
            )
        return wanted

    async def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._send("POST", path, body)

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """One call, sent again after a failure of the server or the connection. Raises UpstreamError."""
        for attempt in range(self.settings.retries + 1):
            try:
                return await self._attempt(method, path, body)
            except UpstreamError as error:
                if not error.again:
                    raise
                if attempt == self.settings.retries:
                    raise UpstreamError(
                        f"{error}; sent {attempt + 1} times. {GO_ON}", status=error.status
                    ) from error
                await asyncio.sleep(min(MOST_WAIT_S, WAIT_S * 2**attempt) * random.uniform(0.5, 1))
        raise AssertionError("unreachable")

    async def _attempt(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        assert self._client is not None, "used outside of `connected`"
        where = f"{self.root}{path}"
        try:
            response = await self._client.request(
                method, where, content=None if body is None else json.dumps(body), headers=_JSON
            )
        except (httpx.RequestError, httpx.InvalidURL) as error:
            what = (
                f"silent for {self.settings.timeout_s:g} s" if isinstance(error, httpx.ReadTimeout) else error
            )
            raise UpstreamError(f"{where}: {type(error).__name__}: {what}", again=True) from error
        if response.status_code >= 400:
            try:
                told = json_object(response.content, where)
            except UpstreamError:
                told = {"message": response.text[:200]}
            raise told_error(
                f"{where}: HTTP {response.status_code}",
                told.get("error") or told.get("detail") or told,
                response.status_code,
            )
        if not response.content.lstrip().startswith(b"{"):
            if path.startswith("/v1/completions") or path.startswith("/inference"):
                raise UpstreamError(f"{where}: sent no JSON: {response.content[:80]!r}", again=True)
            return {}  # loading an adapter answers with a sentence
        try:
            return json_object(response.content, where)
        except UpstreamError as error:
            error.again = True
            raise


_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class _Answer:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    kept: tuple[tuple[int, ...], ...]
    finish: FinishReason


def _sampling(request: Request) -> dict[str, Any]:
    """The settings of a draw; stop texts stay in the answer's tokens, as the policy drew them."""
    decoding = request.decoding
    found: dict[str, Any] = {
        "max_tokens": decoding.max_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "stop_token_ids": sorted(request.stop_tokens),
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }
    optional = {
        "seed": decoding.seed,
        "top_k": decoding.top_k,
        "min_p": decoding.min_p or None,
        "stop": list(decoding.stop) or None,
    }
    return found | {name: value for name, value in optional.items() if value is not None}


def _choice(body: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UpstreamError(f"{where}: sent no choice", again=True)
    return choices[0]


def _ids(value: Any, where: str, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(x) is int and x >= 0 for x in value) or not value:
        _wrong(where, name, str(value)[:40], "token ids: vLLM 0.11 or later sends them (return_token_ids)")
    return tuple(value)


def _logprobs(value: Any, count: int, where: str) -> tuple[float, ...]:
    """Log-probs of `count` tokens. Raises UpstreamError for another number of them, or one that is no number."""
    found = value if isinstance(value, list) else []
    good = [x for x in found if isinstance(x, int | float) and math.isfinite(x)]
    if len(good) != count or len(found) != count:
        _wrong(where, "logprobs", f"{len(good)} numbers", f"one for each of {count} tokens")
    return tuple(min(float(x), 0.0) for x in good)


def _finish(choice: Mapping[str, Any], where: str) -> FinishReason:
    match choice.get("finish_reason"):
        case "stop":
            return "stop"
        case "length":
            return "length"
        case reason:
            raise UpstreamError(f"{where}: the answer ended with '{reason}'", again=True)


def _wrong(where: str, name: str, got: str, wanted: str) -> NoReturn:
    raise UpstreamError(f"{where}: {name}: got {got}, wanted {wanted}")
