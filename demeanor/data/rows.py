"""Parses one row of a data file into an Example, a Preference or an Unpaired.

In: a mapping of columns: TRL's, Alpaca's, or dialogues written as text. Out: the row, or a ValueError that
says what is wrong and what was wanted; the caller adds the place. Opens no files and renders nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

from demeanor.core.errors import unknown
from demeanor.core.types import (
    Example,
    Message,
    Messages,
    Preference,
    Role,
    ToolCall,
    ToolSpec,
    TrainingRow,
    Unpaired,
)
from demeanor.data.published_rows import as_published, message_of

Want = Literal["examples", "preferences", "unpaired", "text", "prompts"]
Row = Mapping[str, Any]

EXAMPLES = "text | messages | prompt,completion | prompt | instruction[,input],output"
PREFERENCES = "[prompt,]chosen,rejected | prompt,completions,ranks | instruction[,input],chosen,rejected"
UNPAIRED = f"[prompt,]completion,label | {PREFERENCES}"
COLUMNS: Mapping[str, str] = {
    "examples": EXAMPLES,
    "preferences": PREFERENCES,
    "unpaired": UNPAIRED,
    "text": "text",
    "prompts": f"prompt | {EXAMPLES.replace('text | ', '')} | {PREFERENCES}",
}
SPEAKERS: Mapping[str, Role] = {
    "human": "user",
    "gpt": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
REASONING = ("reasoning_content", "reasoning", "thinking")  # names of what comes before an answer
ALIASES: Mapping[str, tuple[str, ...]] = {  # what files often call a column
    "prompt": ("question", "query", "input", "user", "human", "instruction"),
    "completion": ("answer", "response", "output", "reply", "assistant", "target"),
    "chosen": ("preferred", "accepted", "better", "best", "good", "chosen_response", "response_chosen"),
    "rejected": ("dispreferred", "worse", "worst", "bad", "rejected_response", "response_rejected"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "label": ("is_good", "desirable", "thumbs_up", "rating"),
    "text": ("content", "document", "body", "story"),
}
_SETS: Mapping[Want, tuple[tuple[str, ...], ...]] = {
    "examples": (("prompt", "completion"), ("messages",), ("text",)),
    "preferences": (
        ("prompt", "chosen", "rejected"),
        ("chosen", "rejected"),
        ("prompt", "completions", "ranks"),
    ),
    "unpaired": (("prompt", "completion", "label"),),
    "text": (("text",),),
    "prompts": (("prompt",), ("messages",)),
}
TRAINED_BY: Mapping[Want, str] = {
    "preferences": "a comparison; comparisons train with an objective such as dpo or reward",
    "unpaired": "a completion with a label; such rows train with an objective such as kto",
    "examples": "an example to imitate; examples train with the objective sft",
}
"""Kinds of rows in the order in which an unknown row is tried, and what to say of one that is wanted as another kind."""
_REPR = re.compile(r"\[\s*\{\s*'(role|from)'\s*:")  # messages as Python prints them, which is not JSON
_PLAIN = re.compile(
    r"(?!(?i:yes|no|on|off|true|false|null)$)[^\W\d][\w -]*\w|[^\W\d]"
)  # a name that YAML reads as text
_DIALOGUE = re.compile(r"\n\n(Human|Assistant):")


class _Missing(ValueError):
    """A row lacks the columns of the wanted kind; `parse` says what it has."""

    def __init__(self, row: Row, want: Want) -> None:
        super().__init__(f"columns are missing; wanted {COLUMNS[want]}")
        self.row, self.want = row, want


def parse(row: Any, want: Want, source: str) -> TrainingRow:
    """Parse a row as the wanted kind; null columns are ignored. Raises ValueError."""
    if isinstance(row, str):
        row = {"text": row}
    if not isinstance(row, Mapping):
        raise ValueError(f"got a {type(row).__name__}, wanted an object of columns ({COLUMNS[want]})")
    columns = _columns(row)
    try:
        found = _READERS[want](columns, source)
    except _Missing as error:
        raise ValueError(_missing(error.row, error.want)) from None
    extra = _kwargs(columns.get("chat_template_kwargs"))
    return replace(found, template_kwargs=extra) if extra else found


def _columns(row: Row) -> Row:
    """The columns that hold something, under our names."""
    return as_published(
        {
            k: v
            for k, v in row.items()
            if v is not None and v != [] and not (v == "" and k in ("input", "system", "tools"))
        }
    )


def kind_of(row: Any) -> Want | None:
    """The kind of row that this is: comparisons first, since their columns are the most particular; None if it is of no kind."""
    for want in TRAINED_BY if isinstance(row, Mapping) else ():
        try:
            _READERS[want](_columns(row), "")
        except ValueError:
            continue
        return want
    return None


def likely(row: Any) -> Want:
    """The kind of row that this would be with its columns renamed; `examples` if that cannot be told."""
    given = set(row) if isinstance(row, Mapping) else set()
    named = (want for want in TRAINED_BY if any(all(_named(ours, given) for ours in s) for s in _SETS[want]))
    return next(named, "examples")


def _named(ours: str, given: Iterable[str]) -> str | None:
    """Which of the given columns is this one of ours, by its name or one that files often use; None if none is."""
    return next((name for name in (ours, *ALIASES.get(ours, ())) if name in given), None)


def _example(row: Row, source: str) -> Example:
    tools = _tools(row.get("tools"))
    if "messages" in row or "conversations" in row:
        messages = _system(row) + _messages(row, "messages" if "messages" in row else "conversations")
        if not any(m.role == "assistant" for m in messages):
            raise ValueError("messages: none is from the assistant; wanted at least one, to be trained")
        if not any(m.role == "assistant" and m.trained for m in messages):
            raise ValueError("messages: every answer has weight 0; wanted at least one to be trained")
        return Example(messages, tools=tools, source=source)
    if "instruction" in row and "output" in row:
        prompt = _alpaca(row)
        return Example(
            (*prompt, _answer(row, "output")), trained_from=len(prompt), tools=tools, source=source
        )
    if "prompt" in row and "completion" in row:
        prompt = _prompt(row)
        answer = _completion(row["completion"], "completion")
        return Example(prompt + answer, trained_from=len(prompt), tools=tools, source=source)
    if named := next((x for x in (("chosen",), ("completions", "ranks")) if all(c in row for c in x)), ()):
        columns = ", ".join(named) if len(named) > 1 else "chosen, rejected"
        raise ValueError(
            f"a preference row ({columns}); wanted a row with one answer: "
            f"{EXAMPLES}. Preferences train with an objective such as dpo or reward"
        )
    if "prompt" in row:
        prompt = _prompt(row)
        return Example(prompt, trained_from=len(prompt), tools=tools, source=source)
    if "text" in row:
        return Example(text=_text(row, "text"), source=source)
    raise _Missing(row, "examples")


def _preference(row: Row, source: str) -> Preference:
    tools, margin = _tools(row.get("tools")), _number(row.get("margin"), "margin")
    if "prompt" in row and "completions" in row and "ranks" in row:
        prompt = _prompt(row)
        written, ranks = _json_list(row["completions"], "completions"), _json_list(row["ranks"], "ranks")
        if len(written) != len(ranks) or len(written) < 2:
            raise ValueError(
                f"got {len(written)} completions and {len(ranks)} ranks; "
                "wanted equally many of both, and at least 2"
            )
        if not all(isinstance(r, int) and not isinstance(r, bool) for r in ranks) or len(set(ranks)) < 2:
            raise ValueError(f"ranks: got {ranks!r}, wanted whole numbers, 0 the best, not all the same")
        completions = tuple(_completion(c, f"completions[{i}]") for i, c in enumerate(written))
        safe = _safety(row, len(completions))
        return Preference(prompt, completions, tuple(ranks), tools, margin, source, safe=safe)
    if "chosen" not in row or "rejected" not in row:
        raise _Missing(row, "preferences")
    if "instruction" in row:
        pair = (_answer(row, "chosen"),), (_answer(row, "rejected"),)
        return Preference(_alpaca(row), pair, (0, 1), tools, margin, source, safe=_safety(row, 2))
    if "prompt" in row and isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        prompt = _prompt(row)
        chosen, rejected = _completion(row["chosen"], "chosen"), _completion(row["rejected"], "rejected")
    else:
        given = _prompt(row) if "prompt" in row else ()
        prompt, chosen, rejected = _split(given, _dialogue(row, "chosen"), _dialogue(row, "rejected"))
    return Preference(prompt, (chosen, rejected), (0, 1), tools, margin, source, safe=_safety(row, 2))


def _safety(row: Row, count: int) -> tuple[bool | None, ...]:
    """Parse `safe`: of each completion (or of chosen and rejected) whether it is harmless; null: not said."""
    if "safe" not in row:
        return ()
    found = _json_list(row["safe"], "safe")
    if len(found) != count:
        raise ValueError(f"safe: got {len(found)} values, wanted {count}, one for each completion")
    return tuple(None if x is None else _truth(x, f"safe[{i}]") for i, x in enumerate(found))


def _split(given: Messages, chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Split two conversations at the first message that differs; `given` is the row's prompt, if it has
    one."""
    if given:
        size = len(given)
        if chosen[:size] == given and rejected[:size] == given:
            chosen, rejected = chosen[size:], rejected[size:]
        prompt = given
    else:
        differing = (i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b)
        size = next(differing, min(len(chosen), len(rejected)))
        prompt, chosen, rejected = chosen[:size], chosen[size:], rejected[size:]
        if not prompt:
            raise ValueError(
                "chosen and rejected share no first message, and there is no prompt; wanted a prompt column, "
                "or conversations with the same beginning"
            )
        if prompt[-1].role == "assistant":
            raise ValueError(
                "chosen and rejected first differ after an assistant's message; wanted them to differ in one"
            )
    for name, completion in (("chosen", chosen), ("rejected", rejected)):
        _starts_with_answer(completion, name)
    return prompt, chosen, rejected


