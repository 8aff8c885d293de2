"""A model of bytes for tests: its next-token logits are any function of everything it has read in a slot.

A wrong position, slot or prefix changes its answer.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import torch

from demeanor.model.llama import Config, KVCache

END = 256
VOCAB_SIZE = 257

Next = Callable[[tuple[int, ...]], torch.Tensor]


class ByteTokenizer:
    vocab_size = VOCAB_SIZE

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(b"<|end|>" if t == END else bytes([t]) for t in tokens).decode(
            "utf-8", errors="replace"
        )


def random_next(history: tuple[int, ...]) -> torch.Tensor:
    """Logits that depend on every token read, and on their order."""
    generator = torch.Generator().manual_seed(zlib.crc32(repr(history).encode()))
    return 3 * torch.randn(VOCAB_SIZE, generator=generator)


def endless_next(history: tuple[int, ...]) -> torch.Tensor:
    """Logits of a model that never ends an answer."""
    logits_V = random_next(history[-20:])
    logits_V[END] = -1e4
    return logits_V


def says(answers: dict[str, str]) -> Next:
    """A model that answers each prompt with its text and END, with certainty."""

    def logits(history: tuple[int, ...]) -> torch.Tensor:
        for prompt, answer in answers.items():
            whole = [*prompt.encode(), *answer.encode(), END]
            if (
                len(history) < len(whole)
                and tuple(whole[: len(history)]) == history
                and len(history) >= len(prompt.encode())
            ):
                return 50 * torch.nn.functional.one_hot(torch.tensor(whole[len(history)]), VOCAB_SIZE).float()
        raise AssertionError(f"nobody should ask after {history}")

    return logits


CONFIG = Config("llama", VOCAB_SIZE, 1, 1, 1, 1, 1, 1, 100_000, 1e-5, 1e4, True)


class ByteModel:
    """Llama's engine side: `prefill`, `step`, `head`; `calls` records each as (kind, slots, tokens).

    What it has read it keeps in the KV cache (token + 1, 0 is never written): it remembers only what the engine kept right.
    """

    config = CONFIG

    def __init__(self, next: Next) -> None:
        self.next = next
        self.calls: list[tuple[str, list[int], list[int]]] = []

    def head(self) -> torch.Tensor:
        return torch.eye(VOCAB_SIZE)

    def named_modules(self) -> list[tuple[str, torch.nn.Module]]:
        return []

    def _write(self, cache: KVCache, slot: int, start: int, tokens: list[int]) -> tuple[int, ...]:
        row = cache.keys[0][slot, 0, :, 0]
        row[start : start + len(tokens)] = torch.tensor(tokens) + 1.0
        history = (row[: start + len(tokens)].long() - 1).tolist()
        assert -1 not in history, f"slot {slot}: position {history.index(-1)} was never written"
        return tuple(history)

    def prefill(self, tokens_T: torch.Tensor, slot: int, start: int, cache: KVCache) -> torch.Tensor:
        self.calls.append(("prefill", [slot], tokens_T.tolist()))
        hidden_TD = torch.full((len(tokens_T), VOCAB_SIZE), torch.nan)
        hidden_TD[-1] = self.next(self._write(cache, slot, start, tokens_T.tolist()))
        return hidden_TD

    def step(
        self, tokens_N: torch.Tensor, slots_N: torch.Tensor, positions_N: torch.Tensor, cache: KVCache
    ) -> torch.Tensor:
        self.calls.append(("step", slots_N.tolist(), tokens_N.tolist()))
        assert len(set(slots_N.tolist())) == len(slots_N), "one token per slot"
        rows = zip(tokens_N.tolist(), slots_N.tolist(), positions_N.tolist())
        return torch.stack(
            [self.next(self._write(cache, slot, position, [token])) for token, slot, position in rows]
        )


def slow_answer(
    logits: Next, prompt: tuple[int, ...], num_tokens: int, stop_tokens: frozenset[int] = frozenset()
) -> list[int]:
    """The twin of a greedy engine: read everything, take the best, again."""
    history = list(prompt)
    while len(history) < len(prompt) + num_tokens:
        history.append(int(logits(tuple(history)).argmax()))
        if history[-1] in stop_tokens:
            break
    return history[len(prompt) :]
