"""Parquet, arrow and saved datasets hold the same rows as a .jsonl file, tool data included; hub ids are asked for what was declared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import DataError
from demeanor.core.types import Example
from demeanor.data.readers import bare, hub, loaded
from demeanor.data.sources import rows
from demeanor.stack.schema import Source

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "ferry",
            "description": "Times.",
            "parameters": {"type": "object", "properties": {"port": {"type": "string"}}},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "sum",
            "description": "Adds.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            },
        },
    },
]
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "When?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "ferry", "arguments": {"port": "Corkel"}}}
                ],
            },
            {"role": "tool", "content": "12"},
            {"role": "assistant", "content": "At 12."},
        ],
        "tools": TOOLS,
    },
    {
        "messages": [
            {"role": "user", "content": "37 + 1?"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "sum", "arguments": {"a": 37, "b": 1}}}
                ],
            },
            {"role": "tool", "content": "38"},
            {"role": "assistant", "content": "38."},
        ],
        "tools": TOOLS[1:],
    },
]


def read(root: Path, name: str, **settings: Any) -> list[Any]:
    return rows(Source(source=name, **settings), root=root)


def without_place(found: list[Any]) -> list[Any]:
    return [(r.messages, r.tools, r.trained_from) for r in found]


def jsonl(root: Path, found: list[dict[str, Any]]) -> None:
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = pyarrow.Table.from_pylist(ROWS)
    jsonl(tmp_path, ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "shards").mkdir()
    for i in range(2):
        pyarrow.parquet.write_table(table.slice(i, 1), tmp_path / "shards" / f"train-{i}.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as sink:
        sink.write_table(table)
    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as sink:
        sink.write_table(table)
    one = datasets.Dataset(table)
    one.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": one, "test": one.select([1])}).save_to_disk(tmp_path / "splits")
    return tmp_path


@pytest.mark.parametrize("name", ["rows.parquet", "stream.arrow", "file.arrow", "shards", "saved", "splits"])
def test_every_kind_of_table_gives_the_rows_of_the_jsonl_file(name: str, folder: Path) -> None:
    assert without_place(read(folder, name)) == without_place(read(folder, "rows.jsonl"))


def test_arguments_that_another_row_has_are_not_passed_as_null(folder: Path) -> None:
    (first, second) = read(folder, "rows.parquet")
    assert json.loads(first.messages[1].tool_calls[0].arguments) == {"port": "Corkel"}
    assert json.loads(second.messages[1].tool_calls[0].arguments) == {"a": 37, "b": 1}
    assert list(first.tools[0].parameters["properties"]) == ["port"]
    stored = pyarrow.parquet.read_table(folder / "rows.parquet").to_pylist()
    assert stored[0]["messages"][1]["tool_calls"][0]["function"]["arguments"] == {
        "port": "Corkel",
        "a": None,
        "b": None,
    }  # what Arrow made of it


def test_only_keys_with_null_are_taken_off() -> None:
    assert bare({"a": None, "b": [None, 0, "", {"c": None, "d": False}]}) == {
        "b": [None, 0, "", {"d": False}]
    }


def test_a_saved_dataset_gives_the_split_that_is_named(folder: Path) -> None:
    assert (
        without_place(read(folder, "splits", split="test")) == without_place(read(folder, "rows.jsonl"))[1:]
    )
    with pytest.raises(DataError, match=r"unknown split 'tset'\. Did you mean 'test'"):
        read(folder, "splits", split="tset")
    with pytest.raises(DataError, match="a dataset without splits"):
        read(folder, "saved", split="train")


def test_a_row_of_a_table_is_named_by_its_number(folder: Path) -> None:
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{"prompt": "a", "completion": "b"}, {"prompt": None, "completion": "d"}]),
        folder / "bad.parquet",
    )
    with pytest.raises(DataError, match=r"bad.parquet: row 2: "):
        read(folder, "bad.parquet")


def test_config_and_split_are_errors_at_a_file(folder: Path) -> None:
    with pytest.raises(DataError, match="split is for hub ids"):
        read(folder, "rows.jsonl", split="train")
    with pytest.raises(DataError, match="config is for hub ids"):
        read(folder, "rows.jsonl", config="main")


@pytest.mark.parametrize("lazily", [True, False])
def test_the_hub_reader_gives_a_named_split_of_what_datasets_finds(
    lazily: bool, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = tmp_path_factory.mktemp("hub")  # `datasets` takes a local folder wherever it takes a hub id
    for split, numbers in (("train", [0, 1]), ("test", [1])):
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{"text": f"text {i}"} for i in numbers]),
            local / f"{split}-00000.parquet",
        )
    found = list(loaded(str(local), "hf:x/y", None, None, lazily=lazily))
    assert found == [("hf:x/y: row 1", {"text": "text 0"}), ("hf:x/y: row 2", {"text": "text 1"})]
    assert [row["text"] for _, row in loaded(str(local), "hf:x/y", None, "test", lazily=lazily)] == ["text 1"]
    with pytest.raises(DataError, match="hf:x/y: unknown split 'validation'"):
        list(loaded(str(local), "hf:x/y", None, "validation", lazily=lazily))


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c", "hf:a b", "hf:a/b@"])
def test_a_hub_id_is_an_owner_and_a_name(source: str) -> None:
    with pytest.raises(DataError, match="wanted hf:owner/name"):
        list(hub(source, None, None, lazily=False))


def test_columns_are_renamed_and_a_missing_one_names_the_nearest(tmp_path: Path) -> None:
    jsonl(tmp_path, [{"question": "Who?", "answer": "Marla.", "prompt": "not this", "id": 7}])
    (found,) = read(tmp_path, "rows.jsonl", columns={"prompt": "question", "completion": "answer"})
    assert isinstance(found, Example)
    assert [m.content for m in found.messages] == ["Who?", "Marla."]
    with pytest.raises(
        DataError, match=r"rows.jsonl:1: columns: unknown column 'questoin'. Did you mean 'question'"
    ):
        read(tmp_path, "rows.jsonl", columns={"prompt": "questoin"})


def test_bad_rows_are_skipped_counted_and_the_first_three_are_said(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "a", "completion": "b"}',
        "{",
        '{"prompt": "a"}',
        '{"text": 3}',
        '{"text": ""}',
        '{"prompt": "c", "completion": "d"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    said: list[str] = []
    found = rows(Source(source="rows.jsonl", skip_bad=True), root=tmp_path, say=said.append)
    assert [r.source.rsplit(":", 1)[1] for r in found] == ["1", "3", "6"]
    (text,) = said
    assert "rows.jsonl: skipped 3 of 6 rows:" in text
    assert [line.split(": ")[0].rsplit(":", 1)[1] for line in text.split("\n  ")[1:]] == ["2", "4", "5"]
    with pytest.raises(DataError, match="3 of 6 rows cannot be used"):
        read(tmp_path, "rows.jsonl")