def _unpaired(row: Row, source: str) -> Unpaired | Preference:
    """Parse a completion with its label; a preference row stays a preference and counts as one of each."""
    if "label" not in row:
        if "chosen" in row or "completions" in row:
            return _preference(row, source)
        raise _Missing(row, "unpaired")
    tools, desirable = _tools(row.get("tools")), _truth(row["label"], "label")
    if "completion" not in row:
        raise _Missing(row, "unpaired")
    if "prompt" in row:
        return Unpaired(_prompt(row), _completion(row["completion"], "completion"), desirable, tools, source)
    whole = _system(row) + _dialogue(row, "completion")
    num_prompt = max((i for i, m in enumerate(whole) if m.role == "user"), default=-1) + 1
    if not num_prompt:
        raise ValueError("completion: has no user message, and there is no prompt column; wanted one of them")
    _starts_with_answer(whole[num_prompt:], "completion")
    return Unpaired(whole[:num_prompt], whole[num_prompt:], desirable, tools, source)


def _asked(row: Row, source: str) -> Example | Preference:
    """Parse a row for its prompt: a preference, an example, or a conversation that nobody has answered yet."""
    if "chosen" in row or "completions" in row:
        return _preference(row, source)
    name = "messages" if "messages" in row else "conversations"
    if name in row:
        messages, tools = _system(row) + _messages(row, name), _tools(row.get("tools"))
        if messages[-1].role != "assistant":
            return Example(messages, trained_from=len(messages), tools=tools, source=source)
    found = _example(row, source)
    if found.text is not None:
        raise ValueError(f"is plain text; wanted a prompt to answer: {COLUMNS['prompts']}")
    return found


