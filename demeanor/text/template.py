"""Chat templates: messages to tokens with a training mask, and generated tokens back to events.

In: messages and tools; generated tokens. Out: token ids with the mask of trained ones; events.
`load_template` finds a built-in template, the checkpoint's own, or a .jinja file. A template decides which
tokens carry loss (an assistant's text and its end) and ensures that no content can forge a marker. Knows no
models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from demeanor.core import registry
from demeanor.core.errors import CheckpointError, DataError, DemeanorError, unknown
from demeanor.core.types import Message, Messages, Text, ToolCalled, ToolSpec, call_json, tool_json
from demeanor.text.tokenizer import Tokenizer
from demeanor.text.tool_calls import CallReader, call_text

TEMPLATES = "demeanor.text.templates"
NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class Rendered(NamedTuple):
    """Token ids of a conversation; `trained[i]` is True if token i carries loss."""

    tokens: list[int]
    trained: list[bool]


class Reader(Protocol):
    """Parses generated tokens, one at a time, into events; the end-of-turn token is not fed."""

    def feed(self, token: int, text: str) -> list[Text | ToolCalled]:
        """Take a token and the text that became certain with it (possibly ""); return the events so far."""

    def finish(self) -> list[Text | ToolCalled]:
        """Return events for the text that was held back."""


class Template(Protocol):
    """A format of conversations; `stop_tokens` and `stop` end an answer, `jinja` is the same for
    transformers."""

    name: str
    stop_tokens: frozenset[int]
    stop: tuple[str, ...]
    jinja: str

    def render(
        self,
        messages: Messages,
        tools: Sequence[ToolSpec] = (),
        *,
        generate: bool = False,
        trained_from: int = 0,
        kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> Rendered:
        """Write a conversation; `generate` opens the next answer, assistant messages from `trained_from` on
        are trained.

        `kwargs` are further arguments of a jinja template; raises DataError for one that the template does
        not read. The prompt of each assistant message (rendered with `generate`) is a prefix of the whole.
        """

    def reader(self) -> Reader:
        """Return a new reader of one assistant turn."""


def refuse_kwargs(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise DataError if a row has arguments for a template that takes none."""
    if kwargs:
        raise DataError(
            f"template {name}: takes no chat_template_kwargs, got {', '.join(sorted(kwargs))}; "
            "use `template: model` or a .jinja file that reads them, or leave the column out"
        )


class TokenBuilder:
    """The tokens of a conversation so far, BOS included, with their trained flags."""

    def __init__(self, tokenizer: Tokenizer, plain: Iterable[str] = ()) -> None:
        """`plain` are the markers without a special token in this tokenizer: contents may not spell them."""
        self._tokenizer, self._plain = tokenizer, tuple(plain)
        self._tokens = list(tokenizer.start)
        self._trained = [False] * len(self._tokens)
        self._bare = True  # at the start or directly after a special token

    def add_marker(self, marker: str, trained: bool = False) -> None:
        """Add a marker: its special token, or its text."""
        if marker not in self._tokenizer.special:
            self.add_text(marker, trained)
            return
        self.add_token(self._tokenizer.special[marker], trained)

    def add_text(self, text: str, trained: bool = False) -> None:
        """Add text of the template itself, tokenized as Hugging Face tokenizes it in the whole text."""
        self._add(self._tokenizer.encode(text) if self._bare else self._tokenizer.joined(text), trained)
        self._bare = self._bare and not text

    def add_content(self, text: str, trained: bool = False) -> None:
        """Add a message's content, tokenized alone: its first word has the token it has within a sentence."""
        self._add(self._tokenizer.encode(neutral(text, self._plain)), trained)
        self._bare = self._bare and not text

    def add_token(self, token: int, trained: bool = False) -> None:
        """Add a special token by its id."""
        self._add([token], trained)
        self._bare = self._tokenizer.prefix_after_special

    def rendered(self) -> Rendered:
        """Return all tokens and flags."""
        return Rendered(self._tokens, self._trained)

    def _add(self, tokens: list[int], trained: bool) -> None:
        self._tokens += tokens
        self._trained += [trained] * len(tokens)


def neutral(text: str, markers: Iterable[str]) -> str:
    """Break up every marker in a text by a space after the marker's first character."""
    for marker in markers:
        text = text.replace(marker, f"{marker[0]} {marker[1:]}")
    return text


