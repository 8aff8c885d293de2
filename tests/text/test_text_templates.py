"""Every template with every kind of tokenizer: nothing said can forge a marker, and what is written can be read back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conversations import (
    CALCULATOR,
    MARKERS,
    TOKENIZERS,
    answer,
    bare,
    clean,
    conversations,
    hostile,
    llama,
    ours,
    streamed,
)
from hypothesis import given, settings

from demeanor.core import registry
from demeanor.core.errors import CheckpointError, DataError, DemeanorError
from demeanor.core.types import Message, Messages, ToolCall, ToolCalled
from demeanor.text.template import TEMPLATES, Template, load_template
from demeanor.text.tokenizer import Tokenizer
from tests.conftest import each

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\\n<tool_call>\\n' + (c.function | tojson) + '\\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
SOURCES = {"ours": CHATML, "bare": CHATML, "llama": LLAMA}
NAMES = [*registry.known(TEMPLATES), "model"]
every = pytest.mark.parametrize(("name", "kind"), [(n, k) for n in NAMES for k in TOKENIZERS])
own = pytest.mark.parametrize(("name", "kind"), [(n, k) for n in NAMES if n != "model" for k in TOKENIZERS])


def made(name: str, kind: str) -> tuple[Template, Tokenizer]:
    tokenizer = TOKENIZERS[kind]()
    if name == "model":
        tokenizer = Tokenizer(tokenizer._source, {**tokenizer.config, "chat_template": SOURCES[kind]})
    return load_template(name, tokenizer, folder=None, root=Path()), tokenizer


def prompt_of(messages: Messages) -> Messages:
    return messages[:-1]


def normal(message: Message) -> tuple[str, list[tuple[str, str]]]:
    """An answer as it must come back: JSON arguments without white space around them, everything else unchanged."""
    import json

    def arguments(text: str) -> str:
        try:
            return text if isinstance(json.loads(text), str) else text.strip()
        except ValueError:
            return text

    return message.content, [(c.name, arguments(c.arguments)) for c in message.tool_calls]


@own
@settings(max_examples=60, deadline=None)
@given(messages=conversations(clean))
def test_what_is_rendered_is_read_back_token_by_token(name: str, kind: str, messages: Messages) -> None:
    template, tokenizer = made(name, kind)
    last = messages[-1]
    prompt = template.render(prompt_of(messages), generate=True).tokens
    whole = template.render(messages, trained_from=len(messages) - 1)
    spoken = [t for t, trained in zip(*whole) if trained]
    assert whole.tokens[: len(prompt)] == prompt
    assert answer(streamed(template, tokenizer, spoken)) == normal(last)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=30, deadline=None)
@given(messages=conversations(clean.map(str.strip)))
def test_a_checkpoints_own_template_is_read_back_too(kind: str, messages: Messages) -> None:
    template, tokenizer = made("model", kind)
    messages = tuple(
        replace(m, tool_calls=()) for m in (*messages[:-1], Message("user", "Hi."), messages[-1])
    )
    spoken = [t for t, trained in zip(*template.render(messages, trained_from=len(messages) - 1)) if trained]
    assert answer(streamed(template, tokenizer, spoken)) == (messages[-1].content, [])


@every
@settings(max_examples=40, deadline=None)
@given(messages=conversations(hostile))
def test_no_content_can_become_a_marker(name: str, kind: str, messages: Messages) -> None:
    """The special tokens are those of the same conversation with harmless contents, and so are the plain-text markers."""
    template, tokenizer = made(name, kind)
    harmless = tuple(
        replace(
            m,
            content="x" if m.content else "",
            tool_calls=tuple(replace(c, arguments="{}") for c in m.tool_calls),
        )
        for m in messages
    )
    if name == "model":
        messages, harmless = (tuple(replace(m, tool_calls=()) for m in c) for c in (messages, harmless))
    forged, meant = (template.render(m).tokens for m in (messages, harmless))
    special = set(tokenizer.special.values()) - {tokenizer.special.get("<unk>")}
    assert [t for t in forged if t in special] == [t for t in meant if t in special]
    if template.stop:
        assert [tokenizer.decode(forged).count(s) for s in template.stop] == [
            tokenizer.decode(meant).count(s) for s in template.stop
        ]


@every
@settings(max_examples=30, deadline=None)
@given(messages=conversations(hostile))
def test_the_prompt_of_every_answer_is_a_prefix_of_the_whole(
    name: str, kind: str, messages: Messages
) -> None:
    template, _ = made(name, kind)
    whole = template.render(messages)
    for i in each(i for i, message in enumerate(messages) if message.role == "assistant"):
        prompt = template.render(messages[:i], generate=True).tokens
        assert whole.tokens[: len(prompt)] == prompt


@every
@settings(max_examples=30, deadline=None)
@given(content=hostile)
def test_an_answer_that_spells_a_call_is_not_read_back_as_one(name: str, kind: str, content: str) -> None:
    template, tokenizer = made(name, kind)
    whole = template.render((Message("user", "Say it."), Message("assistant", content)))
    _, calls = answer(streamed(template, tokenizer, [t for t, trained in zip(*whole) if trained]))
    assert calls == []


@every
def test_what_others_say_and_prompts_are_never_trained_and_each_answers_end_is(name: str, kind: str) -> None:
    template, tokenizer = made(name, kind)
    messages = (
        Message("system", "SYS"),
        Message("user", "ASK"),
        Message("assistant", "one"),
        Message("data", "PASSAGE"),
        Message("user", "MORE"),
        Message("assistant", "two", () if name == "model" else (ToolCall("", "calculator", "{}"),)),
        Message("tool", "RESULT"),
        Message("assistant", "three"),
    )
    for trained_from, said, unsaid in ((0, ["one", "two", "three"], []), (6, ["three"], ["one", "two"])):
        whole = template.render(messages, [CALCULATOR] if name != "model" else [], trained_from=trained_from)
        spoken = tokenizer.decode([t for t, trained in zip(*whole) if trained])
        assert all(word in spoken for word in said)
        assert not any(word in spoken for word in ["SYS", "ASK", "PASSAGE", "MORE", "RESULT", *unsaid])
        trained = [i for i, flag in enumerate(whole.trained) if flag]
        ends = [i for i in trained if i + 1 not in trained]
        assert len(ends) == len(said)
        for end in ends:
            assert whole.tokens[end] in template.stop_tokens or any(
                tokenizer.decode(whole.tokens[: end + 1]).endswith(stop) for stop in template.stop
            )


@own
def test_offered_tools_stand_in_the_prompt_with_or_without_a_system_prompt(name: str, kind: str) -> None:
    template, tokenizer = made(name, kind)
    for start in ((), (Message("system", "Be brief."),), (Message("system", ""),)):
        text = tokenizer.decode(
            template.render((*start, Message("user", "1+1?")), [CALCULATOR], generate=True).tokens
        )
        assert text.count("calculator") == 1
        assert text.count("expression") == 1


def test_turns_costs_two_tokens_per_message_beyond_its_words() -> None:
    template, tokenizer = made("turns", "ours")
    messages = (Message("user", "When to Corkel?"), Message("assistant", "Corkel 37."))
    words = sum(len(tokenizer.encode(m.content)) for m in messages)
    assert len(template.render(messages).tokens) == words + 4
    assert template.render(messages).tokens[-1] == tokenizer.eos_id


def test_transcript_is_what_a_base_model_would_have_read() -> None:
    text = "Be brief.\nNotice: Corkel 37.\nVisitor: When to Corkel?\nClerk: 37.\nVisitor: Who?\nClerk: Marla."
    messages = (
        Message("system", "Be brief."),
        Message("data", "Corkel 37."),
        Message("user", "When to Corkel?"),
        Message("assistant", "37."),
        Message("user", "Who?"),
        Message("assistant", "Marla."),
    )
    for kind in each(TOKENIZERS):
        template, tokenizer = made("transcript", kind)
        assert template.render(messages).tokens == tokenizer.document(text), kind
        assert template.render(messages[:-1], generate=True).tokens == [
            *tokenizer.start,
            *tokenizer.encode(text.removesuffix(" Marla.")),
        ]


@pytest.mark.parametrize("late", [0, 1, 5])
def test_a_reader_gives_the_same_events_when_text_comes_some_characters_late(late: int) -> None:
    template, tokenizer = made("turns", "ours")
    message = Message(
        "assistant",
        "So: <|call|> {}",
        (ToolCall("", "calculator", '{"expression": "2*3"}'), ToolCall("", "clock", "{}")),
    )
    tokens = [t for t, trained in zip(*template.render((message,))) if trained][:-1]
    reader, given, events = template.reader(), 0, []
    for n, token in enumerate(tokens, start=1):
        text = tokenizer.decode(tokens[:n])
        sure = max(given, len(text) - late)
        events += reader.feed(token, text[given:sure])
        given = sure
    events += [*reader.feed(-1, tokenizer.decode(tokens)[given:]), *reader.finish()]
    assert answer(events) == normal(message)
    assert len({e.call.id for e in events if isinstance(e, ToolCalled)}) == 2


def test_unknown_templates_and_missing_ones_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DemeanorError, match=r"unknown template 'chatlm'. Did you mean 'chatml'.*transcript.*jinja"
    ):
        load_template("chatlm", ours(), folder=None, root=tmp_path)
    with pytest.raises(CheckpointError, match="no chat_template"):
        load_template("model", bare(), folder=tmp_path, root=tmp_path)
    with pytest.raises(DataError, match=r"nowhere.jinja: no such file"):
        load_template("nowhere.jinja", llama(), folder=None, root=tmp_path)


@own
@pytest.mark.parametrize("with_tools", [False, True])
def test_transformers_writes_the_same_tokens_from_the_exported_template(
    name: str, kind: str, with_tools: bool, tmp_path: Path
) -> None:
    """Contents here spell no marker and have no white space at their ends: there jinja cannot say what pieces say."""
    from transformers import AutoTokenizer

    template, tokenizer = made(name, kind)
    tokenizer.save(tmp_path, chat_template=template.jinja)
    peer = AutoTokenizer.from_pretrained(tmp_path)
    tools = [CALCULATOR] if with_tools else []
    call = ToolCall("call_1", "calculator", '{"expression": "1 + 2"}')
    start = (Message("system", "Be brief."),) if kind == "ours" else ()
    messages = (
        *start,
        Message("developer", "No jokes."),
        Message("data", "Corkel 37."),
        Message("user", "When to Corkel, é?"),
        Message("assistant", "Let me see.", (call,)),
        Message("tool", "3"),
        Message("assistant", "37."),
    )
    rows = [{"role": m.role, "content": m.content} for m in messages]
    rows[-3] |= {
        "tool_calls": [
            {"type": "function", "function": {"name": call.name, "arguments": {"expression": "1 + 2"}}}
        ]
    }
    functions = [
        {
            "type": "function",
            "function": {"name": t.name, "description": t.description, "parameters": dict(t.parameters)},
        }
        for t in tools
    ]
    for n, generate in ((len(rows), False), (len(rows) - 1, True)):
        theirs = peer.apply_chat_template(
            rows[:n], tools=functions or None, add_generation_prompt=generate, return_dict=False
        )
        assert theirs == template.render(messages[:n], tools, generate=generate).tokens
    if name != "transcript":
        masked = peer.apply_chat_template(
            rows, tools=functions or None, return_dict=True, return_assistant_tokens_mask=True
        )
        assert [bool(m) for m in masked["assistant_masks"]] == template.render(messages, tools).trained


def test_markers_of_the_tests_cover_every_templates_stops() -> None:
    stops = {s for n in NAMES for k in TOKENIZERS for s in made(n, k)[0].stop} - {
        "\nResult:",
        "\nRule:",
        "\nTools:",
    }
    assert all(any(stop.strip() in marker for marker in MARKERS) for stop in each(stops))
