"""Markdown of an answer as the pages draw it, in a real browser; skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from live import served
from scripted import Scripted

from tests.conftest import each

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

CASES = [
    (
        "a *b* **c** ***d*** ~~e~~",
        "<p>a <em>b</em> <strong>c</strong> <em><strong>d</strong></em> <del>e</del></p>",
    ),
    ("*a **b* c**", "<p><em>a <em><em>b</em> c</em></em></p>"),
    (
        "snake_case_name and __strong__ and 2*3*4",
        "<p>snake_case_name and <strong>strong</strong> and 2*3*4</p>",
    ),
    ("``a ` b`` `c", "<p><code>a ` b</code> `c</p>"),
    ("one\ntwo\\\nthree", "<p>one<br>\ntwo<br>three</p>"),
    ("# A #\n\nB\n===\n\n#no", "<h3>A</h3><h3>B</h3><p>#no</p>"),
    ("- a\n- b\n  - c\n\n  d", "<ul><li><p>a</p></li><li><p>b</p><ul><li>c\n</li></ul><p>d</p></li></ul>"),
    ("3. x\n4. y\n* z", "<ol><li>x\n</li><li>y\n</li></ol><ul><li>z\n</li></ul>"),
    ("- [x] done\n- [ ] open", "<ul><li><span></span>done\n</li><li><span></span>open\n</li></ul>"),
    (
        "> a\nlazy\n> - b\n\nafter",
        "<blockquote><p>a<br>\nlazy</p><ul><li>b\n</li></ul></blockquote><p>after</p>",
    ),
    ("a\n***\nb", "<p>a</p><hr><p>b</p>"),
    (
        "Look:\n| a | b |\n|---|--:|\n| `x|y` | 2 |\n| only |",
        "<p>Look:</p><div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
        "<tbody><tr><td><code>x|y</code></td><td>2</td></tr><tr><td>only</td><td></td></tr></tbody></table></div>",
    ),
    (
        "<b>x</b> &lt; &amp; &#x41; &nope; a<br>b",
        "<p>&lt;b&gt;x&lt;/b&gt; &lt; &amp; A &amp;nope; a<br>b</p>",
    ),
    (r"\*a\* \# \\", "<p>*a* # \\</p>"),
    ("![alt](https://e.org/x.png)", "<p><a>picture: alt</a></p>"),
    ("$5 and $6, or US$7", "<p>$5 and $6, or US$7</p>"),
    ("a | b\nno table", "<p>a | b<br>\nno table</p>"),
    (
        "[x](javascript:alert(1)) [y](data:text/html,z) [z](/local)",
        "<p><span>x (javascript:alert(1))</span> <span>y (data:text/html,z)</span> <span>z (/local)</span></p>",
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with served(Scripted()) as url, Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(url)
        browser.wait("document.querySelectorAll('#examples button').length")
        yield browser


def run(page: Browser, script: str, **values: Any) -> Any:
    """The value of a script with the renderer in scope."""
    given = "".join(f"const {name} = {json.dumps(value)};" for name, value in values.items())
    return page.run(
        f"""(async () => {{
        const {{ markdown }} = await import("/static/markdown/render.js");
        const {{ growing }} = await import("/static/markdown/stream.js");
        const {{ withMarks }} = await import("/static/markdown/citations.js");
        const drawn = (nodes) => {{ const made = document.createElement("div"); made.append(...nodes); return made; }};
        {given} {script}
    }})()"""
    )


def plain(page: Browser, text: str) -> str:
    """The markup of a text without attributes."""
    return str(
        run(
            page,
            "return drawn(markdown(text)).innerHTML.replace(/<(\\w+)(?: [^<>]*)?>/g, '<$1>');",
            text=text,
        )
    )


@pytest.mark.parametrize(("text", "markup"), CASES, ids=[text[:20] for text, _ in CASES])
def test_markdown_becomes_elements(page: Browser, text: str, markup: str) -> None:
    assert plain(page, text) == markup


def test_links_open_elsewhere_and_tell_nothing_of_this_page(page: Browser) -> None:
    found = run(
        page,
        "return Array.from(drawn(markdown(text)).querySelectorAll('a'), (a) => [a.textContent, a.getAttribute('href'), a.target, a.rel]);",
        text='[x](https://e.org/a_(b) "t") <mailto:a@b.org> https://e.org/q?x=(1). [https://bank.org](https://evil.org) [u](https://a:b@e.org)',
    )
    assert [x[:2] for x in found] == [
        ["x", "https://e.org/a_(b)"],
        ["mailto:a@b.org", "mailto:a@b.org"],
        ["https://e.org/q?x=(1)", "https://e.org/q?x=(1)"],
        ["https://bank.org", "https://evil.org/"],
    ]
    assert {(x[2], x[3]) for x in found} == {("_blank", "noopener noreferrer nofollow ugc")}
    assert "(evil.org)" in plain(page, "[https://bank.org](https://evil.org)")


def test_code_is_coloured_copied_as_it_was_and_shows_what_cannot_be_seen(page: Browser) -> None:
    text = '```python\ndef f():  # no\n    return "x" + \u202e1\n```'
    found = run(
        page,
        """const made = drawn(markdown(text));
        const kinds = Array.from(made.querySelectorAll("code span"), (s) => [s.className, s.textContent]);
        return [kinds, made.querySelector("code").source, made.querySelector("figcaption span").textContent];""",
        text=text,
    )
    assert found[0] == [
        ["t-keyword", "def"],
        ["t-called", "f"],
        ["t-comment", "# no"],
        ["t-keyword", "return"],
        ["t-string", '"x"'],
        ["t-hidden", "U+202E"],
        ["t-number", "1"],
    ]
    assert found[1:] == ['def f():  # no\n    return "x" + \u202e1', "python"]


def test_mathematics_becomes_mathml_without_a_word_to_the_policy(page: Browser) -> None:
    before = len(page.errors)
    found = run(
        page,
        """const made = drawn(markdown(text));
        document.querySelector("#log").append(made);
        await import("/static/vendor/temml.js");
        await new Promise((done) => setTimeout(done, 0));
        const kinds = [made.querySelectorAll("math").length, made.querySelectorAll("mfrac").length, made.querySelectorAll(".unread").length, made.querySelectorAll("[style*=url], script, a, img").length];
        made.remove();
        return kinds;""",
        text="$\\frac{a}{b}$ and \\(x^2\\)\n\n$$\n\\begin{cases} 1 \\\\ \\color{red}{2} \\end{cases}\n$$\n\n\\[\\cancel{y}\\] "
        "$\\href{javascript:alert(1)}{z}$ $\\includegraphics{https://e.org/x.png}$ $\\undefined$",
    )
    assert found[:2] == [4, 1]
    assert found[2] >= 1
    assert found[3] == 0
    assert page.errors[before:] == []


def test_a_citation_becomes_a_mark_and_a_note_wherever_it_stands(page: Browser) -> None:
    text = "# Berths\n\n- The 🐟 **Sella** lies at 4.\n- Other.\n\n```\ncode\n```"
    start = text.index("- The")
    spans = [
        {"start": start, "end": text.index(".\n- Other") + 1, "note": "1"},
        {"start": text.index("```"), "end": len(text), "note": "2"},
    ]
    found = run(
        page,
        """const made = drawn(markdown(text, { spans, footnote: (n) => document.createTextNode(`[${n}]`) }));
        return [Array.from(made.querySelectorAll("mark"), (m) => m.textContent), made.querySelector("li").textContent, made.textContent, made.querySelectorAll("pre").length];""",
        text=text,
        spans=spans,
    )
    assert "".join(found[0]) == "The 🐟 Sella lies at 4."
    assert found[1] == "The 🐟 Sella lies at 4.[1]\n"
    assert "[2]" in found[2]
    assert found[3] == 1


def test_an_answer_that_grows_ends_as_one_that_came_whole(page: Browser) -> None:
    text = (
        "\n\n".join(markup for markup, _ in CASES) + "\n\n```js\n" + "let x = 1;\n" * 400 + "```\n\nThe end"
    )
    same = run(
        page,
        """const box = document.createElement("div");
        document.body.append(box);
        const view = growing(box);
        for (let at = 0; at < text.length; at += 97) {
            view.update(text.slice(0, at));
            if (at % 5 === 0) await new Promise((done) => setTimeout(done, 25));
        }
        view.update(text);
        const wanted = drawn(markdown(text)).textContent;
        for (let i = 0; i < 400 && box.textContent !== wanted; i += 1) await new Promise((done) => setTimeout(done, 25));
        const found = box.textContent === wanted;
        box.remove();
        return found;""",
        text=text,
    )
    assert same is True


BOMBS = {
    "brackets": "[" * 200_000,
    "link starts": "[a](" * 60_000,
    "stars": "*a **b " * 60_000,
    "ticks": "`a``b```c" * 40_000,
    "dollars": "$a $b" * 80_000,
    "quotes": "> " * 50_000 + "x",
    "nested list": "\n".join(" " * i + "- x" for i in range(800)),
    "table": "|a" * 60 + "|\n" + "|-" * 60 + "|\n" + ("|x" * 60 + "|\n") * 3000,
    "bars": "a|" * 200_000 + "\n-|-\n",
    "one line": "x" * 1_000_000,
    "lines": "- \n" * 100_000,
    "hashes": "# a " + "# " * 200_000,
    "addresses": "https://a.b/" + ")!(" * 100_000,
    "formula": "$" + "{" * 400 + "}" * 400 + "$ $\\def\\a{\\a\\a}\\a$ $\\rule{99999em}{99999em}$",
    "html": "<" * 300_000,
    "entities": "&#x" * 100_000,
    "rules": "- " * 100_000,
    "fences": "```\n" * 50_000,
    "displayed": "\\[\n" * 30_000,
}


def test_hostile_texts_are_drawn_in_bounded_time_and_size(page: Browser) -> None:
    for name, text in each(BOMBS.items()):
        took_ms, nodes, deep = run(
            page,
            """const began = performance.now();
            const made = drawn(markdown(text));
            const took = performance.now() - began;
            let deep = 0;
            for (const leaf of made.querySelectorAll("*")) {
                if (leaf.children.length) continue;
                let depth = 0;
                for (let up = leaf; up !== made; up = up.parentNode) depth += 1;
                deep = Math.max(deep, depth);
                if (depth > 500) break;
            }
            return [took, made.querySelectorAll("*").length, deep];""",
            text=text,
        )
        assert took_ms < 20_000, name  # linear ones take far less; a quadratic one takes minutes
        assert nodes < 150_000, name
        assert deep < 150, name
