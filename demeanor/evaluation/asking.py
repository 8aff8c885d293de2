"""How an item is put to a variant: one turn; or the reading of given choices; or a dialogue whose later questions wait for answers.

In: a respond, a turn, an item. Out: one Completion. A `choice` or `likelihood` item is read as raw text, prefix and prefix + choice,
nothing said (`Decoding.prompt_logprobs`); a `judged` item with `turns` goes on asking. It refuses to know how an answer is scored.
"""

from __future__ import annotations

from dataclasses import replace

from demeanor.types import (
    Completion,
    Decoding,
    Event,
    Item,
    Message,
    PromptRead,
    Refusal,
    Respond,
    Turn,
    complete,
    fold,
)

READING = Decoding(temperature=0.0, max_tokens=0, prompt_logprobs=0)
READ = frozenset({"choice", "likelihood"})
"""Scorers whose items are read and not answered."""
NO_TOKENS: tuple[int, ...] = ()
"""As `raw` of a turn: the text of its message stands for itself, and the weights' own tokenizer reads it."""


async def ask(respond: Respond, turn: Turn, item: Item) -> Completion:
    """The variant's answer to an item, with the events of all that was asked for it."""
    if item.scorer in READ:
        return await read_choices(
            respond, turn, [str(x) for x in item.target.get("choices", [item.target.get("text", "")])]
        )
    later = item.target.get("turns", ()) if item.scorer == "judged" else ()
    return await dialogue(respond, turn, [str(x) for x in later]) if later else await complete(respond, turn)


async def read_choices(respond: Respond, turn: Turn, choices: list[str]) -> Completion:
    """How likely each choice is after the turn's last message: a PromptRead of the prefix and of prefix + choice; stops at a refusal."""
    prefix, events = turn.messages[-1].content, list[Event]()
    for text in (prefix, *(prefix + choice for choice in choices)):
        asked = replace(turn, messages=(Message("user", text),), tools=(), decoding=READING, raw=NO_TOKENS)
        found = [event async for event in respond(asked)]
        events += found
        if not any(isinstance(e, PromptRead) for e in found) or any(isinstance(e, Refusal) for e in found):
            break
    return fold(events)


async def dialogue(respond: Respond, turn: Turn, later: list[str]) -> Completion:
    """The answer to the last of several user turns; each waits for the answer before, and a refused one is an answer too."""
    done = await complete(respond, turn)
    events, answers = list(done.events), [done.text]
    for text in later:
        turn = replace(
            turn, messages=(*turn.messages, Message("assistant", done.text), Message("user", text))
        )
        done = await complete(respond, turn)
        events += done.events
        answers.append(done.text)
    whole = fold(events)
    return replace(
        whole,
        text="\n\n".join(f"[{n}] {answer}" for n, answer in enumerate(answers, 1)),
        refusal=done.refusal,
    )
