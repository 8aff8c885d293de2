"""Every file of ../shared/cases: small inputs that once failed, through the public entries, with what is right."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import CheckpointError, DataError
from demeanor.core.types import Completion, Item, Message
from tests.conftest import REPOSITORY

CASES = REPOSITORY.parent / "shared" / "cases"
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(),
    reason=f"no {CASES}: the shared cases are not here; each room's tests carry their essence",
)


def lines(name: str) -> list[dict[str, Any]]:
    path = CASES / "runtime" / name
    return [json.loads(x) for x in path.read_text(encoding="utf-8").split("\n") if x] if path.exists() else []


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# ---- runtime ----


@pytest.mark.parametrize("name", ["01-absence-leaks.jsonl", "02-exact-numbers.jsonl", "03-numbers.jsonl"])
def test_scorers_give_the_value_that_the_line_says(name: str) -> None:
    from demeanor.evaluation.scorers import score_item

    wrong, found = [], lines(name)
    for row in found:
        said = re.search(r"SAY<<(.*)>>", row["messages"][0]["content"], re.S)
        assert said, row
        item = Item(
            row["id"], (Message("user", "Q"),), row["scorer"], row["target"], row["axis"], row["cluster"]
        )
        score = score_item(item, Completion(said[1], "stop"))
        if score.value != row["expected"]:
            wrong.append((row["id"], said[1], score))
    assert len(found) > 5
    assert wrong == []


def test_detectors_find_what_the_line_says() -> None:
    from demeanor.core.long_text import Folded
    from demeanor.core.personal_data import DETECTORS

    wrong, found = [], lines("07-detectors.jsonl")
    for row in found:
        folded = Folded(row["text"])
        spans = list(DETECTORS[row["detector"]].find(folded.text, 0))
        if bool(spans) != (row["expected"] != "none"):
            wrong.append((row, spans))
        if row["expected"] == "whole address":
            wrong += [] if spans[0] == (0, len(folded.text)) or " " in row["text"] else [(row, spans)]
    assert len(found) > 10
    assert wrong == []


def test_each_file_of_the_index_is_found_by_its_own_first_word() -> None:
    from demeanor.retrieval.index import open_folder

    folder = CASES / "runtime" / "04-index"
    search = open_folder(folder)
    words = {"bom.md": "Opening", "latin1.txt": "Müller", "strasse.txt": "Straße", "code.md": "heading"}
    words["long.txt"] = (folder / "long.txt").read_text().split()[0]
    for file, word in words.items():
        assert file in [Path(passage.source).name for passage in search(word, 5)], (file, word)
    code = next(p.text for p in search("heading", 5) if Path(p.source).name == "code.md")
    assert "x = 1" in code  # the fence stays whole, and its comment is no heading


NEVER_READ = {
    "array", "bool_target", "dup", "dupkey", "empty", "never", "no_user", "nul", "pretty", "str_target", "nan_target"
}  # fmt: skip


@pytest.mark.parametrize("path", sorted((CASES / "runtime" / "suites").glob("*.jsonl")), ids=lambda p: p.stem)
def test_a_suite_is_read_or_refused_with_its_file_and_a_line(path: Path) -> None:
    from demeanor.evaluation.items import load_suite

    try:
        read = bool(load_suite(path))
        refusal = ""
    except DataError as error:
        read, refusal = False, str(error)
    assert read != bool(re.search(rf"{re.escape(path.name)}(:\d+|: )", refusal)), refusal
    assert not (read and path.stem in NEVER_READ)


def test_logs_of_lm_eval_with_u2028_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from demeanor.cli import main

    folder = CASES / "runtime" / "10-lm-eval-u2028"
    assert main(["logs", "import", str(folder / "a"), str(folder / "b"), "--results", str(tmp_path)]) == 0, (
        capsys.readouterr()
    )
    assert list(tmp_path.glob("harness*.json"))


# ---- training ----


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    shutil.copytree(CASES / "training" / "data", folder, dirs_exist_ok=True)
    for path in (CASES / "training" / "mistakes").glob("*.yaml"):
        shutil.copy(path, folder)
    shutil.copytree(folder / "base", folder / "nochat")
    (folder / "nochat" / "chat_template.jinja").unlink(missing_ok=True)
    rows = [{"q": f"q{i}", "a": f"a{i}"} for i in range(8)]
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


MISTAKES = {  # what stands in the one message: the place, and the remedy where there is one to name
    "m01_typo_setting": ("learning_rate", "optim"),
    "m03_tab": ("m03_tab.yaml:3",),
    "m04_missing_file": ("goood.jsonl",),
    "m05_pref_data_for_sft": ("pairs.jsonl:1", "dpo"),
    "m06_sft_data_for_dpo": ("good.jsonl:1", "chosen"),
    "m07_template_model_on_base_without": ("template",),
    "m08_lora_target": ("query_key_value",),
    "m09_beta_outside": ("beta", "objective: {kind: dpo, beta: 0.1}"),
    "m10_wrong_path_base": ("modells/llama",),
    "m11_grad_accum": ("gradient_accumulation_steps", "epochs"),
    "m12_columns": ("columns:",),
    "m13_ppo": ("ppo",),
    "m14_max_tokens_too_small": ("max_tokens",),
    "m15_max_tokens_above_context": ("max_tokens", "context"),
}


@pytest.mark.parametrize("name", sorted(MISTAKES))
def test_a_mistake_gets_one_message_with_place_and_remedy(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    with inside(place):
        code = main(["train", f"{name}.yaml"])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert [part for part in MISTAKES[name] if part not in said] == [], said


TRAINS = {"as2": "", "mt_skip": "mt.jsonl:13", "pre": "special tokens", "uneq": ""}


@pytest.mark.parametrize("name", sorted(TRAINS))
def test_a_stack_of_odd_rows_trains_and_says_what_it_left_out(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    with inside(place):
        code = main(["train", f"{name}.yaml"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert TRAINS[name] in out + err


@pytest.mark.parametrize(("name", "said"), [("mt", "mt.jsonl:13"), ("big2", "tokenizer 520 > embedding 512")])
def test_a_stack_that_cannot_train_is_refused(
    name: str, said: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    with inside(place):
        code = main(["train" if name == "mt" else "explain", f"{name}.yaml", "--runs", str(tmp_path)])
    found = capsys.readouterr()
    assert code == 2
    assert said in found.out + found.err


UNREADABLE = (
    "odd.parquet",
    "surrogate.jsonl",
    "utf16.jsonl",
)  # bytes in a column; half a character; not UTF-8


@pytest.mark.parametrize(
    "path", [p for p in sorted((CASES / "training" / "data").glob("*.*")) if p.suffix in (".jsonl", ".csv", ".parquet")],
    ids=lambda p: p.name,
)  # fmt: skip
def test_every_data_file_is_read_or_each_bad_row_is_named(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    code = main(["data", "filter", str(path), str(tmp_path / "out.jsonl"), "--min-chars", "1"])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert code == (2 if path.name in UNREADABLE else 0), said.err
    assert (path.name in said.err) == bool(code)


@pytest.mark.parametrize("name", ["dedup_calls.jsonl", "dedup_symbols.jsonl"])
def test_rows_that_differ_in_data_are_no_repeats(name: str, place: Path, tmp_path: Path) -> None:
    from demeanor.cli import main

    out = tmp_path / name
    assert main(["data", "dedup", str(place / name), str(out)]) == 0
    assert out.read_text().count("\n") == (place / name).read_text().count("\n")


@pytest.mark.parametrize("name", ["pref_openai.jsonl", "pref_sharegpt.json"])
def test_preferences_in_shapes_of_others_are_preferences(name: str) -> None:
    from demeanor.core.types import Preference
    from demeanor.data import sources
    from demeanor.stack.schema import Source

    found = sources.rows(Source(source=name), root=CASES / "data-shapes", want="preferences")
    assert found
    assert {type(row) for row in found} == {Preference}


CHECKPOINTS = ("llama", "llama_tied", "tied_but_trained_head", "both_files")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_gives_transformers_log_probabilities(name: str) -> None:
    import torch

    from tests.model.test_model_stored import logprobs, transformers

    folder = CASES / "training" / "checkpoints" / name
    assert torch.allclose(logprobs(folder), transformers(folder), atol=1e-5)


@pytest.mark.parametrize("name", ["pissa"])
def test_an_adapter_that_cannot_be_read_right_is_refused_by_name(name: str) -> None:
    from demeanor.model import checkpoints

    with pytest.raises(CheckpointError, match=name):
        checkpoints.load(CASES / "training" / "checkpoints" / "adapters" / name)


# ---- serving ----


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[dict[str, str]]:
    """The three local stacks of serving/, each served in this process: its address by its name."""
    from contextlib import ExitStack

    from demeanor.app import StackRuntime, load_stack
    from demeanor.server.application import app
    from demeanor.serving import ServedStack
    from demeanor.training.runs import Runs
    from tests.server.live import live

    folder = tmp_path_factory.mktemp("serving")
    for file in (CASES / "serving").glob("*"):
        if file.suffix in (".yaml", ".jinja"):
            text = file.read_text().replace("../../data", str(shared)).replace("runs/", f"/{folder}/")
            (folder / file.name).write_text(text)
    with ExitStack() as stack:
        found = {}
        for name in ("chatml", "gemma", "qwen3coder"):
            runtime = StackRuntime(load_stack(folder / f"{name}.yaml"), Runs(folder / "runs"))
            stack.callback(runtime.close)
            found[runtime.stack.spec.name] = stack.enter_context(live(app(ServedStack(runtime))))
        yield found


def ask(servers: dict[str, str], name: str) -> tuple[int, dict[str, Any]]:
    import httpx

    body = (CASES / "serving" / f"{name}.json").read_bytes()
    given = re.search(rb'"model": ?"([a-z0-9]+)"', body)
    assert given
    path = "/v1/responses" if b'"input"' in body[:200] else "/v1/chat/completions"
    sent = {"content": body, "headers": {"content-type": "application/json"}}
    answer = httpx.post(servers[given[1].decode()] + path, timeout=60, **sent)
    return answer.status_code, answer.json()


REFUSED = {
    "bigint_const": "response_format",
    "deep_wrong_value": "temperature",
    "kill_engine": "response_format",
    "kill_engine_tool": "tools[0].function.parameters",
    "template_qwen3coder_bad": "messages[1].tool_calls[0].function.arguments",
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_request_that_cannot_be_answered_is_a_400_of_its_field(name: str, servers: dict[str, str]) -> None:
    status, answer = ask(servers, name)
    assert (status, answer["error"]["param"]) == (400, REFUSED[name])
    assert ask(servers, "temperature_tiny")[0] == 200  # and the next one is answered


@pytest.mark.parametrize(
    "name", ["history_call_index", "history_refusal_part", "responses_output_list", "template_gemma_system"]
)
def test_what_clients_send_back_is_read(name: str, servers: dict[str, str]) -> None:
    assert ask(servers, name)[0] == 200


def test_temperatures_below_fp32_are_greedy(servers: dict[str, str]) -> None:
    import httpx

    given = json.loads((CASES / "serving" / "temperature_tiny.json").read_text())
    greedy = httpx.post(servers["stories"] + "/v1/chat/completions", json={**given, "temperature": 0}).json()
    assert ask(servers, "temperature_tiny")[1]["choices"] == greedy["choices"]
    assert ask(servers, "kill_engine_temperature")[0] == 200


def test_bytes_of_tokens_join_to_the_content(servers: dict[str, str]) -> None:
    choice = ask(servers, "logprobs_bytes")[1]["choices"][0]
    joined = bytes(b for token in choice["logprobs"]["content"] for b in token["bytes"])
    assert joined.decode() == choice["message"]["content"]


def test_a_forced_call_that_is_cut_comes_back_as_a_cut_call(servers: dict[str, str]) -> None:
    """The case names the demo; here the stories model is cut the same way."""
    import httpx

    body = json.loads((CASES / "serving" / "forced_call_cut.json").read_text()) | {"model": "stories"}
    choice = httpx.post(servers["stories"] + "/v1/chat/completions", json=body, timeout=60).json()["choices"][
        0
    ]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", None)
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "get_weather"


def test_a_stop_string_cuts_a_form(servers: dict[str, str]) -> None:
    choice = ask(servers, "stop_cuts_json")[1]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert "," not in choice["message"]["content"]