_READERS: Mapping[Want, Callable[[Row, str], TrainingRow]] = {
    "examples": _example,
    "preferences": _preference,
    "unpaired": _unpaired,
    "text": lambda row, source: Example(text=_text(row, "text"), source=source),
    "prompts": _asked,
}


# ---- columns ----


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if value is None:
        raise _Missing(row, "text")
    if not isinstance(value, str):
        raise ValueError(f"{name}: got a {type(value).__name__}, wanted text")
    if not value.strip():
        raise ValueError(f"{name}: is empty")
    return value


def _prompt(row: Row) -> Messages:
    value = row["prompt"]
    messages = (Message("user", _text(row, "prompt")),) if is_prose(value) else _messages(row, "prompt")
    messages = _system(row) + messages
    if messages[-1].role == "assistant":
        raise ValueError("prompt: ends with an assistant message; wanted one that an assistant answers")
    return messages


def _completion(value: Any, name: str) -> Messages:
    if is_prose(value):
        return (_answer({name: value}, name),)
    if not isinstance(value, str | list):
        raise ValueError(f"{name}: got a {type(value).__name__}, wanted text or a list of messages")
    messages = _messages({name: value}, name)
    _starts_with_answer(messages, name)
    return messages


def _starts_with_answer(messages: Messages, name: str) -> None:
    if not messages or messages[0].role != "assistant":
        got = f"a {messages[0].role} message" if messages else "nothing after the prompt"
        raise ValueError(f"{name}: got {got}, wanted an assistant message")