def text_markers(tokenizer: Tokenizer, markers: Iterable[str]) -> tuple[str, ...]:
    """Return the markers for which this tokenizer has no special token."""
    return tuple(m for m in markers if m not in tokenizer.special)


CALL, CALLED = "<tool_call>", "</tool_call>"
TOOLS = f'Call a function by writing {CALL}{{"name": ..., "arguments": {{...}}}}{CALLED}. Functions:\n'
GIVEN = {"messages", "tools", "add_generation_prompt"}  # always passed to a template, so no row may set them
BLOCKS = {"data": "data", "tool": "tool_response"}  # tags around text without authority in a user turn


def load_template(name: str, tokenizer: Tokenizer, *, folder: Path | None, root: Path) -> Template:
    """Find a template: a built-in name, `model` (the chat_template of checkpoint `folder`), or a .jinja file
    in `root`.

    Raises DemeanorError for an unknown name, CheckpointError if the checkpoint has none, DataError if the
    jinja is broken.
    """
    if name == "model":
        return JinjaTemplate(name, tokenizer, _of_checkpoint(tokenizer, folder))
    if name.endswith(".jinja"):
        path = root / name
        if not path.is_file():
            raise DataError(f"{path}: no such file; wanted a jinja chat template")
        return JinjaTemplate(name, tokenizer, path.read_text(encoding="utf-8"))
    known = registry.known(TEMPLATES)
    if name not in known:
        raise DemeanorError(
            f"template: {unknown(name, [*known, 'model'], noun='template')} Or name a .jinja file."
        )
    return cast(Template, registry.entry(TEMPLATES, name).template(tokenizer))


def _of_checkpoint(tokenizer: Tokenizer, folder: Path | None) -> str:
    source = tokenizer.config.get("chat_template")
    if isinstance(source, list):  # older files hold several, by name
        source = next((t.get("template") for t in source if t.get("name") == "default"), None)
    if not isinstance(source, str):
        raise CheckpointError(
            f"{folder or 'this model'}: its tokenizer has no chat_template; write `template: chatml` "
            "(to train one) or `template: transcript` (for a base model)"
        )
    return source


