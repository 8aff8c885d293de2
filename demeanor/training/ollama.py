"""An Ollama Modelfile for an exported GGUF file: template, decoding settings and system prompt of a stack.

In: a Stack, its template, the file's name. Out: the text of a Modelfile. Ollama writes prompts with a Go template
and does not run the file's Jinja, so a template is only written where it gives the same prompts as ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demeanor.core.errors import DemeanorError
from demeanor.core.types import Message, Role
from demeanor.stack.stack import Stack, plain
from demeanor.text.template import Template
from demeanor.text.tokenizer import Tokenizer

ROLES: tuple[Role, ...] = ("system", "user", "assistant")
PROBES: tuple[tuple[Role, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
CONTENTS = ("Ahoy there", "a\nb", "  spaces  ", '{{ x }} 5 < 6 & "q"', "é 你 👍", "x")


@dataclass(frozen=True, slots=True)
class Pieces:
    """A prompt as what stands before a conversation (and instead of a missing system message), around each
    message by role, and before the answer."""

    start: str
    default: str
    around: Mapping[Role, tuple[str, str]]
    answer: str

    @property
    def quotable(self) -> bool:
        """True if no piece has a meaning in a Go template or ends its quotes."""
        texts = [
            self.start,
            self.default,
            self.answer,
            *(text for pair in self.around.values() for text in pair),
        ]
        return not any(mark in text for text in texts for mark in ("{{", "}}", '"""'))

    def write(self, messages: Sequence[tuple[Role, str]]) -> str:
        """Return the prompt of a conversation."""
        begin = self.start + ("" if messages[0][0] == "system" else self.default)
        said = (f"{self.around[role][0]}{text}{self.around[role][1]}" for role, text in messages)
        return "".join([begin, *said, self.answer])

    def go(self, bos: str | None) -> str:
        """Return the same as a Go template of Ollama, which puts `bos` before a prompt itself."""
        lines = [self.start.removeprefix(bos or "")]
        if self.default:
            lines.append('{{ if ne (index .Messages 0).Role "system" }}' + self.default + "{{ end }}")
        lines.append("{{ range .Messages }}")
        for word, role in zip(("if", "else if", "else if"), ROLES):
            before, after = self.around[role]
            lines.append(f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
        return "".join([*lines, "{{ end }}{{ end }}", self.answer])


def pieces(template: Template, tokenizer: Tokenizer) -> Pieces | None:
    """Return a template as pieces; None if no pieces write the same prompts."""

    def written(messages: Sequence[tuple[Role, str]], *, generate: bool = True) -> str:
        given = tuple(Message(role, text) for role, text in messages)
        return tokenizer.decode(list(template.render(given, generate=generate).tokens))

    mark = "Xq"
    try:
        lone = written([("user", mark)])
        led = written([("system", mark), ("user", mark)])
        talk = written([("user", mark), ("assistant", mark), ("user", mark)])
        before, answer_user = lone.split(mark)
        end_user = written([("user", mark)], generate=False).split(mark)[1]
        led_before, between, led_end = led.split(mark)
        _, asked, answered, _ = talk.split(mark)
    except (ValueError, DemeanorError):
        return None
    # `between` ends a system message, mostly as a user's ends, and begins a user's.
    begin_user = between.removeprefix(end_user) if between.startswith(end_user) else _ending(between, before)
    after_system = between.removesuffix(begin_user)
    bos = next((text for text, i in tokenizer.special.items() if i == tokenizer.bos_id), "")
    start = bos if before.startswith(bos) and led_before.startswith(bos) else ""
    begin_answer, end_answer = asked.removeprefix(end_user), answered.removesuffix(begin_user)
    found = Pieces(
        start,
        before[len(start) :].removesuffix(begin_user),
        {
            "system": (led_before[len(start) :], after_system),
            "user": (begin_user, end_user),
            "assistant": (begin_answer, end_answer),
        },
        answer_user.removeprefix(end_user),
    )
    if led_end != answer_user:
        return None
    for roles in PROBES:
        for shift in range(len(CONTENTS)):
            said = [(r, CONTENTS[(i + shift) % len(CONTENTS)]) for i, r in enumerate(roles)]
            try:
                if found.write(said) != written(said):
                    return None
            except DemeanorError:
                return None
    return found


def _beginning(a: str, b: str) -> str:
    """The longest common beginning."""
    count = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    return a[:count]


def _ending(a: str, b: str) -> str:
    return _beginning(a[::-1], b[::-1])[::-1]


def modelfile(stack: Stack, file: str, template: Template, tokenizer: Tokenizer, context: int) -> str:
    """Return the text of a Modelfile."""
    found = pieces(template, tokenizer)
    bos = next((text for text, i in tokenizer.special.items() if i == tokenizer.bos_id), None)
    decoding = stack.spec.decoding
    ends = [text for text, i in tokenizer.special.items() if i in template.stop_tokens]
    stops = dict.fromkeys([*decoding.stop, *template.stop, *ends])
    parameters: list[tuple[str, object]] = [
        ("num_ctx", context),
        ("num_predict", decoding.max_tokens),
        ("temperature", decoding.temperature),
        ("top_p", decoding.top_p),
        ("top_k", decoding.top_k or 0),
        ("min_p", decoding.min_p or 0.0),
        ("repeat_penalty", 1.0),  # Ollama's own default is 1.1
        ("presence_penalty", decoding.presence_penalty or 0.0),
        ("frequency_penalty", decoding.frequency_penalty or 0.0),
        *([("seed", decoding.seed)] if decoding.seed is not None else []),
        *[("stop", quoted(text)) for text in stops if quoted(text)],
    ]
    lines = [f"# {stack.model_id}, exported by demeanor ({stack.serve})", f"FROM ./{file}"]
    go = None if found is None or not found.quotable else quoted(found.go(bos))
    if go is None:
        lines.append(
            "# No TEMPLATE: this stack's chat template is no chain of messages. Ollama does not run the Jinja in the "
            "file; write a Go template by hand, or use llama-server --jinja, which does."
        )
    else:
        lines.append(f"TEMPLATE {go}")
    lines += [f"PARAMETER {name} {value}" for name, value in parameters]
    unwritten = [text for text in stops if not quoted(text)]
    if unwritten:
        lines.append(f"# Stop texts that a Modelfile cannot hold: {', '.join(map(repr, unwritten))}.")
    system, lost = _layers(stack)
    if system:
        dropped = sorted({c for c in system if not _kept(c)})
        written = quoted("".join(filter(_kept, system)))
        if dropped:
            named = ", ".join(f"U+{ord(c):04X}" for c in dropped)
            lines.append(
                f"# Ollama drops characters that are not printed; the system prompt is without {named}."
            )
        lines.append(
            f"SYSTEM {written}" if written else "# The system prompt has three quotes in a row: left out."
        )
    if lost:
        lines.append(f"# Layers of the stack that are not in a Modelfile: {', '.join(lost)}.")
    return "\n".join(lines) + "\n"


def _kept(char: str) -> bool:
    return char.isprintable() or char in "\n\r\t"


def quoted(text: str) -> str | None:
    """Return a text as a Modelfile's value; None if Ollama would read another one.

    Its parser knows no escapes, ends a value at the quotes that began it, and drops what is not printed, tabs and line
    ends within quotes apart. Source: parser/parser.go of Ollama.
    """
    if not all(map(_kept, text)) or '"""' in text or not text:
        return None
    mark = '"' if not any(c in text for c in '"\n\r\t') else '"""'
    return f"{mark}{text}{mark}"


def _layers(stack: Stack) -> tuple[str | None, list[str]]:
    """The system prompt of the prompt layers, and what a Modelfile does not have."""
    prompts: list[str] = []
    lost: list[str] = []
    for layer in stack.layers:
        if layer.kind == "prompt":
            settings = plain(layer.spec)
            # The innermost stands first.
            prompts[:0] = filter(None, [layer.module.fixed(layer.spec, stack.root)])
            lost += [f"{layer.name} (its examples)"] if settings.get("few_shot") else []
            asked = [name for name, about in settings.get("variables", {}).items() if about.get("request")]
            lost += [f"{layer.name} (requests cannot set {', '.join(asked)})"] if asked else []
        elif layer.behaviour:
            lost.append(layer.name)
    return "\n\n".join(prompts) or None, lost
