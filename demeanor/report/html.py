"""A report as one self-contained HTML page: no network, no script; everything that opens is a <details>.

In: a Page. Out: the page as text, from page.html.jinja with every string escaped. A content security policy allows this page's own style
sheet, by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from demeanor.core.table import Page, visible
from demeanor.report.figures import draw

FOLDER = Path(__file__).parent
POLICY = "default-src 'none'; base-uri 'none'; form-action 'none'"


def page(page: Page) -> str:
    """The whole page."""
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _template().render(
        page=page, style=Markup(style), policy=f"{POLICY}; style-src 'sha256-{allowed}'"
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"draw": draw, "kind": lambda block: type(block).__name__, "parts": _parts}
    return environment.get_template("page.html.jinja")


def _shown(value: Any) -> Any:
    """Whatever is not markup already, with control characters written out."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _parts(text: Any) -> tuple[Any, ...]:
    """The pieces of a sentence or a cell."""
    return text if isinstance(text, tuple) else (text,)
