"""No field that a client writes becomes a special token, in any template and with any tokenizer."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from conversations import TOKENIZERS

from demeanor.core import registry
from demeanor.core.types import Message, Messages, ToolCall, ToolSpec
from demeanor.text.template import TEMPLATES, JinjaTemplate, Template, load_template
from demeanor.text.tokenizer import Tokenizer

PRINTS_ALL = (
    "{{ tools | tojson }}{% for t in tools or [] %}{{ t.function.name }} {{ t.function.description }} "
    "{% for k, v in t.function.parameters.properties.items() %}{{ k }} {{ v }}{% endfor %}{% endfor %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }} {{ m.name }} {{ m.tool_call_id }} "
    "{% for c in m.tool_calls or [] %}{{ c.id }} {{ c.function.name }} {{ c.function.arguments }}{% endfor %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
FIELDS = (
    "system", "user", "assistant", "tool", "result name", "result id", "call id", "call name", "argument name",
    "argument", "raw arguments", "tool name", "description", "parameter name", "parameter description", "enum",
)  # fmt: skip


def conversation(text: str, *fields: str) -> tuple[Messages, tuple[ToolSpec, ...]]:
    """A conversation in which these fields are the text, and the others are plain."""

    def at(field: str) -> str:
        return text if field in fields else "plain"

    arguments = json.dumps({at("argument name"): at("argument")})
    call = ToolCall(
        at("call id"), at("call name"), at("raw arguments") if "raw arguments" in fields else arguments
    )
    tool = ToolSpec(
        at("tool name"),
        at("description"),
        {
            "type": "object",
            "properties": {
                at("parameter name"): {
                    "type": "string",
                    "description": at("parameter description"),
                    "enum": [at("enum")],
                }
            },
        },
    )
    messages = (
        Message("system", at("system")),
        Message("user", at("user")),
        Message("assistant", at("assistant"), (call,)),
        Message("tool", at("tool"), tool_call_id=at("result id"), name=at("result name")),
        Message("user", "plain"),
    )
    return messages, (tool,)


def template_of(name: str, tokenizer: Tokenizer) -> Template:
    if name == "prints all":
        return JinjaTemplate(name, tokenizer, PRINTS_ALL)
    return load_template(name, tokenizer, folder=None, root=None)  # type: ignore[arg-type]


def specials(
    template: Template, tokenizer: Tokenizer, messages: Messages, tools: tuple[ToolSpec, ...]
) -> Counter[int]:
    ids = set(tokenizer.special.values())
    return Counter(t for t in template.render(messages, tools, generate=True).tokens if t in ids)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", [*registry.known(TEMPLATES), "prints all"])
def test_a_special_token_that_a_field_spells_is_plain_text(name: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    template = template_of(name, tokenizer)
    assert tokenizer.special
    spelled = "".join(tokenizer.special)
    for field in FIELDS:
        plain = specials(template, tokenizer, *conversation("harmless", field))
        forged = specials(template, tokenizer, *conversation(spelled, field))
        assert forged == plain, field
    assert specials(template, tokenizer, *conversation(spelled, *FIELDS)) == specials(
        template, tokenizer, *conversation("harmless", *FIELDS)
    )


def test_the_template_of_this_test_prints_every_field() -> None:
    tokenizer = TOKENIZERS["bare"]()
    template = template_of("prints all", tokenizer)
    for field in FIELDS:
        tokens = template.render(*conversation("needle", field), generate=True).tokens
        assert "needle" in tokenizer.decode(tokens), field
