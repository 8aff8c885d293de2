"""Rows as other tools publish them, under the column names used here.

OpenAI's preference fine-tuning and its old `function_call`, LLaMA-Factory (Alpaca with `history`, ShareGPT with calls and observations, pairs, `kto_tag`),
UltraFeedback (K answers with scores). In: a row. Out: a row of data/rows.py; a row of no such form stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
SCORES = ("overall_score", "score", "rating")
TALKS = ("messages", "conversations", "prompt", "completion", "chosen", "rejected")
MESSAGE_KEYS = frozenset(
    {
        "role",
        "from",
        "content",
        "value",
        "tool_calls",
        "tool_call_id",
        "name",
        "function_call",
        "weight",
        "reasoning_content",
        "reasoning",
        "thinking",
    }
)
"""Keys of a message that are read."""


def as_published(row: Row) -> Row:
    """The row under our names. Raises ValueError where a published form is broken."""
    for form in (_openai_pair, _functions, _scored, _history, _thumbs, _pair):
        row = form(row)
    return {
        k: v for k, v in row.items() if not (k == "tools" and isinstance(v, str) and v.strip() in ("", "[]"))
    }


def _openai_pair(row: Row) -> Row:
    given, best, worst = row.get("input"), row.get("preferred_output"), row.get("non_preferred_output")
    if not (isinstance(given, Mapping) and best and worst):
        return row
    tools = {"tools": given["tools"]} if given.get("tools") else {}
    return {"prompt": given.get("messages"), "chosen": best, "rejected": worst, **tools}


def _functions(row: Row) -> Row:
    """OpenAI's fine-tuning before tools: `functions` beside the messages."""
    if "tools" in row or not isinstance(row.get("functions"), list):
        return row
    return {k: v for k, v in row.items() if k != "functions"} | {"tools": row["functions"]}


def _scored(row: Row) -> Row:
    """UltraFeedback: `completions` are objects with `response` and a score; ranks follow the scores, ties included."""
    answers = row.get("completions")
    if "ranks" in row or not (
        isinstance(answers, list) and answers and all(isinstance(a, Mapping) for a in answers)
    ):
        return row
    if not all("response" in a for a in answers):
        return row
    name = next((s for s in SCORES if all(isinstance(a.get(s), int | float) for a in answers)), None)
    if name is None:
        raise ValueError(
            f"completions: have a response each, but none of {', '.join(SCORES)} as a number in all of them"
        )
    scores = [float(a[name]) for a in answers]
    order = sorted(set(scores), reverse=True)
    if len(order) < 2:
        raise ValueError(f"completions: all {len(scores)} have {name} {scores[0]:g}; wanted two that differ")
    rest = {k: v for k, v in row.items() if k not in ("completions", "instruction")}
    prompt = row.get("prompt", row.get("instruction"))
    return {
        **rest,
        "prompt": prompt,
        "completions": [a["response"] for a in answers],
        "ranks": [order.index(s) for s in scores],
    }


def _history(row: Row) -> Row:
    """LLaMA-Factory's Alpaca form with earlier turns: `history` is a list of [question, answer]."""
    earlier = row.get("history")
    if not isinstance(earlier, list) or not earlier or "instruction" not in row:
        return row
    if not all(isinstance(t, Sequence) and not isinstance(t, str) and len(t) == 2 for t in earlier):
        raise ValueError("history: wanted a list of [question, answer]")
    said = [
        {"role": role, "content": text}
        for turn in earlier
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    asked = "\n\n".join(str(row[k]) for k in ("instruction", "input") if row.get(k))
    rest = {k: v for k, v in row.items() if k not in ("history", "instruction", "input", "output")}
    answer = {"completion": row["output"]} if "output" in row and "chosen" not in row else {}
    if "chosen" in row:
        rest |= {
            k: [{"role": "assistant", "content": row[k]}]
            for k in ("chosen", "rejected")
            if isinstance(row.get(k), str)
        }
    return {**rest, **answer, "prompt": [*said, {"role": "user", "content": asked}]}


def _thumbs(row: Row) -> Row:
    """LLaMA-Factory's `kto_tag`: a label of the last answer."""
    if "kto_tag" not in row or "label" in row:
        return row
    rest = {k: v for k, v in row.items() if k != "kto_tag"} | {"label": row["kto_tag"]}
    talk = next((k for k in ("messages", "conversations") if isinstance(row.get(k), list)), None)
    if talk is not None and "completion" not in row:
        return {k: v for k, v in rest.items() if k != talk} | {"completion": row[talk]}
    if "instruction" in row and "output" in row:
        asked = "\n\n".join(str(row[k]) for k in ("instruction", "input") if row.get(k))
        rest = {k: v for k, v in rest.items() if k not in ("instruction", "input", "output")}
        return {**rest, "prompt": asked, "completion": row["output"]}
    return rest


def _pair(row: Row) -> Row:
    """LLaMA-Factory's preference: a conversation, and one message each as `chosen` and `rejected`."""
    pair = {name: row.get(name) for name in ("chosen", "rejected")}
    if not all(isinstance(message, Mapping) for message in pair.values()):
        return row
    talk = next((name for name in ("prompt", "conversations", "messages") if name in row), None)
    prompt = {"prompt": row[talk]} if talk else {}
    rest = {k: v for k, v in row.items() if k != talk}
    return {**rest, **prompt, **{name: [message] for name, message in pair.items()}}


def message_of(raw: Row) -> Row:
    """A message as OpenAI writes it today: `function_call` (LLaMA-Factory's, or OpenAI's old one) becomes a tool call."""
    if isinstance(raw.get("function_call"), Mapping) and not raw.get("tool_calls"):
        rest = {k: v for k, v in raw.items() if k != "function_call"}
        return {**rest, "tool_calls": [{"function": raw["function_call"]}]}
    if raw.get("role") == "function":
        return {**raw, "role": "tool"}
    if raw.get("from") != "function_call" or "role" in raw:
        return raw
    try:
        found = json.loads(str(raw.get("value")))
    except ValueError:
        raise ValueError(
            'function_call: is text that is not JSON; wanted {"name": ..., "arguments": {...}}'
        ) from None
    calls = found if isinstance(found, list) else [found]
    return {"role": "assistant", "content": None, "tool_calls": [{"function": call} for call in calls]}


def unread_keys(row: Any) -> Iterator[str]:
    """Keys of the row's messages that nothing reads, so that a misspelled `weight` is noticed."""
    if not isinstance(row, Mapping):
        return
    for name in TALKS:
        talk = row.get(name)
        for message in talk if isinstance(talk, list) else ():
            if isinstance(message, Mapping):
                yield from (
                    str(key)
                    for key, value in message.items()
                    if key not in MESSAGE_KEYS and value not in (None, [], "")
                )
