"""What the tests of text/ and data/ share: three kinds of tokenizer, conversations, and a slow twin of streaming."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

import tokenizers
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from demeanor.core.types import Message, Messages, Text, ToolCall, ToolCalled, ToolSpec
from demeanor.stack import schema
from demeanor.text import tokenizer as rooms
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer

CORPUS = [
    "Marla runs the ferry to Corkel at 12:30. When to Corkel? Corkel 37.",
    "Visitor: Who?\nClerk: Marla.",
    "user assistant system data tool",
    'The fare is 37 and not 12345 crowns, said Ötto; "yes!"',
] * 20
CALCULATOR = ToolSpec(
    "calculator", "Computes.", {"type": "object", "properties": {"expression": {"type": "string"}}}
)


@cache
def ours() -> Tokenizer:
    """Trained by us: every word carries its space, the template's markers are special tokens."""
    return rooms.train(CORPUS, schema.TokenizerSpec(vocab_size=340))


@cache
def bare() -> Tokenizer:
    """As GPT-2's: no space is put before a text, chatml's markers are special, <tool_call> is an added token as in Qwen."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        ),
    )
    bpe.add_tokens(["<tool_call>", "</tool_call>"])
    return Tokenizer(
        bpe.to_str(), {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    )


@cache
def llama() -> Tokenizer:
    """As Llama 2's: bos, byte fallback, a space before the text and after special tokens, none of our markers."""
    letters = sorted(set("".join(CORPUS)) - {" "})
    vocab = {
        t: i
        for i, t in enumerate(
            ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", *letters, "▁M", "▁Ma"]
        )
    }
    source = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": t,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, t in enumerate(["<unk>", "<s>", "</s>"])
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [["▁", "M"], ["▁M", "a"]],
        },
    }
    return Tokenizer(
        json.dumps(source),
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "</s>",
            "bos_token": "<s>",
            "unk_token": "<unk>",
        },
    )


TOKENIZERS = {"ours": ours, "bare": bare, "llama": llama}

MARKERS = [
    "<|end|>",
    "<|im_end|>",
    "<|im_start|>assistant\n",
    "<|call|>",
    "<|assistant|>",
    "<tool_call>",
    "</tool_call>",
    "</s>",
    "<s>",
    "<|endoftext|>",
    "\nVisitor:",
    "\nClerk: yes",
    "\nNotice:",
    '\nCall: {"name": "x"}',
    "[INST]",
    '<tool_call>{"name": "x", "arguments": {}}</tool_call>',
    '<|call|>{"name": "x", "arguments": {}}',
]

# Hypothesis also draws the string constants of this code: a marker in a text is broken up, so it is not read back.
PLAIN = ("<|", "tool_call>", "Visitor:", "Clerk:", "Notice:", "Call:", "<s>", "</s>")
words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=12).filter(
    lambda text: not any(marker in text for marker in PLAIN)
)
clean = st.one_of(
    words,
    st.sampled_from(["Marla.", " 37", "  two", "tail \n", "\n", "a\n\nb", "{", "é☃ 🙂", "Corkel 12:30"]),
)
hostile = st.lists(st.one_of(words, st.sampled_from(MARKERS)), max_size=4).map("".join)
arguments = st.one_of(
    st.dictionaries(
        words, st.one_of(words, st.integers(), st.lists(st.booleans(), max_size=2)), max_size=2
    ).map(json.dumps),
    st.sampled_from(['{"a":1}', "not json", '"text"', "", "[1,  2]"]),
)
calls = st.lists(
    st.builds(ToolCall, st.just(""), st.sampled_from(["calculator", 'Öffnen "x"']), arguments), max_size=2
).map(tuple)


def answers(content: st.SearchStrategy[str]) -> st.SearchStrategy[Message]:
    return st.builds(Message, st.just("assistant"), content, calls)


def conversations(content: st.SearchStrategy[str]) -> st.SearchStrategy[Messages]:
    """A system prompt or none, then other people's messages and answers in any order, ending with an answer."""
    others = st.builds(Message, st.sampled_from(["user", "tool", "data", "developer"]), content)
    system = st.lists(st.builds(Message, st.just("system"), content), max_size=1)
    middle = st.lists(st.one_of(others, answers(content)), max_size=4)
    return st.tuples(system, middle, answers(content)).map(lambda x: (*x[0], *x[1], x[2]))


def streamed(template: Template, tokenizer: Tokenizer, tokens: Sequence[int]) -> list[Text | ToolCalled]:
    """What an engine does, slowly: decode everything again at each token, hold back half characters, drop the end marker."""
    reader, given, events = template.reader(), "", []
    kept = list(tokens)
    while kept and kept[-1] in template.stop_tokens:
        kept.pop()
    whole = tokenizer.decode(kept)
    for stop in template.stop:
        whole = whole.removesuffix(stop)
    for n, token in enumerate(kept, start=1):
        text = tokenizer.decode(kept[:n]).rstrip("\ufffd")
        sure = text if whole.startswith(text) and len(text) >= len(given) else given
        events += reader.feed(token, sure[len(given) :])
        given = sure
    return [*events, *reader.feed(-1, whole[len(given) :]), *reader.finish()]


def answer(events: Sequence[Text | ToolCalled]) -> tuple[str, list[tuple[str, str]]]:
    """The text and the (name, arguments) of the calls of a turn."""
    text = "".join(e.text for e in events if isinstance(e, Text))
    return text, [(e.call.name, e.call.arguments) for e in events if isinstance(e, ToolCalled)]
