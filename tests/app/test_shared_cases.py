"""Every file of ../shared/cases: small inputs that once failed, through the public entries, with what is right."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from demeanor.core.errors import CheckpointError, DataError
from demeanor.core.types import Completion, Example, Item, Message
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


# ---- serving/upstream.py: one misbehaving server, named by the last user message ----


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """remote.yaml and remotetools.yaml before upstream.py: the address of each by its name."""
    import socket
    import subprocess
    import sys
    from contextlib import ExitStack

    from demeanor.app import StackRuntime, load_stack
    from demeanor.server.application import app
    from demeanor.serving import ServedStack
    from demeanor.training.runs import Runs
    from tests.server.live import live

    folder = tmp_path_factory.mktemp("upstream")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with ExitStack() as stack:
        other = subprocess.Popen(
            [sys.executable, str(CASES / "serving" / "upstream.py"), port], stdout=subprocess.DEVNULL
        )
        stack.callback(other.wait)
        stack.callback(other.kill)
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < until, "upstream.py does not listen"
                time.sleep(0.05)
        found = {}
        for name in ("remote", "remotetools"):
            text = (CASES / "serving" / f"{name}.yaml").read_text()
            (folder / f"{name}.yaml").write_text(text.replace("8111", port).replace("runs/", f"/{folder}/"))
            runtime = StackRuntime(load_stack(folder / f"{name}.yaml"), Runs(folder / "runs"))
            stack.callback(runtime.close)
            found[runtime.stack.spec.name] = stack.enter_context(live(app(ServedStack(runtime))))
        yield found


def scenario(
    upstream: dict[str, str], name: str, model: str = "far", **more: Any
) -> tuple[int, dict[str, Any]]:
    import httpx

    body = {"model": model, "messages": [{"role": "user", "content": name}], **more}
    answer = httpx.post(upstream[model] + "/v1/chat/completions", json=body, timeout=60)
    return answer.status_code, answer.json()


def offered(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": n, "parameters": {"type": "object"}}} for n in names]


HELLO = ("ok nospace comments events crlf cr bom errnull emptydata nodone nofinish end_turn emptyfinish nochoices "
         "nulldelta parts reasoning plainjson noct gzip text0 openafterdone heartbeat heartbeatnodone s503once")  # fmt: skip


@pytest.mark.parametrize("name", HELLO.split())
def test_an_odd_upstream_that_says_hello_is_an_answer(name: str, upstream: dict[str, str]) -> None:
    began = time.monotonic()
    status, answer = scenario(upstream, name)
    assert status == 200, answer
    choice = answer["choices"][0]
    assert choice["message"]["content"].startswith("Hello")
    assert choice["finish_reason"] == "stop"
    assert time.monotonic() - began < 20  # a socket that stays open for 30 or 40 s ends nothing


ONE_CALL = {
    "noindex": '{"city": "Paris"}',
    "nullindex": '{"city": "Paris"}',
    "repeatname": '{"city": "Paris"}',
    "stopcalls": "{}",
    "nulargs": "{}",
    "strindex": "{}",
}


@pytest.mark.parametrize("name", sorted(ONE_CALL))
def test_an_odd_upstream_that_makes_a_call_makes_one_call(name: str, upstream: dict[str, str]) -> None:
    status, answer = scenario(upstream, name, tools=offered("get_weather", "get_time"))
    assert status == 200, answer
    (call,) = answer["choices"][0]["message"]["tool_calls"]
    assert (call["id"], call["function"]) == ("c1", {"name": "get_weather", "arguments": ONE_CALL[name]})
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("name", ["mixok", "mixnoid", "mixsameid", "noid"])
def test_calls_of_an_odd_upstream_keep_their_number_and_get_ids(name: str, upstream: dict[str, str]) -> None:
    status, answer = scenario(upstream, name, tools=offered("get_weather", "get_time", "calculator"))
    assert status == 200, answer
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert len({call["id"] for call in calls}) == len(calls) == 2
    tooled = scenario(upstream, name, model="fart", tools=offered("get_weather", "get_time"))[1]
    left = [call["function"]["name"] for call in tooled["choices"][0]["message"]["tool_calls"]]
    assert left == (["get_weather", "get_time"] if name == "noid" else ["get_weather"])  # ours was run


FAULTS = {
    "s400": (400, "context_length_exceeded"),
    "s401": (502, "upstream_authentication"),
    "s429": (429, "rate_limit_exceeded"),
    "s429date": (429, "rate_limit_exceeded"),
    "errfirst": (429, "rate_limit_exceeded"),
    "s500": (502, "upstream_error"),
    "s200err": (404, "upstream_model_not_found"),
    "html": (502, "upstream_error"),
    "redirect": (502, "upstream_error"),
    "halfjson": (502, "upstream_error"),
    "errmid": (502, "upstream_error"),
    "errevent": (502, "upstream_error"),
    "finisherror": (502, "upstream_error"),
    "cutheaders": (502, "upstream_error"),
    "cutbody": (502, "upstream_error"),
    "cutchunked": (502, "upstream_error"),
    "silent": (504, "upstream_timeout"),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_an_error_of_an_odd_upstream_keeps_whose_fault_it_is(name: str, upstream: dict[str, str]) -> None:
    status, answer = scenario(upstream, name, model="fart")
    assert (status, answer["error"]["code"]) == FAULTS[name]


def test_usage_of_an_odd_upstream_is_told_or_unknown(upstream: dict[str, str]) -> None:
    told = {name: scenario(upstream, name)[1]["usage"] for name in ("ok", "usagepartial", "usagenull")}
    assert told["ok"]["total_tokens"] == 5
    assert told["usagepartial"] is None
    assert told["usagenull"] is None


# ---- tools of runtime/, adapters and a reward model of training/ ----


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("05-tool-returns-int", "5"), ("06-blocking-tool", "error: no answer within 0.2 s")],
)
async def test_a_tool_of_any_kind_is_a_text_result_in_time(
    name: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio
    import runpy
    import sys

    from demeanor.core import types
    from demeanor.layers.tools import LoadedTool
    from demeanor.layers.tools.calls import called

    monkeypatch.setitem(sys.modules, "demeanor.types", types)  # where it lay when the case was written
    found = runpy.run_path(str(CASES / "runtime" / f"{name}.py"))
    tool = LoadedTool(found["SPEC"], found["run"])
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(beat())
    timeout_s = 0.2 if name.startswith("06") else 30.0
    result = await called(types.ToolCall("1", tool.spec.name, "{}"), {tool.spec.name: tool}, timeout_s, 100)
    beating.cancel()
    assert result.content == wanted
    assert beats >= 3 or not name.startswith("06")  # the loop went on


@pytest.mark.parametrize("name", ["mts_embed_tied", "lmhead_untied"])
def test_an_adapter_gives_the_log_probabilities_of_its_parts_in_transformers(name: str) -> None:
    """The base in transformers, with the adapter's matrices put in by hand as PEFT does; tied heads stay."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from tests.model.test_model_stored import logprobs, truth

    folder = CASES / "training" / "checkpoints" / "adapters" / name
    settings = json.loads((folder / "adapter_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(
        folder / settings["base_model_name_or_path"], dtype=torch.float32
    ).eval()
    if name == "mts_embed_tied":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    tensors = {
        key.removeprefix("base_model.model."): value
        for key, value in load_file(folder / "adapter_model.safetensors").items()
    }
    with torch.no_grad():
        for key, low in tensors.items():
            if key.endswith("lora_A.weight"):
                module = key.removesuffix(".lora_A.weight")
                product = tensors[f"{module}.lora_B.weight"] @ low
                model.get_submodule(module).weight += settings["lora_alpha"] / settings["r"] * product
            elif "lora_" not in key and "embed_tokens" in key:
                model.get_input_embeddings().weight.copy_(value_of(tensors, key))
    assert torch.allclose(logprobs(folder), truth(model), atol=2e-5)


def value_of(tensors: dict[str, Any], key: str) -> Any:
    return tensors[key].float()


def test_a_reward_folder_scores_an_answer_alike_alone_and_padded_in_transformers(
    place: Path, tmp_path: Path
) -> None:
    """transformers scores the token before the padding, so the padding must end no answer."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from demeanor.cli import main

    with inside(place):
        assert main(["train", "rm.yaml", "--runs", str(tmp_path)]) == 0
    configs = {path.parent: json.loads(path.read_text()) for path in tmp_path.glob("*/model/config.json")}
    (folder,) = [path for path, c in configs.items() if "Classification" in c["architectures"][0]]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.pad_token_id not in (None, tokenizer.eos_token_id)
    rows = [
        [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        for text in ("When?", "A longer question to you.")
    ]
    padded = [row + [model.config.pad_token_id] * (max(map(len, rows)) - len(row)) for row in rows]
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([row])).logits for row in rows])
        together = model(torch.tensor(padded)).logits
    assert torch.allclose(alone, together, atol=1e-4)
    assert (alone[0] - alone[1]).abs() > 1e-3


def test_a_card_number_in_json_is_personal_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from demeanor.cli import main

    out = tmp_path / "kept.jsonl"
    path = CASES / "training" / "data" / "card.jsonl"
    assert main(["data", "filter", str(path), str(out), "--no-personal-data"]) == 0, capsys.readouterr()
    assert "4111111111111111" not in out.read_text()


DOUBTED = {
    "samepairs": ("dpo", "the same"),
    "onesided": ("kto", "label"),
}


@pytest.mark.parametrize("name", sorted(DOUBTED))
def test_rows_that_teach_nothing_are_a_warning(
    name: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    objective, said = DOUBTED[name]
    stage = f"{{name: a, objective: {objective}, data: {name}.jsonl, optim: {{lr: 1.0e-9}}}}"
    (place / f"{name}.yaml").write_text(
        f"name: t\ntemplate: chatml\nweights:\n  base: base\n  stages:\n    - {stage}\n"
    )
    with inside(place):
        code = main(["train", f"{name}.yaml", "--runs", str(tmp_path)])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert said in (out + err).lower()


# ---- the stories model behind a policy that reads offered tools, with the calculator ----


GUARDED = """
name: srv
weights:
  base: {base}
template: chatml
decoding: {{temperature: 0, max_tokens: 48}}
layers:
  - {{kind: policy, rules: rules.yaml}}
  - {{kind: tools, allow: [calculator]}}
"""
RULES = "rules: [{name: pretend, on: input, trust: system, pattern: pretend you are, reason: a wrapping, reply: 'No.'}]"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[str]:
    from demeanor.app import StackRuntime, load_stack
    from demeanor.server.application import app
    from demeanor.serving import ServedStack
    from demeanor.training.runs import Runs
    from tests.server.live import live

    folder = tmp_path_factory.mktemp("guarded")
    (folder / "srv.yaml").write_text(GUARDED.format(base=shared / "stories260K-hf"))
    (folder / "rules.yaml").write_text(RULES)
    runtime = StackRuntime(load_stack(folder / "srv.yaml"), Runs(folder / "runs"))
    with live(app(ServedStack(runtime))) as address:
        yield address
    runtime.close()


def test_a_demanded_call_is_of_the_clients_tool_though_the_stack_has_one(guarded: str) -> None:
    import httpx

    body = json.loads((CASES / "serving" / "required_is_eaten.json").read_text()) | {"model": "srv"}
    answer = httpx.post(guarded + "/v1/chat/completions", json=body, timeout=60).json()
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert {call["function"]["name"] for call in calls} == {"get_weather"}


def test_a_tools_description_is_judged_by_a_rule_with_the_trust_of_systems(guarded: str) -> None:
    import httpx

    body = json.loads((CASES / "runtime" / "08-tool-description.json").read_text())
    answer = httpx.post(guarded + "/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    plain = body | {"tools": []}
    del plain["tools"]
    answer = httpx.post(guarded + "/v1/chat/completions", json=plain, timeout=60).json()
    assert answer["choices"][0]["finish_reason"] != "content_filter"


# ---- templates of training/ ----


def test_a_system_prompt_of_a_gemma_like_stack_is_written_into_turns_it_knows(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from demeanor.cli import main

    with inside(place):
        code = main(["explain", "gem.yaml", "--runs", str(tmp_path)])
    found = capsys.readouterr()
    assert code == 0, found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("name", "trained", "untrained"),
    [("weight0.jsonl", "Twelve.", "WRONG ANSWER"), ("reasoning.jsonl", "Two and two make four.", "What is 2+2?")],
)  # fmt: skip
def test_what_a_conversation_trains_is_what_its_row_says(
    name: str, trained: str, untrained: str, place: Path
) -> None:
    from demeanor.data import sources
    from demeanor.stack.schema import Source
    from demeanor.text import tokenizer as tokenizers
    from demeanor.text.template import load_template

    (row,) = sources.rows(Source(source=name), root=place, want="examples")
    assert isinstance(row, Example)
    tokenizer = tokenizers.load(place / "base")
    template = load_template("qwen3_like.jinja", tokenizer, folder=None, root=place)
    found = template.render(row.messages)
    said = tokenizer.decode([t for t, m in zip(found.tokens, found.trained, strict=True) if m])
    assert trained in said
    assert untrained not in said
