"""Documents: read in the right encoding or refused, never outside the folder; code and tables stay whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from demeanor.cli import main
from demeanor.core.errors import DataError
from demeanor.retrieval.documents import MAX_BLOCK, chunks, cut, decoded, read_folder
from demeanor.retrieval.index import open_folder


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8-sig", "# \u00d6ffnungszeiten"),
        ("utf-16", "M\u00fcller"),
        ("utf-16-le", "plain words"),
        ("utf-16-be", "plain words"),
        ("utf-32", "M\u00fcller"),
        ("latin-1", "M\u00fcller pr\u00fcft die Br\u00fccke"),
        ("cp1252", "It\u2019s \u201cfine\u201d \u2013 5 \u20ac for a caf\u00e9"),
        ("cp1252", "\u00e9l\u00e8ve, \u00e9t\u00e9, o\u00f9, l\u00e0, c\u0153ur, 3 m\u00b2, 5 m\u00b3"),
        ("cp1252", "El Ni\u00f1o peque\u00f1o \u00bfqu\u00e9 tal?"),
        ("cp1252", "\u00e5rsm\u00f8de p\u00e5 \u00c6r\u00f8"),
    ],
)
def test_a_document_is_read_in_its_encoding(encoding: str, text: str) -> None:
    assert decoded(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1251", "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440"),
        ("cp1251", "\u042f \u0438 \u0442\u044b"),
        ("koi8-r", "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440"),
        ("cp1250", "\u0141\u00f3d\u017a s\u0105"),
        ("cp1250", "p\u0159\u00edli\u0161 \u017elu\u0165ou\u010dk\u00fd k\u016f\u0148"),
        ("iso-8859-2", "\u0141\u00f3d\u017a s\u0105 w porz\u0105dku"),
        ("cp1254", "\u0130stanbul'da \u0131\u015f\u0131k"),
        ("cp1253", "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1"),
        ("shift-jis", "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c"),
        ("iso2022_jp", "\u3053\u3093\u306b\u3061\u306f"),
        ("gbk", "\u4f60\u597d\u4e16\u754c"),
        ("big5", "\u4f60\u597d\u4e16\u754c\u4eca\u5929"),
        ("euc-kr", "\uc548\ub155 \uc138\uacc4"),
        ("cp437", "M\u00fcller pr\u00fcft"),
        ("mac-roman", "M\u00fcller caf\u00e9"),
        ("latin-1", "\x89PNG\r\n\x1a\n\0\0\0\rIHDR"),
        ("latin-1", "ab\0c"),
        ("latin-1", "\xff\xfea"),
    ],
)
def test_a_document_of_an_uncertain_encoding_is_refused_and_never_garbled(encoding: str, text: str) -> None:
    with pytest.raises(ValueError, match="UTF-8"):
        decoded(text.encode(encoding))


def test_every_refused_file_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / "a.md").write_bytes("\u043c\u0438\u0440".encode("cp1251"))
    (tmp_path / "b.txt").write_bytes(b"\x00\x01\x02")
    (tmp_path / "c\n.txt").write_text("forged name")
    with pytest.raises(DataError, match=r"3 of its files cannot be indexed") as error:
        open_folder(tmp_path)
    assert [name in str(error.value) for name in ("a.md", "b.txt", r"c\n.txt", "good.txt")] == [True] * 3 + [
        False
    ]


def test_explain_counts_the_passages_or_names_the_files_that_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notices").mkdir()
    (tmp_path / "notices" / "a.txt").write_text("one\ntwo\n")
    layer = "{kind: retrieval, index: notices}"
    base = "{kind: remote, url: 'http://127.0.0.1:1/v1', model: m}"
    (tmp_path / "s.yaml").write_text(f"name: s\nweights: {{base: {base}}}\nlayers: [{layer}]\n")
    assert main(["explain", str(tmp_path / "s.yaml"), "--runs", str(tmp_path / "runs")]) == 0
    assert "1 files, 2 passages" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "notices" / "b.txt").write_bytes("\u043c\u0438\u0440".encode("koi8-r"))
    assert main(["explain", str(tmp_path / "s.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    assert "b.txt" in capsys.readouterr().err


def test_links_do_not_leave_the_folder_and_pipes_are_not_opened(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "notices"
    (outside / "deep").mkdir(parents=True)
    (folder / "sub").mkdir(parents=True)
    (outside / "secret.txt").write_text("secret")
    (outside / "deep" / "secret.md").write_text("secret")
    (folder / "real.txt").write_text("open")
    (folder / "absolute.txt").symlink_to(outside / "secret.txt")
    (folder / "sub" / "relative.md").symlink_to("../../outside/deep/secret.md")
    (folder / "through.txt").symlink_to("sub/../../outside/secret.txt")
    (folder / "twice.txt").symlink_to("absolute.txt")
    (folder / "tree.md").symlink_to(outside / "deep")
    (folder / "tree").symlink_to(outside / "deep")
    (folder / "self.txt").symlink_to("self.txt")
    (folder / "gone.txt").symlink_to(outside / "nothing.txt")
    (folder / "device.txt").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.txt")
    (folder / "beside.txt").symlink_to("real.txt")
    (tmp_path / "notices-too").mkdir()
    (tmp_path / "notices-too" / "x.txt").write_text("secret")
    (folder / "prefix.txt").symlink_to("../notices-too/x.txt")
    assert {name: x.text for name, x in read_folder(folder).items()} == {
        "real.txt": "open",
        "beside.txt": "open",
    }
    linked = tmp_path / "link"
    linked.symlink_to(folder)
    assert read_folder(linked) == read_folder(folder), "the folder itself may be a link: its owner chose it"


MARKDOWN = """# Guide

