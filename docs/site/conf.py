"""Sphinx's settings for `make docs`; docs/site/build.py stages the pages and calls it."""

import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).parent)]
import demeanor

project, author, release = "demeanor", "the authors of demeanor", demeanor.__version__
copyright = "the authors of demeanor, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = f"demeanor {release}"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["site.css"]
html_extra_path = [str(path) for path in (Path(__file__).resolve().parents[1] / "examples").glob("*.html")]
html_copy_source = False
html_show_sphinx = False
myst_heading_anchors = 6
myst_heading_slug_func = "anchors.slug"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_default_options = {"exclude-members": "model_config"}


def plain(app, what, name, obj, options, lines) -> None:  # noqa: ANN001
    """Make a docstring of plain text and backticks into reStructuredText that says the same."""
    lines[:] = [
        "".join(
            part if i % 2 else re.sub(r"([*|\\_])", r"\\\1", part)
            for i, part in enumerate(re.split(r"(`[^`]*`)", line))
        )
        for line in lines
    ]
    lines[:] = list(_drawn(re.sub(r"`([^`]+)`", r"``\1``", line) for line in lines))


def _drawn(lines):  # noqa: ANN001, ANN202
    """Indented lines are a drawing or code: a literal block."""
    inside = False
    for line in lines:
        indented = line.startswith(" ")
        if indented and not inside:
            yield from ("", "::", "")
        elif inside and line.strip() and not indented:
            yield ""
        inside = indented or (inside and not line.strip())
        yield line


def setup(app) -> None:  # noqa: ANN001
    app.connect("autodoc-process-docstring", plain)
