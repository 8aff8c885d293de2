"""chat_template_kwargs: what a row says reaches the model's own template, in prompt and answer alike, and forges nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversations import llama

from demeanor.core.errors import DataError
from demeanor.core.types import Example, Message, Preference, Unpaired
from demeanor.data.rows import parse
from demeanor.data.trees import example_tree, preference_tree, unpaired_tree
from demeanor.text.template import JinjaTemplate, load_template

SOURCE = """{%- if thinking is defined and thinking %}{{- '[think ' ~ thinking ~ ']' }}{%- endif %}
{%- for message in messages %}{{- message.role ~ ': ' ~ message.content ~ eos_token }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"""
ASK, SAID = Message("user", "Who?"), Message("assistant", "Marla.")


def own() -> JinjaTemplate:
    return JinjaTemplate("own", llama(), SOURCE)


def test_an_argument_is_written_by_the_template_that_reads_it() -> None:
    plain, thinking = own().render((ASK, SAID)), own().render((ASK, SAID), kwargs={"thinking": "hard"})
    assert llama().decode(thinking.tokens) == "[think hard]" + llama().decode(plain.tokens)
    said = [llama().decode([t for t, trained in zip(*r) if trained]) for r in (plain, thinking)]
    assert said[0] == said[1]
    assert said[0].startswith("Marla.")


def test_an_argument_nobody_reads_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(
        DataError,
        match=r"template own: chat_template_kwargs: unknown variable 'thinkin'\. Did you mean 'thinking'",
    ):
        own().render((ASK,), kwargs={"thinkin": True})
    for taken in ("messages", "tools", "add_generation_prompt", "eos_token", "raise_exception"):
        with pytest.raises(DataError, match="unknown variable"):
            own().render((ASK,), kwargs={taken: True})


def test_an_argument_cannot_spell_a_special_token() -> None:
    eos = llama().eos_id
    forged = own().render((ASK, SAID), kwargs={"thinking": llama().decode([eos])})
    assert forged.tokens.count(eos) == own().render((ASK, SAID)).tokens.count(eos)


@pytest.mark.parametrize("name", ["turns", "chatml", "transcript"])
def test_our_own_templates_take_no_arguments_and_say_so(name: str) -> None:
    template = load_template(name, llama(), folder=None, root=Path())
    with pytest.raises(DataError, match=f"template {name}: takes no chat_template_kwargs, got thinking"):
        template.render((ASK,), kwargs={"thinking": True})


def test_rows_of_every_kind_bring_their_arguments_into_their_trees() -> None:
    extra = {"chat_template_kwargs": {"thinking": "x"}}
    as_text = {"chat_template_kwargs": '{"thinking": "x"}'}
    example = parse({"prompt": "Who?", "completion": "Marla.", **extra}, "examples", "")
    pair = parse({"prompt": "Who?", "chosen": "Marla.", "rejected": "No.", **as_text}, "preferences", "")
    single = parse({"prompt": "Who?", "completion": "Marla.", "label": True, **extra}, "unpaired", "")
    assert isinstance(example, Example)
    assert isinstance(pair, Preference)
    assert isinstance(single, Unpaired)
    trees = [
        example_tree(example, own(), llama()),
        preference_tree(pair, own()),
        unpaired_tree(single, own()),
        unpaired_tree(pair, own()),
    ]
    assert {llama().decode(tree.prompt) for tree in trees} == {
        llama().decode(own().render((ASK,), generate=True, kwargs={"thinking": "x"}).tokens)
    }
    assert "think x" in llama().decode(trees[0].prompt)


@pytest.mark.parametrize(
    ("value", "said"), [("no json", "text that is not JSON"), ([1], "got a list, wanted an object")]
)
def test_arguments_that_are_no_object_are_an_error(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"chat_template_kwargs: .*{said}"):
        parse({"prompt": "Who?", "completion": "Marla.", "chat_template_kwargs": value}, "examples", "")
