"""Messages to tokens and back: what every chat template can do, and how one is found by name.

In: messages and tools. Out: ids with the mask of trained ones; from generated tokens, events. A template decides which tokens
carry loss (what an assistant wrote and what ends its turn) and that no content can forge a marker. It never sees a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast

from demeanor.core import registry
from demeanor.core.errors import CheckpointError, DataError, DemeanorError, unknown
from demeanor.core.types import Messages, Text, ToolCalled, ToolSpec
from demeanor.text.tokenizer import Tokenizer

TEMPLATES = "demeanor.text.templates"
NO_KWARGS: Mapping[str, Any] = MappingProxyType({})


class Rendered(NamedTuple):
    """Ids of a conversation; `trained[i]`: token i carries loss."""

    tokens: list[int]
    trained: list[bool]


class Reader(Protocol):
    """Generated tokens, one at a time, to events; the end-of-turn marker is not fed."""

    def feed(self, token: int, text: str) -> list[Text | ToolCalled]:
        """Take a token and the text that became certain with it (possibly empty) and return what can be told so far."""
        ...

    def finish(self) -> list[Text | ToolCalled]:
        """Return what was held back."""
        ...


class Template(Protocol):
    """One way to write a conversation; `stop_tokens` and `stop` end an answer, `jinja` says the same for transformers."""

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
        """Write a conversation; `generate` opens the next answer, assistant messages from `trained_from` on are trained.

        `kwargs` are further arguments of a jinja template; raises DataError for one that the template does not read.
        The prompt of every assistant message (render of what precedes it, with `generate`) is a prefix of the whole.
        """
        ...

    def reader(self) -> Reader:
        """Return a fresh reader of one assistant turn."""
        ...


def refuse_kwargs(name: str, kwargs: Mapping[str, Any]) -> None:
    """Raise DataError if a row brings arguments for a template that takes none."""
    if kwargs:
        raise DataError(
            f"template {name}: takes no chat_template_kwargs, got {', '.join(sorted(kwargs))}; "
            "use `template: model` or a .jinja file that reads them, or leave the column out"
        )


def load_template(name: str, tokenizer: Tokenizer, *, folder: Path | None, root: Path) -> Template:
    """Find a template: one of ours by name, `model` (the chat_template in checkpoint `folder`), or a .jinja file under `root`.

    Raises DemeanorError with the known names, CheckpointError if the checkpoint has none, DataError if the jinja is broken.
    """
    from demeanor.text.jinja import JinjaTemplate

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
