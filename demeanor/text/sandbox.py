"""Chat templates in jinja, compiled with transformers' settings and run within bounds.

In: a template's source and its variables. Out: the text, where each message starts in it, and the parts in
`generation` blocks. A template reaches no attributes of Python, and cannot run for ever or fill the memory:
steps, the size of every text and processor time are bounded. Knows no tokens and no roles.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from demeanor.core.errors import DataError

MOST_CHARS = 1 << 26  # of one text
MOST_SECONDS = 2.0  # of processor time for one conversation
MOST_NUMBER = 10_000  # of a width, an indent, an exponent
MARKS = ("_generation_opens", "_generation_closes")  # variables: what is written around a `generation` block

_PADS = frozenset(
    [
        "center",
        "indent",
        "batch",
        "slice",
        "truncate",
        "wordwrap",
        "tojson",
        "format",
        "ljust",
        "rjust",
        "zfill",
        "expandtabs",
    ]
)
_WRITES = frozenset(
    ["join", "tojson", "string", "format", "pprint", "replace", "urlize"]
)  # filters that make a text
_WIDE = re.compile(r"\d{5}")  # a width in a format string


class Exhausted(jinja2.TemplateRuntimeError):
    """A template that takes more time or memory than a conversation can need."""


class Written(NamedTuple):
    """A conversation as text; `starts[i]` is where row i starts, if known; `marked` are the blocks."""

    text: str
    starts: Mapping[int, int]
    marked: Sequence[tuple[int, int]]


class ChatSource:
    """A compiled template; raises DataError with the line if it does not compile."""

    def __init__(self, name: str, source: str) -> None:
        self._env = _Bounded()
        try:
            self._template = self._env.from_string(source)
            names = jinja2.meta.find_undeclared_variables(self._env.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"template {name}: line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise DataError(f"template {name}: is nested too deeply") from None
        self.variables: frozenset[str] = frozenset(names - {*self._env.globals, *MARKS})

    def write(
        self, rows: Sequence[Mapping[str, Any]], now: datetime, marks: tuple[str, str], **variables: Any
    ) -> Written:
        """Return the text for `rows`; strftime_now reads `now`, and `marks` are two characters that occur
        nowhere.

        Raises whatever the template raises.
        """
        run = self._env.run
        run.begin(rows)
        given = {**variables, **dict(zip(MARKS, marks)), "strftime_now": lambda form: now.strftime(form)}
        pieces: list[str] = []
        for piece in self._template.generate(messages=rows, **given):
            run.position += len(piece)
            run.spend(run.position)
            pieces.append(piece)
        text, (opening, closing) = "".join(pieces), marks
        if opening not in text:
            return Written(text, run.starts, ())
        at, opened, plain = 0, 0, list[str]()
        marked, gone = list[tuple[int, int]](), list[int]()  # gone: places of the marks in `text`
        for part in re.split(f"([{opening}{closing}])", text):
            if part in marks:
                gone.append(at + len(gone))
                opened = at if part == opening else opened
                marked += [(opened, at)] if part == closing else []
            else:
                at += len(part)
                plain.append(part)
        starts = {row: start - sum(place < start for place in gone) for row, start in run.starts.items()}
        return Written("".join(plain), starts, marked)


class _Run(threading.local):
    """What one rendering in this thread has used, and where its messages start."""

    def __init__(self) -> None:
        self.begin(())

    def begin(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.position, self._steps = 0, 0
        self.starts: dict[int, int] = {}
        self._row_of = {id(row): i for i, row in enumerate(rows)}
        self._until = time.thread_time() + MOST_SECONDS

    def spend(self, size: int = 0) -> None:
        """Count a step that makes a text or list of `size`."""
        self._steps += 1
        if size > MOST_CHARS:
            raise Exhausted(f"makes a text of more than {MOST_CHARS:,} characters")
        if not self._steps % 256 and time.thread_time() > self._until:
            raise Exhausted(f"runs for more than {MOST_SECONDS:g} s")

    def starting(self, item: Any) -> str:
        """Note where a loop begins to write `item`, if it is a message; the last loop counts."""
        if (row := self._row_of.get(id(item))) is not None:
            self.starts[row] = self.position
        return ""


class _Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """transformers' environment, in which every loop, call, filter and operator counts."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:  # autoescaping is for HTML; this is a prompt
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=self._output,
            extensions=[_Generation, jinja2.ext.loopcontrols],
        )
        self.run = _Run()
        self.filters["tojson"] = to_json
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.filters |= {
            "_counted": self._counted,
            "_joined": self._joined,
            "_starting": lambda item: self.run.starting(item),
        }
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": _refuse,  # each rendering has its own
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
            "namespace": _Namespace,
        }
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree: jinja2.nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return tree

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        if isinstance(owner, str):
            self._check(getattr(function, "__name__", ""), (owner, *args, *kwargs.values()))
        self.run.spend()
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(x) if isinstance(x, str | list | tuple) else 0 for x in (left, right)]
        numbers = [x for x in (left, right) if isinstance(x, int)]
        if operator == "%" and isinstance(left, str):
            self._check("format", (left, right))
        elif operator == "*" and any(sizes):
            self.run.spend(max(sizes) * max(numbers, default=1))
        elif any(abs(x) > 1 << 4096 for x in numbers) or (operator == "**" and numbers[-1:] > [MOST_NUMBER]):
            raise Exhausted(f"makes too large a number with {operator}")
        self.run.spend(sum(sizes) if operator == "+" else 0)
        return super().call_binop(context, operator, left, right)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if name == "join":
                args = tuple(list(self._counted(x)) if isinstance(x, Iterator) else x for x in args)
            self._check(name, (*args, *kwargs.values()))
            return function(*args, **kwargs)

        return run

    def _check(self, name: str, args: Sequence[Any]) -> None:
        """Refuse what makes a text much larger than the ones given: joins, replacements, paddings."""
        for arg in args:
            if name in _PADS and isinstance(arg, int) and abs(arg) > MOST_NUMBER:
                raise Exhausted(f"{name}: got {arg}, wanted at most {MOST_NUMBER:,}")
            if name.startswith("format") and isinstance(arg, str) and _WIDE.search(arg):
                raise Exhausted(f"{name}: wanted widths of less than {MOST_NUMBER:,}")
            if name in _WRITES:
                self._output(arg)
        texts = [len(arg) or 1 for arg in args if isinstance(arg, str | list)]
        self.run.spend(functools.reduce(int.__mul__, texts, 1) if name in ("join", "replace") else 0)

    def _output(self, value: Any) -> Any:
        """Return what a template writes; refuses lists that hold one another so often that their text is
        too large."""
        if isinstance(value, list | tuple | dict):
            rest, size = [value], 0
            while rest:
                one = rest.pop()
                size += len(one) if isinstance(one, str) else 1
                if isinstance(one, dict):
                    rest += [*one, *one.values()]
                elif isinstance(one, list | tuple):
                    rest += one
                self.run.spend(size)
        return value

    def _counted(self, items: Any) -> Iterator[Any]:
        for item in items:
            self.run.spend()
            yield item

    def _joined(self, items: Sequence[Any]) -> str:
        self._output(items)
        texts = [str(item) for item in items]
        self.run.spend(sum(map(len, texts)))
        return "".join(texts)


class _Counting(jinja2.visitor.NodeTransformer):
    """Passes what a loop reads, and what `~` joins, through the filters that count."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered("_counted", node.iter)
        if isinstance(node.target, jinja2.nodes.Name):
            item = jinja2.nodes.Name(node.target.name, "load", lineno=node.lineno)
            node.body.insert(0, jinja2.nodes.Output([_filtered("_starting", item)], lineno=node.lineno))
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered("_joined", jinja2.nodes.List(node.nodes, lineno=node.lineno))


def _filtered(name: str, node: jinja2.nodes.Node) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the part of an answer that is trained: its body is written between marks."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (
            jinja2.nodes.Output([jinja2.nodes.Name(mark, "load", lineno=line)], lineno=line) for mark in MARKS
        )
        return [before, *body, after]


class _Namespace(jinja2.utils.Namespace):
    """jinja's namespace without names that begin with an underscore, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        for name in dict(*args[1:], **kwargs):
            _Namespace._check_name(name)
        jinja2.utils.Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check_name(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check_name(name: object) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace holds no {name!r}")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as transformers' `tojson` filter writes it: no HTML escapes, text as it is."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: object) -> None:
    raise jinja2.TemplateError(str(message))