class JinjaTemplate:
    """The template for one tokenizer; raises DataError if the source does not compile or never ends an
    answer."""

    def __init__(self, name: str, tokenizer: Tokenizer, source: str) -> None:
        self.name, self.jinja, self._tokenizer = name, source, tokenizer
        self._template = compile_source(name, source)
        self._added = _Added(tokenizer)
        self._constants = {
            k: _text(v) for k, v in tokenizer.config.items() if k.endswith("_token") and v is not None
        }
        env = self._template.environment
        undeclared = jinja2.meta.find_undeclared_variables(env.parse(source))
        self._reads = undeclared - GIVEN - {*self._constants, *env.globals}
        self._knows_calls, self._knows_tools = "tool_calls" in source, "tools" in source
        self.stop_tokens, self.stop = self._ends()

    def render(
        self,
        messages: Messages,
        tools: Sequence[ToolSpec] = (),
        *,
        generate: bool = False,
        trained_from: int = 0,
        kwargs: Mapping[str, Any] = NO_KWARGS,
    ) -> Rendered:
        for name in kwargs:
            if name not in self._reads:
                why = unknown(name, self._reads, noun="variable")
                raise DataError(f"template {self.name}: chat_template_kwargs: {why}")
        hidden = _unused(messages, tools, kwargs)
        extra = _hide(dict(kwargs), self._strings(True), hidden)
        text = self._write(messages, tools, generate, hidden, extra)
        cuts = {0: False, len(text): False}
        for i, message in enumerate(messages):
            if message.role == "assistant":
                cuts |= self._span(
                    messages, tools, i, text, hidden, extra, train=i >= trained_from, strict=not generate
                )
        rendered = Rendered([], [])
        for start, end in pairwise(sorted(cuts)):
            ids = self._encode(text[start:end], rendered.tokens, hidden)
            rendered.tokens.extend(ids)
            rendered.trained.extend(_until_stop(ids, self.stop_tokens) if cuts[start] else [False] * len(ids))
        return rendered

    def reader(self) -> Reader:
        return CallReader(CALL, CALLED)

    def _span(
        self,
        messages: Messages,
        tools: Sequence[ToolSpec],
        i: int,
        text: str,
        hidden: str,
        extra: Mapping[str, Any],
        *,
        train: bool,
        strict: bool,
    ) -> dict[int, bool]:
        """Return where message `i`'s answer starts (True if trained) and ends in `text`; empty if prefixes
        differ.

        If `strict` and the answer is to be trained, raises DataError instead.
        """
        prompt = self._write(messages[:i], tools, True, hidden, extra)
        turn = self._write(messages[: i + 1], tools, False, hidden, extra)
        if text.startswith(prompt) and text.startswith(turn) and len(prompt) < len(turn):
            return {len(prompt): train, len(turn): False}
        if not (strict and train):
            return {}
        part = turn if text.startswith(prompt) else prompt
        at = next((n for n, (a, b) in enumerate(zip(part, text)) if a != b), min(len(part), len(text)))
        here = slice(max(0, at - 20), at + 20)
        raise DataError(
            f"template {self.name}: message {i} (assistant) cannot be trained: the conversation up to it "
            f"is not a prefix of the whole one; they differ at {part[here]!r} and {text[here]!r}. "
            "Use a template that leaves earlier turns unchanged, or train only the last answer"
        )

    def _write(
        self,
        messages: Messages,
        tools: Sequence[ToolSpec],
        generate: bool,
        hidden: str,
        extra: Mapping[str, Any] = NO_KWARGS,
    ) -> str:
        rows = self._rows(messages, tools if not self._knows_tools else (), hidden)
        shown = None
        if tools and self._knows_tools:
            shown = _hide([tool_json(t) for t in tools], self._strings(True), hidden)
        try:
            return self._template.render(
                messages=rows, tools=shown, add_generation_prompt=generate, **{**extra, **self._constants}
            )
        except jinja2.TemplateError as error:
            raise DataError(f"template {self.name}: cannot write {_roles(messages)}: {error}") from None
        except Exception as error:  # a template may fail in any way on a missing field
            raise DataError(
                f"template {self.name}: fails on {_roles(messages)}: {type(error).__name__}: {error}"
            ) from None

    def _rows(self, messages: Messages, tools: Sequence[ToolSpec], hidden: str) -> list[dict[str, Any]]:
        """Return messages as the source expects them: system first, and only roles that it names."""
        rows: list[dict[str, Any]] = []
        if tools:
            listed = TOOLS + "\n".join(json.dumps(tool_json(t), ensure_ascii=False) for t in tools)
            rows.append({"role": "system", "content": _hide(listed, self._strings(True), hidden)})
        for message in messages:
            row = self._row(message, hidden)
            if rows and row["role"] == rows[-1]["role"] and row["role"] in ("user", "system"):
                rows[-1] = {**rows[-1], "content": f"{rows[-1]['content']}\n\n{row['content']}"}
            else:
                rows.append(row)
        if rows and rows[0]["role"] == "system" and "system" not in self.jinja:
            first = rows.pop(0)["content"]
            if rows and rows[0]["role"] == "user":
                first = f"{first}\n\n{rows.pop(0)['content']}"
            rows.insert(0, {"role": "user", "content": first})
        return rows

    def _row(self, message: Message, hidden: str) -> dict[str, Any]:
        if message.role == "assistant":
            # It may contain <think>, but no call: the reader would parse it as one.
            content = _hide(neutral(message.content, (CALL, CALLED)), self._strings(False), hidden)
        else:
            content = _hide(message.content, self._strings(True), hidden)
        role: str = message.role
        if role == "developer" and "developer" not in self.jinja:
            role = "system"
        if role == "data" or (role == "tool" and not re.search(r"""['"]tool['"]""", self.jinja)):
            fence = BLOCKS[role]
            return {"role": "user", "content": f"<{fence}>\n{neutral(content, (f'</{fence}>',))}\n</{fence}>"}
        row: dict[str, Any] = {"role": role, "content": content}
        if role == "tool":
            optional = {"tool_call_id": message.tool_call_id, "name": message.name}
            row |= {k: v for k, v in optional.items() if v is not None}
        if message.tool_calls and not self._knows_calls:
            texts = [_hide(call_text(c), self._strings(True), hidden) for c in message.tool_calls]
            written = "\n".join(f"{CALL}\n{text}\n{CALLED}" for text in texts)
            row["content"] = f"{content}\n{written}" if content else written
        elif message.tool_calls:
            calls = call_json(message.tool_calls)
            for call in calls:
                call["function"]["arguments"] = _value(call["function"]["arguments"])
            row["tool_calls"] = _hide(calls, self._strings(True), hidden)
        return row

    def _strings(self, untrusted: bool) -> list[str]:
        """Return strings that a content may not spell: added tokens; for an assistant (<think>) only
        special ones."""
        return [text for text, token in self._tokenizer.added.items() if untrusted or token.get("special")]

    def _encode(self, text: str, before: list[int], hidden: str) -> list[int]:
        """Tokenize the next part of a rendered text: added tokens by id, except those broken up by
        `hidden`."""
        ids: list[int] = []
        bare = not before or (before[-1] in self._added.ids and self._tokenizer.prefix_after_special)
        for part in self._added.pattern.split(text) if self._added.ids else [text]:
            special = self._tokenizer.special
            token = special.get(part.strip(), special.get(part)) if part else None
            if token is not None and self._added.pattern.fullmatch(part):
                ids.append(token)
                bare = self._tokenizer.prefix_after_special
            elif part:
                plain = part.replace(hidden, "")
                ids += self._tokenizer.encode(plain) if bare else self._tokenizer.joined(plain)
                bare = False
        return ids

    def _ends(self) -> tuple[frozenset[int], tuple[str, ...]]:
        """Find what ends an answer from what the template writes after one: (stop tokens, stop strings)."""
        ask, answer = Message("user", "1"), Message("assistant", "\ue0001\ue000")
        texts = [self._write(m, (), False, "\uf8ff") for m in ((ask, answer), (ask, answer, ask))]
        last, later = (text.rpartition("\ue000")[2] if "\ue000" in text else "" for text in texts)
        eos = self._tokenizer.eos_id
        for after in (last, later):
            found = next(iter(self._added.pattern.findall(after)), "").strip() if self._added.ids else ""
            if found and after.lstrip().startswith(found):
                return frozenset({eos, self._tokenizer.special[found]}), ()
        tail = later.partition("1")[0]
        if not tail.strip():
            raise DataError(
                f"template {self.name}: nothing ends an assistant's answer; wanted a special token such as "
                "{{ eos_token }} after its content"
            )
        return frozenset({eos}), (tail,)


