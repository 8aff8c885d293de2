"""Chat templates: messages to tokens with a training mask, and generated tokens back to events.

In: messages and tools; generated tokens. Out: token ids with the mask of trained ones; events.
`load_template` finds a built-in template, the checkpoint's own, or a .jinja file. A template decides which
tokens carry loss (an assistant's text and its end) and ensures that no content can forge a marker. Knows no
models.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import islice, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, cast

import jinja2

from demeanor.core import registry
from demeanor.core.errors import CheckpointError, DataError, DemeanorError, TextError, check_unicode, unknown
from demeanor.core.types import Message, Messages, Text, ToolCalled, ToolSpec, call_json, numbered, tool_json
from demeanor.text.sandbox import ChatSource, Exhausted, Written
from demeanor.text.tokenizer import Tokenizer
from demeanor.text.tool_calls import CallReader, call_text, short_id

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


def is_trained(messages: Messages, i: int, trained_from: int) -> bool:
    """Whether message `i` carries loss: an assistant's, from `trained_from` on, without `weight: 0`."""
    return messages[i].role == "assistant" and i >= trained_from and messages[i].trained


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
        return JinjaTemplate(name, tokenizer, jinja_file(root / name))
    known = registry.known(TEMPLATES)
    if name not in known:
        raise DemeanorError(
            f"template: {unknown(name, [*known, 'model'], noun='template')} Or name a .jinja file."
        )
    return cast(Template, registry.entry(TEMPLATES, name).template(tokenizer))