Before
~~~ python
# a comment, no heading

x = 1
~~~
- ```sh
  # nor this
  ls
  ```

| berth | ship |
|-------|------|
| 4     | Sella |

    # indented code

    y = 2

## C#
- item

    # not a heading either
````md
```
# deep
```
````
## Empty ##
## Bare
### Deep

words
# End
"""


def test_code_and_tables_stay_whole_and_a_comment_is_no_heading() -> None:
    assert [(c.heading, c.body) for c in chunks("guide.md", MARKDOWN)] == [
        ("Guide", "Before"),
        ("Guide", "~~~ python\n# a comment, no heading\n\nx = 1\n~~~"),
        ("Guide", "- ```sh\n  # nor this\n  ls\n  ```"),
        ("Guide", "| berth | ship |\n|-------|------|\n| 4     | Sella |"),
        ("Guide", "    # indented code\n\n    y = 2"),
        ("Guide / C#", "item"),
        ("Guide / C#", "# not a heading either"),
        ("Guide / C#", "````md\n```\n# deep\n```\n````"),
        ("Guide", "Empty"),
        ("Guide / Bare / Deep", "words"),
        ("", "End"),
    ]


def test_a_long_table_or_code_block_is_cut_between_lines_and_keeps_its_head() -> None:
    rows = [f"| {i} | {'x' * 90} |" for i in range(100)]
    found = chunks("a.md", "\n".join(["| n | text |", "|---|---|", *rows]))
    assert len(found) == 3
    assert all(c.body.startswith("| n | text |\n|---|---|\n| ") and len(c.body) <= MAX_BLOCK for c in found)
    assert [line for c in found for line in c.body.split("\n")[2:]] == rows
    code = [f"call({i}, {'x' * 90})" for i in range(60)]
    found = chunks("a.md", "\n".join(["```python", *code, "```"]))
    assert [c.body.split("\n")[0] + c.body.split("\n")[-1] for c in found] == ["```python```"] * 2
    assert [line for c in found for line in c.body.split("\n")[1:-1]] == code
    whole = chunks("a.md", "```\n" + "y" * (MAX_BLOCK - 8) + "\n```")
    assert [len(c.body) for c in whole] == [MAX_BLOCK]


def test_a_fence_that_is_not_closed_ends_with_the_file_and_every_line_is_kept() -> None:
    assert [c.body for c in chunks("a.md", "text\n```\n# x\n\n| y")] == ["text", "```\n# x\n\n| y"]


def test_a_line_ends_where_editors_end_it_and_long_text_is_cut_between_words() -> None:
    assert [c.body for c in chunks("a.txt", "one\u2028still one\x0c\r\ntwo\rthree")] == [
        "one\u2028still one",
        "two",
        "three",
    ]
    assert list(cut("one two. three four five", 12)) == ["one two.", "three four", "five"]
    assert list(cut("a,bb,ccc,dddd", 6)) == ["a,bb,", "ccc,", "dddd"]
    assert list(cut("exact sum.", 10)) == ["exact sum."]
    assert list(cut("abcdefgh", 3)) == ["abc", "def", "gh"]


def test_rows_of_a_jsonl_file_are_passages_with_their_own_ids(tmp_path: Path) -> None:
    rows = (
        '{"id": "https://a.example/b#c", "title": "Ferries", "text": "Corkel 9."}\n\n{"text": "Jorpel 17."}\n'
    )
    found = [(c.id, c.source, c.heading, c.body) for c in chunks("cut.jsonl", rows)]
    assert found == [
        ("https://a.example/b#c#1", "https://a.example/b#c", "Ferries", "Corkel 9."),
        ("cut.jsonl#1", "cut.jsonl", "", "Jorpel 17."),
    ]
    long = '{"id": "x", "text": "' + "One two three. " * 100 + '"}\n{"id": "x", "text": "Four."}'
    assert [c.id for c in chunks("cut.jsonl", long)] == ["x#1", "x#2", "x#3"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{nothing", "line 2 is no JSON"),
        ('["a"]', "line 2 has list; wanted"),
        ('{"body": "x"}', "line 2 has body; wanted"),
        ('{"text": 3}', "line 2: text is no text"),
    ],
)
def test_a_jsonl_file_that_holds_no_passages_is_refused_with_its_line(
    tmp_path: Path, line: str, said: str
) -> None:
    (tmp_path / "cut.jsonl").write_text('{"text": "Corkel 9."}\n' + line)
    with pytest.raises(DataError, match=r"cut\.jsonl") as error:
        read_folder(tmp_path)
    assert said in str(error.value)