def _dialogue(row: Row, name: str) -> Messages:
    """Parse a conversation: a list of messages, or text in turns of "\
    \
    Human:" and "\
    \
    Assistant:".
    """
    value = row[name]
    if not is_prose(value):
        return _messages(row, name)
    if "prompt" in row:
        return _completion(value, name)
    parts = _DIALOGUE.split(value)
    if len(parts) < 3 or parts[0].strip():
        raise ValueError(
            f"{name}: is text without a prompt column; wanted a prompt, a list of messages, or turns of "
            "'\\n\\nHuman:' and '\\n\\nAssistant:'"
        )
    roles: Mapping[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[role], text.strip()) for role, text in zip(parts[1::2], parts[2::2]))


def _alpaca(row: Row) -> Messages:
    instruction = _text(row, "instruction")
    extra = _text(row, "input") if "input" in row else ""
    return (*_system(row), Message("user", f"{instruction}\n\n{extra}" if extra else instruction))


def _answer(row: Row, name: str) -> Message:
    return Message("assistant", _text(row, name))


def _system(row: Row) -> Messages:
    return (Message("system", _text(row, "system")),) if "system" in row else ()


# ---- messages and tools ----


def _messages(row: Row, name: str) -> Messages:
    found = _json_list(row[name], name)
    return tuple(_message(m, f"{name}[{i}]") for i, m in enumerate(found))


def _message(raw: Any, where: str) -> Message:
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where}: got a {type(raw).__name__}, wanted an object with role and content")
    raw = message_of(raw)
    role = raw.get("role") or SPEAKERS.get(str(raw.get("from")), raw.get("from"))
    if role not in get_args(Role):
        raise ValueError(f"{where}.role: {unknown(str(role), get_args(Role), noun='role')}")
    calls = tuple(_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(raw.get("tool_calls") or ()))
    content = _content(raw.get("content", raw.get("value")), f"{where}.content")
    if not content and not calls and role in ("assistant", "user"):
        raise ValueError(f"{where}: the {role}'s message is empty")
    weight = raw.get("weight")
    if weight not in (None, 0, 1):
        raise ValueError(f"{where}.weight: got {weight!r}, wanted 0 (not trained) or 1")
    thought = next((name for name in REASONING if raw.get(name)), None)
    return Message(
        cast(Role, role),
        content,
        calls,
        _optional(raw, "tool_call_id", where),
        _optional(raw, "name", where),
        reasoning=None if thought is None else _content(raw[thought], f"{where}.{thought}"),
        trained=weight != 0,
    )


def _optional(raw: Row, name: str, where: str) -> str | None:
    value = raw.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{where}.{name}: got a {type(value).__name__}, wanted text")
    return value


def _content(value: Any, where: str) -> str:
    """Return a message's text from a string, null, or OpenAI's list of text parts."""
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        other = next(
            (p for p in value if not (isinstance(p, Mapping) and isinstance(p.get("text"), str))), None
        )
        if other is not None:
            raise ValueError(f"{where}: has a part that is not text: {str(other)[:60]}")
        return "".join(p["text"] for p in value)
    if not isinstance(value, str):
        raise ValueError(f"{where}: got a {type(value).__name__}, wanted text")
    return value


def _call(raw: Any, where: str) -> ToolCall:
    inner = raw.get("function", raw) if isinstance(raw, Mapping) else {}
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ValueError(f'{where}: wanted {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = inner.get("arguments", {})
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(raw.get("id") or ""), name, written)