def jinja_file(path: Path) -> str:
    """Return the text of a .jinja file that compiles; raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; wanted a jinja chat template")
    try:
        source = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    ChatSource(path.name, source)
    return source


def _of_checkpoint(tokenizer: Tokenizer, folder: Path | None) -> str:
    source = tokenizer.config.get("chat_template")
    named = source if isinstance(source, list) else []
    texts = {str(t.get("name")): t.get("template") for t in named if isinstance(t, dict)}
    if named:
        source = texts.get("default")
    with_tools = texts.get("tool_use")
    if isinstance(source, str) and isinstance(with_tools, str):
        # transformers chooses so, and so does llama.cpp. Jinja drops one line end at the end of a template.
        tools, default = (re.sub(r"\n\Z", "", text) for text in (with_tools, source))
        return "{% if tools %}" + tools + "{% else %}" + default + "{% endif %}"
    if not isinstance(source, str):
        others = (
            f", only templates named {', '.join(texts)}: write one to a .jinja file and name it"
            if texts
            else ""
        )
        raise CheckpointError(
            f"{folder or 'this model'}: its tokenizer has no chat_template{others}; write `template: chatml` "
            "(to train one) or `template: transcript` (for a base model)"
        )
    return source


Part = Literal[
    "context", "answer", "block"
]  # an answer is trained up to the token that ends it, a block whole
Cuts = Mapping[int, Part]  # where a part of a text starts


class _Job(NamedTuple):
    """What one rendering is given besides its messages; `hidden` and `marks` occur in none of its texts."""

    tools: Sequence[ToolSpec]
    hidden: str
    marks: tuple[str, str]
    now: datetime
    extra: Mapping[str, Any]


class _Rows(NamedTuple):
    """Messages as the source expects them; `of[i]` is the row that holds message i."""

    rows: list[dict[str, Any]]
    of: list[int]


class JinjaTemplate:
    """The template for one tokenizer; raises DataError if the source does not compile or never ends an
    answer."""

    def __init__(self, name: str, tokenizer: Tokenizer, source: str) -> None:
        self.name, self.jinja, self._tokenizer = name, source, tokenizer
        self._source = ChatSource(name, source)
        self._added = _Added(tokenizer)
        self._constants = {
            k: _text(v) for k, v in tokenizer.config.items() if k.endswith("_token") and v is not None
        }
        self._reads = self._source.variables - GIVEN - {*self._constants}
        self._known: dict[str, bool] = {}
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
        job = self._job(messages, tools, kwargs)
        try:
            rows = self._rows(messages, job)
            whole = self._write(rows.rows, job, generate)
            if generate:
                cuts = self._answered(messages, rows, whole, job)
            else:
                cuts = self._trained(messages, rows, whole, job, trained_from)
            return self._tokens(whole.text, cuts, job.hidden)
        except Exception as error:  # a template may fail in any way on a missing field
            if isinstance(error, DataError) and not isinstance(error, TextError):
                raise
            raise self._blamed(messages, job, error) from None

    def reader(self) -> Reader:
        return CallReader(CALL, CALLED)

    # ---- tokens and trained flags ----

    def _tokens(self, text: str, cuts: Cuts, hidden: str) -> Rendered:
        rendered = Rendered([], [])
        for start, end in pairwise(sorted({0, len(text), *cuts})):
            ids = self._encode(text[start:end], rendered.tokens, hidden)
            part = cuts.get(start, "context")
            rendered.tokens.extend(ids)
            rendered.trained.extend(
                _until_stop(ids, self.stop_tokens) if part == "answer" else [part == "block"] * len(ids)
            )
        return rendered

    def _answered(self, messages: Messages, rows: _Rows, whole: Written, job: _Job) -> Cuts:
        """Return where the prompts and the turns of earlier answers end: there, tokens never join.

        Takes time in proportion to the text, unlike `_trained`, and checks less.
        """
        answers = [rows.of[i] for i, m in enumerate(messages) if m.role == "assistant"]
        if not answers:
            return {}
        plain = self._write(rows.rows, job, False).text
        asks = whole.text[len(plain) :]
        starts = {len(rows.rows): len(plain), **whole.starts}
        cuts: dict[int, Part] = {}
        for row in answers if whole.text.startswith(plain) else ():
            start, end = starts.get(row, len(plain)), starts.get(row + 1, 0)
            if start + len(asks) < end and whole.text.startswith(asks, start):
                cuts |= {start + len(asks): "context", end: "context"}
        return cuts

    def _trained(self, messages: Messages, rows: _Rows, whole: Written, job: _Job, trained_from: int) -> Cuts:
        """Return where each answer starts and ends."""
        answers = [i for i, m in enumerate(messages) if m.role == "assistant"]
        in_blocks = whole.marked if len(whole.marked) == len(answers) else (None,) * len(answers)
        cuts: dict[int, Part] = {}
        for i, block in zip(answers, in_blocks):
            train = is_trained(messages, i, trained_from)
            cuts |= self._span(i, rows, whole.text, job, train=train and block is None)
            if block is not None:
                cuts |= {block[0]: "block" if train else "context", block[1]: "context"}
        return cuts

    def _span(self, i: int, rows: _Rows, text: str, job: _Job, *, train: bool) -> Cuts:
        """Return where message `i`'s answer starts and ends in `text`; empty if prefixes differ.

        If the answer is to be trained, raises DataError instead.
        """
        before, with_it = rows.rows[: rows.of[i]], rows.rows[: rows.of[i] + 1]
        turn = self._write(with_it, job, False).text
        try:
            prompt = self._write(before, job, True).text
        except Exception:  # it writes no conversation without messages: an answer starts at its content
            if before:
                raise
            other = {**with_it[-1], "content": f"{job.hidden}{with_it[-1]['content']}"}
            prompt = turn[: _common(turn, self._write([other], job, False).text)]
        if text.startswith(prompt) and text.startswith(turn) and len(prompt) < len(turn):
            return {len(prompt): "answer" if train else "context", len(turn): "context"}
        if not train:
            return {}
        part = turn if text.startswith(prompt) else prompt
        at = _common(part, text)
        here = slice(max(0, at - 20), at + 20)
        raise DataError(
            f"template {self.name}: message {i} (assistant) cannot be trained: the conversation up to it "
            f"is not a prefix of the whole one; they differ at {part[here]!r} and {text[here]!r}. "
            "Use a template that leaves earlier turns unchanged, or train only the last answer"
        )

    # ---- rows: messages as the source expects them ----

    def _job(
        self, messages: Messages = (), tools: Sequence[ToolSpec] = (), kwargs: Mapping[str, Any] = NO_KWARGS
    ) -> _Job:
        hidden, *marks = _unused(messages, tools, kwargs)
        extra = _hide(dict(kwargs), self._strings(True), hidden)
        return _Job(tools, hidden, (marks[0], marks[1]), datetime.now(), extra)

    def _write(self, rows: Sequence[Mapping[str, Any]], job: _Job, generate: bool) -> Written:
        shown = None
        if job.tools and self.knows("tool list"):
            shown = _hide([tool_json(t) for t in job.tools], self._strings(True), job.hidden)
        given = {**job.extra, **self._constants, "tools": shown, "add_generation_prompt": generate}
        return self._source.write(rows, job.now, job.marks, **given)

    def _rows(self, messages: Messages, job: _Job) -> _Rows:
        """Return messages as the source expects them: only roles, and orders of roles, that it writes."""
        rows: list[dict[str, Any]] = []
        of: list[int] = []
        own = False  # the last row has the role that its message has
        if job.tools and not self.knows("tool list"):
            listed = TOOLS + "\n".join(json.dumps(tool_json(t), ensure_ascii=False) for t in job.tools)
            role = "system" if self.knows("system user") else "user"
            rows.append({"role": role, "content": _hide(listed, self._strings(True), job.hidden)})
        first = True  # no message but the system's has come
        for message in numbered(messages):
            row = self._row(message, job.hidden)
            place = "system user" if first else "user assistant system user"
            first = first and row["role"] == "system"
            if row["role"] == "system" and not self.knows(place):
                row["role"] = "user"
            begins = "system assistant user" if rows else "assistant user"
            alone = row["role"] == "assistant" and all(r["role"] == "system" for r in rows)
            if alone and not self.knows(begins):
                rows.append({"role": "user", "content": ""})
            role, kept = row["role"], row["role"] == message.role
            if rows and role == rows[-1]["role"] and not (own and kept and self.knows(f"{role} {role}")):
                rows[-1] = {**rows[-1], "content": f"{rows[-1]['content']}\n\n{row['content']}"}
            else:
                rows.append(row)
            own = kept
            of.append(len(rows) - 1)
        return _Rows(rows, of)

    def _row(self, message: Message, hidden: str) -> dict[str, Any]:
        if message.role == "assistant":
            # It may contain <think>, but no call: the reader would parse it as one.
            content = _hide(neutral(message.content, (CALL, CALLED)), self._strings(False), hidden)
        else:
            content = _hide(message.content, self._strings(True), hidden)
        role: str = message.role
        if role == "developer" and not self.knows("developer user"):
            role = "system"
        if role in BLOCKS and not self.knows("data user" if role == "data" else "tool"):
            fence = BLOCKS[role]
            return {"role": "user", "content": f"<{fence}>\n{neutral(content, (f'</{fence}>',))}\n</{fence}>"}
        row: dict[str, Any] = {"role": role, "content": content}
        if message.reasoning is not None:
            reasoning = _hide(neutral(message.reasoning, (CALL, CALLED)), self._strings(False), hidden)
            row |= {"reasoning_content": reasoning, "thinking": reasoning}  # as transformers names it
        if role == "tool":
            optional = {"tool_call_id": message.tool_call_id, "name": message.name}
            if message.tool_call_id is not None and self.knows("short ids"):
                optional["tool_call_id"] = short_id(message.tool_call_id)
            row |= _hide({k: v for k, v in optional.items() if v is not None}, self._strings(True), hidden)
        if message.tool_calls and not self.knows("calls"):
            texts = [_hide(call_text(c), self._strings(True), hidden) for c in message.tool_calls]
            written = "\n".join(f"{CALL}\n{text}\n{CALLED}" for text in texts)
            row["content"] = f"{content}\n{written}" if content else written
        elif message.tool_calls:
            calls = call_json(message.tool_calls)
            for call in calls:
                if not self.knows("calls as text"):
                    call["function"]["arguments"] = _value(call["function"]["arguments"])
                if self.knows("short ids"):
                    call["id"] = short_id(call["id"])
            row["tool_calls"] = _hide(calls, self._strings(True), hidden)
        return row

    # ---- what the source can write ----

    def knows(self, what: str) -> bool:
        """Whether the source writes an order of roles, calls or tools: it is tried once, on a few words."""
        if what not in self._known:
            self._known[what] = self._tries(what)
        return self._known[what]

    def _tries(self, what: str) -> bool:
        if what in ("assistant assistant", "tool tool"):
            return True  # they are never joined
        if what == "tool list":
            found = self._tried([{"role": "user", "content": "probe"}], tool=True)
            return "tools" in self.jinja and "probename" in found
        if what == "calls":
            return "tool_calls" in self.jinja and (self._calls({}) or self._calls({"as_text": True}))
        if what == "calls as text":
            return not self._calls({})
        if what == "short ids":
            form = {"as_text": self.knows("calls as text")}
            return self.knows("calls") and not self._calls({**form, "id": "call_0123456789ab"})
        if what == "tool":
            rows = (
                _called(as_text=self.knows("calls as text"))
                if self.knows("calls")
                else _said("user assistant")
            )
            found = self._tried(
                [
                    *rows,
                    {"role": "tool", "content": "probeend", "tool_call_id": "call00001", "name": "probename"},
                ]
            )
            return "probeend" in found
        # A template that writes any role by its name does not say that the model knows these two.
        named = (re.search(f"['\"]{role}['\"]", self.jinja) for role in ("developer", "data") if role in what)
        rows, known = _said(what), all(named)
        found = self._tried(rows) if known else ""
        return bool(found) and all(row["content"] in found for row in rows)

    def _calls(self, form: Mapping[str, Any]) -> bool:
        """Whether a call in this form is written as JSON, or as something else that has its name and
        values."""
        result = {
            "role": "tool",
            "content": "end",
            "tool_call_id": form.get("id", "call00001"),
            "name": "probename",
        }
        rows = _called(**form)
        found = self._tried(rows) or self._tried([*rows, result])
        wrong = ("{'probekey", '\\"probekey')  # Python's form, or JSON within JSON
        return all(word in found for word in ("probename", "probevalue")) and not any(
            w in found for w in wrong
        )

    def _tried(self, rows: Sequence[Mapping[str, Any]], *, tool: bool = False) -> str:
        """Return what the source writes; "" if it fails."""
        given = {"tools": [tool_json(PROBE)] if tool else None, "add_generation_prompt": False}
        try:
            job = self._job()
            return self._source.write(rows, job.now, job.marks, **{**given, **self._constants}).text
        except Exception:  # a template may fail in any way
            return ""

    def _blamed(self, messages: Messages, job: _Job, error: Exception) -> TextError:
        """Return an error that names the message at fault: one that the conversation before it lacks."""

        def fails(given: Messages) -> bool:
            try:
                self._write(self._rows(given, job).rows, job, False)
            except Exception:
                return True
            return False

        why = f"{type(error).__name__}: {error}"
        if isinstance(error, TextError | jinja2.TemplateError):
            why = getattr(error, "what", str(error))
        index, field, half = _half(messages)
        why = half or why[:MOST_SAID]
        if index is None and not isinstance(error, Exhausted) and fails(messages):
            counts = range(1, len(messages) + 1)
            index = bisect.bisect_left(counts, True, key=lambda count: fails(messages[:count]))
        if index is None or index >= len(messages):
            what = f"this conversation ({_roles(messages)})"
            return TextError(f"template {self.name}: cannot write {what}: {why}")
        message = messages[index]
        values = [_value(call.arguments) for call in message.tool_calls]
        wrong = next((i for i, value in enumerate(values) if not isinstance(value, dict)), None)
        if wrong is not None and not half:
            calls = tuple(replace(call, arguments="{}") for call in message.tool_calls)
            if not fails((*messages[:index], replace(message, tool_calls=calls))):
                field = f".tool_calls[{wrong}].function.arguments"
                why = f"{why}; got arguments that are no JSON object"
        what = f"template {self.name}: cannot write a message of role {message.role} here: {why}"
        return TextError(what, message=message, index=index, field=field)

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
        ask, answer = {"role": "user", "content": "1"}, {"role": "assistant", "content": "\ue0001\ue000"}
        try:
            job = self._job()
            texts = [self._write(m, job, False).text for m in ([ask, answer], [ask, answer, ask])]
        except Exception as error:  # a template may fail in any way
            raise DataError(
                f"template {self.name}: cannot write a question and its answer: {type(error).__name__}: {error}"
            ) from None
        last, later = (text.rpartition("\ue000")[2] if "\ue000" in text else "" for text in texts)
        eos = {self._tokenizer.eos_id, *self._tokenizer.ends}
        for after in (last, later):
            found = next(iter(self._added.pattern.findall(after)), "").strip() if self._added.ids else ""
            if found and after.lstrip().startswith(found):
                return frozenset({*eos, self._tokenizer.special[found]}), ()
        tail = later.partition("1")[0]
        if not tail.strip():
            raise DataError(
                f"template {self.name}: nothing ends an assistant's answer; wanted a special token such as "
                "{{ eos_token }} after its content"
            )
        return frozenset(eos), (tail,)


PROBE = ToolSpec("probename", "probetext", {"type": "object", "properties": {"probekey": {"type": "string"}}})
MOST_SAID = 300  # characters of a template's own words in an error


def _said(roles: str) -> list[dict[str, Any]]:
    return [{"role": role, "content": f"probe{i}word"} for i, role in enumerate(roles.split())]


def _called(*, as_text: bool = False, id: str = "call00001") -> list[dict[str, Any]]:
    arguments: Any = '{"probekey": "probevalue"}' if as_text else {"probekey": "probevalue"}
    call = {"id": id, "type": "function", "function": {"name": "probename", "arguments": arguments}}
    return [*_said("user"), {"role": "assistant", "content": "", "tool_calls": [call]}]


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


_PRIVATE = (*range(0xE001, 0xF8FF), *range(0xF0000, 0xFFFFE))
_ESCAPED = re.compile(r"\\u([ef][0-9a-f]{3})|\\U(000f[0-9a-f]{4})", re.I)


def _unused(*contents: Any) -> list[str]:
    """Return three private-use characters that occur nowhere; one inside a special string prevents
    tokenizing it as one."""
    found = _ESCAPED.findall(repr(contents))  # repr escapes private-use characters
    used = {int(short or long, 16) for short, long in found}
    return [chr(code) for code in islice((c for c in _PRIVATE if c not in used), 3)]


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
        return json.loads(arguments) if arguments.strip() else {}
    except (ValueError, RecursionError):
        return arguments


def _common(a: str, b: str) -> int:
    """Return how many characters two texts have in common at their start."""
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _half(messages: Messages) -> tuple[int | None, str, str]:
    """Return where half a surrogate pair is: the message, its field, and what is said of it."""
    for i, message in enumerate(messages):
        parts = {".content": message.content, ".reasoning_content": message.reasoning, ".name": message.name}
        for j, call in enumerate(message.tool_calls):
            parts[f".tool_calls[{j}].function.arguments"] = json.dumps(
                _value(call.arguments), ensure_ascii=False
            )
            parts[f".tool_calls[{j}].function.name"] = call.name
        for field, text in parts.items():
            try:
                check_unicode(text)
            except TextError as error:
                return i, field, error.what
    return None, "", ""


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _roles(messages: Messages) -> str:
    listed = [f"{i} ({m.role})" for i, m in enumerate(messages)]
    shown = [*listed[:8], *(["..."] if len(listed) > 8 else [])]
    return f"messages {', '.join(shown) or '(none)'}"
