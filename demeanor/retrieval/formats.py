"""Foreign formats as text: .html, .pdf and .docx, each with the light library that reads it.

In: a file's bytes. Out: its text in pieces (pages of a .pdf file, else one), HTML as Markdown, so that headings,
lists, tables and code are cut as in a .md file. What a reader of the page would not see is left out: scripts,
navigation, and elements that are hidden. Raises ValueError that says what to do.
"""

from __future__ import annotations

import importlib.util
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

EXTRA = "pip install 'demeanor[retrieval]'"
PACKAGES = {
    ".html": ("selectolax",),
    ".htm": ("selectolax",),
    ".pdf": ("pypdf",),
    ".docx": ("mammoth", "selectolax"),
}
"""What reads a file, by the end of its name."""
MAX_UNPACKED = 256 << 20  # bytes of a .docx file when unpacked
MAX_PAGES = 20_000
MAX_DEPTH = 200  # of elements that are written as Markdown
MAX_OPEN = 5000  # elements open at once; a parser's time grows with their square
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)")
_NEVER_OPEN = frozenset(  # without an end, or whose end may be left out
    re.findall(
        r"\w+",
        "area base br col embed hr img input link meta source track wbr p li dt dd tr td th thead tbody tfoot option optgroup",
    )
)
LEFT_OUT = "script,style,noscript,template,nav,header,footer,aside,form,button,svg,iframe,head,[hidden],[aria-hidden=true]"
HIDDEN = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*0(?![.\d])|opacity\s*:\s*0(?![.\d])"
)
BLOCKS = frozenset(
    re.findall(
        r"\w+",
        "p div section article main body html ul ol dl dt dd blockquote figure figcaption details summary table tr",
    )
)


def unreadable_here(suffixes: Iterable[str]) -> set[str]:
    """Return those of the ends of names whose packages are not installed."""
    return {end for end in suffixes if not all(map(importlib.util.find_spec, PACKAGES.get(end, ())))}


def html(page: str) -> str:
    """Return a page's visible text as Markdown."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise ValueError(f"reading HTML needs the package selectolax: {EXTRA}") from None
    if _depth(page) > MAX_OPEN:
        raise ValueError(f"more than {MAX_OPEN:,} of its elements stand inside each other")
    tree = LexborHTMLParser(page)
    for node in tree.css(LEFT_OUT):
        node.decompose()
    for node in tree.css("[style]"):
        if HIDDEN.search((node.attributes.get("style") or "").lower()):
            node.decompose()
    text = "".join(_markdown(tree.body, 0)) if tree.body else ""
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def _depth(page: str) -> int:
    """Return about how many elements of a page are open at once at the most."""
    depth = deepest = 0
    for tag in _TAG.finditer(page):
        if tag[2].lower() not in _NEVER_OPEN:
            depth = max(0, depth - 1) if tag[1] else depth + 1
            deepest = max(deepest, depth)
    return deepest


def _markdown(node: Any, depth: int) -> Iterator[str]:
    """Yield the text of an element's children; too deep ones as plain text."""
    if depth > MAX_DEPTH:
        yield node.text(separator=" ")
        return
    child = node.child
    while child is not None:
        tag = child.tag
        if tag == "-text":
            yield re.sub(r"\s+", " ", child.text_content or "")
        elif re.fullmatch("h[1-6]", tag):
            yield f"\n\n{'#' * int(tag[1])} {_line(child)}\n\n"
        elif tag == "pre":
            code = child.text().strip("\n")
            fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code)), 3)
            yield f"\n\n{fence}\n{code}\n{fence}\n\n"
        elif tag == "table" and all(inner == child for inner in child.css("table")):
            yield f"\n\n{_table(child)}\n\n"
        elif tag == "li":
            inner = "".join(_markdown(child, depth + 1)).strip()
            yield f"\n- {inner}\n"
        elif tag == "br":
            yield "\n"
        elif tag in BLOCKS:
            yield "\n\n"
            yield from _markdown(child, depth + 1)
            yield "\n\n"
        elif not tag.startswith(("-", "_", "!")):
            yield from _markdown(child, depth + 1)
        child = child.next


def _line(node: Any) -> str:
    return " ".join(node.text(separator=" ").split())


def _table(node: Any) -> str:
    """Return a table with a rule under its first row."""
    rows = [[_line(cell).replace("|", "/") for cell in row.css("th,td")] for row in node.css("tr")]
    rows = [row for row in rows if any(row)]
    if not rows:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def pdf(data: bytes) -> list[str]:
    """Return the text of each page."""
    try:
        import pypdf
    except ImportError:
        raise ValueError(f"reading PDF needs the package pypdf: {EXTRA}") from None
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("it is locked with a password; save it without one")
        if len(reader.pages) > MAX_PAGES:
            raise ValueError(f"it has {len(reader.pages)} pages; at most {MAX_PAGES} are read; split it")
        return [page.extract_text() or "" for page in reader.pages]
    except ValueError:
        raise
    except Exception as error:  # pypdf raises whatever its parsing meets: a broken file is no fault of ours
        raise ValueError(f"it is not a PDF file that can be read ({type(error).__name__}: {error})") from None


def docx(data: bytes) -> str:
    """Return a document's text as Markdown."""
    try:
        import mammoth
    except ImportError:
        raise ValueError(f"reading .docx needs the package mammoth: {EXTRA}") from None
    try:
        unpacked = sum(item.file_size for item in zipfile.ZipFile(io.BytesIO(data)).infolist())
        if unpacked > MAX_UNPACKED:
            raise ValueError(f"it unpacks to {unpacked >> 20} MiB; at most {MAX_UNPACKED >> 20} are read")
        return html(mammoth.convert_to_html(io.BytesIO(data)).value)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"it is not a .docx file that can be read ({type(error).__name__}: {error})"
        ) from None