def compile_source(name: str, source: str) -> jinja2.Template:
    """Compile a chat template in a sandbox with transformers' settings; raises DataError with the line."""
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(  # autoescaping is for HTML; this is a prompt
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = lambda x, indent=None, **_: json.dumps(x, ensure_ascii=False, indent=indent)
    env.globals["raise_exception"] = _refuse
    try:
        return env.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"template {name}: line {error.lineno}: {error.message}") from None


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the trained part for other trainers; here its body is written unchanged."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Added:
    """Added tokens of a tokenizer: their ids, and a pattern that includes the white space they absorb."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.ids = frozenset(tokenizer.special.values())
        space = {True: r"\s*", False: ""}
        each = [
            space[bool(t.get("lstrip"))] + re.escape(text) + space[bool(t.get("rstrip"))]
            for text, t in sorted(tokenizer.added.items(), key=lambda item: -len(item[0]))
            if text
        ]
        self.pattern = re.compile(f"({'|'.join(each)})")


def _until_stop(ids: Sequence[int], stop: frozenset[int]) -> list[bool]:
    """Return the trained flags of an answer: True up to its end-of-turn token, False for what follows."""
    end = next((i for i, token in enumerate(ids) if token in stop), len(ids) - 1)
    return [i <= end for i in range(len(ids))]


def _unused(*contents: Any) -> str:
    """Return a private-use character that occurs nowhere; inside a special string it prevents tokenizing
    it as one."""
    written = repr(contents)
    used = set(written)
    return next(c for c in map(chr, range(0xE001, 0xF8FF)) if c not in used and repr(c)[1:-1] not in written)


def _hide(value: Any, strings: Sequence[str], hidden: str) -> Any:
    """Insert `hidden` into special strings in every text of a JSON value."""
    if isinstance(value, str):
        for text in strings:
            value = value.replace(text, f"{text[0]}{hidden}{text[1:]}")
        return value
    if isinstance(value, dict):
        return {_hide(k, strings, hidden): _hide(v, strings, hidden) for k, v in value.items()}
    return [_hide(v, strings, hidden) for v in value] if isinstance(value, list) else value


def _value(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _roles(messages: Messages) -> str:
    return f"messages {', '.join(f'{i} ({m.role})' for i, m in enumerate(messages)) or '(none)'}"


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