def _tools(value: Any) -> tuple[ToolSpec, ...]:
    """Parse tools as OpenAI writes them, bare functions, or either as JSON text."""
    found = []
    for i, raw in enumerate(_json_list(value, "tools") if value is not None else ()):
        inner = raw.get("function", raw) if isinstance(raw, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ValueError(f'tools[{i}]: wanted {{"name": ..., "description": ..., "parameters": {{...}}}}')
        parameters = inner.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise ValueError(
                f"tools[{i}].parameters: got a {type(parameters).__name__}, wanted a JSON schema"
            )
        found.append(ToolSpec(inner["name"], str(inner.get("description") or ""), parameters))
    return tuple(found)


def is_prose(value: Any) -> bool:
    """True for text that is not a JSON list of messages (which a .csv file holds as text)."""
    if not isinstance(value, str):
        return False
    if not (value.lstrip().startswith("[") and value.rstrip().endswith("]")):
        return True
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return not _REPR.match(value.lstrip())
    return not found or not all(isinstance(one, Mapping) and _is_message(one) for one in found)


def _is_message(one: Row) -> bool:
    speaks = "role" in one or one.get("from") in (*SPEAKERS, *get_args(Role), "function_call")
    return speaks and not {"content", "value", "tool_calls"}.isdisjoint(one)


def _json_list(value: Any, name: str) -> list[Any]:
    if isinstance(value, str):
        value = _from_json(value, name, "a list")
    if not isinstance(value, list):
        raise ValueError(f"{name}: got a {type(value).__name__}, wanted a list")
    if not value:
        raise ValueError(f"{name}: is empty")
    return value


def _number(value: Any, name: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: got {value!r}, wanted a number") from None


def _truth(value: Any, name: str) -> bool:
    """Parse a label: true or false, 0 or 1, or either as text (which a .csv file holds)."""
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    found = None
    if isinstance(value, str | int | float):
        found = known.get(value.strip().lower() if isinstance(value, str) else value)
    if found is None:
        raise ValueError(f"{name}: got {value!r}, wanted true or false (or 1 or 0)")
    return found


def _kwargs(value: Any) -> dict[str, Any]:
    """Parse arguments of a chat template: an object, or one as JSON text."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        value = _from_json(value, "chat_template_kwargs", "an object")
    if not isinstance(value, Mapping):
        raise ValueError(
            f"chat_template_kwargs: got a {type(value).__name__}, wanted an object of template arguments"
        )
    return dict(value)


def _from_json(text: str, name: str, wanted: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"{name}: is text that is not JSON; wanted {wanted}") from None


def _missing(row: Row, want: Want) -> str:
    has = ", ".join(sorted(map(str, row))) or "(none)"
    return f"has the columns {has}; wanted {COLUMNS[want]}{_renaming(row, want)}"


def _renaming(row: Row, want: Want) -> str:
    """Return the line of a source that names the row's columns: known by their names, else in the order of the file."""
    for names in _SETS[want]:
        found = {ours: _named(ours, row) for ours in names}
        if None not in found.values() and len(set(found.values())) == len(names):
            return f". Write {_line(found)} at this source"  # type: ignore[arg-type]
    if want in TRAINED_BY and (other := kind_of(row)) is not None:
        return f". The row is {TRAINED_BY[other]}"
    names = _SETS[want][0]
    found = {ours: _named(ours, row) for ours in names}
    others = iter([str(name) for name in row if name not in found.values()])
    guessed = {ours: theirs or next(others, "THEIR NAME") for ours, theirs in found.items()}
    return f". Columns of other names are named at this source, for example {_line(guessed)}"


def _line(names: Mapping[str, str]) -> str:
    """`columns: {ours: theirs}` as YAML; a name that YAML would read as something else is quoted."""
    renamed = [
        f"{ours}: {theirs if _PLAIN.fullmatch(theirs) else json.dumps(theirs, ensure_ascii=False)}"
        for ours, theirs in names.items()
        if ours != theirs
    ]
    return f"columns: {{{', '.join(renamed)}}}"
