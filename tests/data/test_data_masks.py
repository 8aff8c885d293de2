"""What is trained, for any conversation: assistants' words and the end of their turns, after exactly the prompt that serving sends."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from functools import cache

import pytest
from harbour import template as named
from harbour import tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Messages, Preference, ToolCall, ToolSpec, Unpaired
from demeanor.data.preview import disagreements
from demeanor.data.rows import parse
from demeanor.data.trees import Branch, example_tree, preference_tree, unpaired_tree
from demeanor.text.template import JinjaTemplate, Template

JINJA = """{%- for m in messages %}{{- '[' ~ m.role ~ ']' ~ m.content }}
{%- for c in m.tool_calls or [] %}{{- '(' ~ c.function.name ~ c.function.arguments | tojson ~ ')' }}{%- endfor %}
{{- eos_token }}{%- endfor %}{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"""
FORGETFUL = """{%- for m in messages %}{{- '[' ~ m.role ~ ']' }}
{%- if m.role != 'assistant' or loop.last %}{{- m.content }}{%- endif %}{{- eos_token }}{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"""
"""As reasoning models' templates do: what an assistant said earlier is written otherwise once somebody answered."""
TEMPLATES = ["turns", "chatml", "transcript", "jinja"]
TOOLS = (ToolSpec("f", "", {"type": "object"}),)

# Every role has characters of its own, so a trained token tells whose it is.
ASKED, SAID, RESULT, RULE = "uvw", "QJZ", "789", "xyz"
asked, said, result, rule = (
    st.text(st.sampled_from(chars), min_size=1, max_size=6) for chars in (ASKED, SAID, RESULT, RULE)
)


@cache
def template(name: str) -> Template:
    return JinjaTemplate(name, tokenizer(), JINJA) if name == "jinja" else named(name)


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    found = [Message("system", draw(rule))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        found.append(Message("user", draw(asked)))
        if draw(st.booleans()):
            found += [
                Message("assistant", "", (ToolCall("c", "f", json.dumps({"Z": draw(said)})),)),
                Message("tool", draw(result), tool_call_id="c", name="f"),
            ]
        found.append(Message("assistant", draw(said)))
    return tuple(found)


def runs(branch: Branch) -> list[list[int]]:
    """The trained tokens of a branch, in runs."""
    grouped = itertools.groupby(zip(branch.tokens, branch.trained), key=lambda pair: pair[1])
    return [[token for token, _ in group] for trained, group in grouped if trained]


def ends(made: Template, run: list[int]) -> bool:
    return run[-1] in made.stop_tokens or any(tokenizer().decode(run).endswith(stop) for stop in made.stop)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(messages=conversations(), data=st.data())
def test_only_assistants_words_and_the_ends_of_their_turns_are_trained(
    name: str, messages: Messages, data: st.DataObject
) -> None:
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    first = data.draw(st.sampled_from(answers))
    made = template(name)
    tree = example_tree(Example(messages, trained_from=first, tools=TOOLS), made, tokenizer())
    found = runs(tree.branches[0])
    trained = [m for m in messages[first:] if m.role == "assistant"]
    assert len(found) == len(trained)
    for run, message in zip(found, trained):
        text = tokenizer().decode(run)
        own = message.content or json.loads(message.tool_calls[0].arguments)["Z"]
        assert "".join(c for c in text if c in SAID) == ("" if message.content else "Z") + own
        assert not set(text) & set(RESULT + RULE)
        assert ends(made, run)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60, deadline=None)
@given(messages=conversations(), other=said)
def test_a_tree_begins_with_what_serving_would_send_and_goes_on_with_the_whole(
    name: str, messages: Messages, other: str
) -> None:
    made, last = template(name), len(messages) - 1
    prompt, good, bad = messages[:last], messages[last:], (Message("assistant", other),)
    sent = tuple(made.render(prompt, TOOLS, generate=True).tokens)
    example = example_tree(Example(messages, trained_from=last, tools=TOOLS), made, tokenizer())
    pair = preference_tree(Preference(prompt, (good, bad), (0, 1), TOOLS), made)
    single = unpaired_tree(Unpaired(prompt, good, True, TOOLS), made)
    assert sent == example.prompt == pair.prompt == single.prompt
    assert example.branches[0] == pair.branches[0] == single.branches[0]
    whole = tuple(made.render(messages, TOOLS).tokens)
    assert whole[: len(sent) + len(example.branches[0].tokens)] == sent + example.branches[0].tokens
    assert disagreements([(Example(messages, trained_from=last, tools=TOOLS), example)], made) == []


@settings(max_examples=60, deadline=None)
@given(messages=conversations())
def test_a_template_that_rewrites_earlier_turns_names_the_message_or_trains_the_last_answer(
    messages: Messages,
) -> None:
    made = JinjaTemplate("forgetful", tokenizer(), FORGETFUL)
    answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
    if len(answers) > 1 and any(messages[i].content for i in answers[:-1]):
        spoken = next(i for i in answers if messages[i].content)
        with pytest.raises(DataError, match=rf"message {spoken} \(assistant\) cannot be trained"):
            made.render(messages, trained_from=spoken)
    tree = example_tree(Example(messages, trained_from=answers[-1]), made, tokenizer())
    assert tree.prompt == tuple(made.render(messages[:-1], generate=True).tokens)


def test_another_serving_template_is_found_out() -> None:
    row = Example((Message("user", "uv"), Message("assistant", "A")), trained_from=1, source="rows.jsonl:1")
    found = disagreements([(row, example_tree(row, template("turns"), tokenizer()))], template("chatml"))
    assert len(found) == 1
    assert found[0].startswith("rows.jsonl:1: differ at token 0 of 6 (trained) and 24 (served)")


# ---- defects of TRL 1.16's data preparation, which must not be here ----


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("ab ", "cd"), ("hello", "hello world"), ("", "a"), ("a", "a")]
)
def test_texts_without_a_prompt_are_never_split_between_characters(chosen: str, rejected: str) -> None:
    """TRL: ("hello", "hello world") got the prompt "hell"; an empty chosen was an UnboundLocalError."""
    with pytest.raises(ValueError, match="wanted"):
        parse({"chosen": chosen, "rejected": rejected}, "preferences", "")


def test_conversations_that_share_words_share_no_more_than_whole_messages() -> None:
    question = {"role": "user", "content": "Who?"}
    row = {
        "chosen": [question, {"role": "assistant", "content": "hello"}],
        "rejected": [question, {"role": "assistant", "content": "hello world"}],
    }
    found = parse(row, "preferences", "")
    assert isinstance(found, Preference)
    assert found.prompt == (Message("user", "Who?"),)
    assert [c[0].content for c in found.completions] == ["hello", "hello world"]


MIXED = {
    "prompt": "Who?",
    "chosen": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Marla."}],
    "rejected": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "No."}],
    "score": 3,
}
"""UltraFeedback's form: TRL took it for text or for a conversation, by the order of a set."""


def test_a_row_means_the_same_in_every_order_of_its_columns() -> None:
    wanted = Preference(
        (Message("user", "Who?"),),
        ((Message("assistant", "Marla."),), (Message("assistant", "No."),)),
        (0, 1),
    )
    assert {
        repr(parse({k: MIXED[k] for k in order}, "preferences", ""))
        for order in itertools.permutations(MIXED)
    } == {repr(wanted)}


def test_a_row_means_the_same_under_every_hash_seed() -> None:
    code = f"from demeanor.data.rows import parse; print(parse({MIXED!r}, 'preferences', ''))"
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2", "3")
    }
    assert said == {f"{parse(MIXED, 'preferences', '')}\n"}
