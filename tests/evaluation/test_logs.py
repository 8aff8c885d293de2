"""Logs that Inspect 0.3.285 and lm-eval 0.4.13 really wrote of the served demo (trimmed to 8 samples): read, compared, and written as a suite."""

from __future__ import annotations

import copy
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demeanor.cli import main
from demeanor.core.errors import DataError
from demeanor.evaluation import harness_logs
from demeanor.evaluation.items import load_suite
from demeanor.evaluation.result import load
from demeanor.evaluation.result_rows import read_rows
from tests.conftest import each

HERE = Path(__file__).parent / "fixtures"
INSPECT, LM = HERE / "inspect", HERE / "lm-eval"
MODELS = ("harbour-desk:sft", "harbour-desk:dpo", "harbour-desk")
FOLDERS = [LM / "harbour-desk__sft", LM / "harbour-desk__dpo", LM / "harbour-desk"]


def inspect_logs(task: str) -> list[Path]:
    return [INSPECT / f"{task}_{name}.json" for name in ("sft", "dpo", "harbour-desk")]


def changed(path: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    tree = json.loads(path.read_text())
    change(tree)
    folder.mkdir(exist_ok=True)
    (folder / path.name).write_text(json.dumps(tree))
    return folder / path.name


# ---- what is read ----


@pytest.mark.parametrize("task", ["facts", "arithmetic"])
def test_means_of_inspect_are_inspects_own(task: str) -> None:
    for path, model in zip(each(inspect_logs(task)), MODELS, strict=True):
        found, log = harness_logs.read([path]), json.loads(path.read_text())
        assert {s.variant for s in found} == {model}, "the provider is a route, not a name"
        told = [next(iter(s["scores"].values()))["value"] for s in log["samples"]]
        assert [s.value for s in found] == [float(v == "C") for v in told]
        assert all(s.ms > 0 and s.completion_tokens > 0 for s in found)


def test_values_of_lm_eval_are_the_metrics_it_logged() -> None:
    for path in each(sorted(LM.rglob("samples_*.jsonl"))):
        found = harness_logs.read([path])
        assert [s.value for s in found] == [
            next(x[m] for m in x["metrics"]) for x in map(json.loads, path.read_text().splitlines())
        ]
        assert {s.variant.replace(":", "__") for s in found} == {path.parent.name}


def test_clusters_come_from_the_field_cluster_or_the_one_named_else_from_the_document() -> None:
    log = inspect_logs("facts")[0]
    assert {s.cluster for s in harness_logs.read([log])} == {
        s["metadata"]["cluster"] for s in json.loads(log.read_text())["samples"]
    }
    documents = FOLDERS[0]
    assert {s.cluster for s in harness_logs.read([documents], cluster="answer") if s.axis == "desk_say"} > {
        "Perla"
    }
    with pytest.raises(DataError, match=r"facts-00: --cluster topic: no such field. Known: cluster"):
        harness_logs.read([log], cluster="topic")


def test_samples_without_a_named_source_are_clusters_of_their_own(tmp_path: Path) -> None:
    log = changed(inspect_logs("facts")[0], tmp_path, lambda t: [s.update(metadata={}) for s in t["samples"]])
    assert len({s.cluster for s in harness_logs.read([log])}) == 8


def test_epochs_are_seeds_of_one_item(tmp_path: Path) -> None:
    def twice(tree: dict[str, Any]) -> None:
        tree["samples"] += [{**s, "epoch": 2} for s in tree["samples"]]

    found = harness_logs.gather(
        harness_logs.read([changed(p, tmp_path, twice) for p in inspect_logs("facts")])
    )
    assert len(found.items) == 8
    assert {r.seed for r in found.rows} == {0, 1}


@pytest.mark.parametrize(
    ("value", "wanted"), [("C", 1.0), ("P", 0.5), ("I", 0.0), ("N", 0.0), (True, 1.0), (0.25, 0.25)]
)
def test_grades_are_inspects_numbers(value: object, wanted: float, tmp_path: Path) -> None:
    log = changed(
        inspect_logs("facts")[0],
        tmp_path,
        lambda t: t["samples"][0]["scores"]["includes"].update(value=value),
    )
    assert harness_logs.read([log])[0].value == wanted


@pytest.mark.parametrize("value", [7, -1, "A+", {"a": 1}, None])
def test_a_value_that_is_no_share_is_named_with_its_sample(value: object, tmp_path: Path) -> None:
    log = changed(
        inspect_logs("facts")[0],
        tmp_path,
        lambda t: t["samples"][0]["scores"]["includes"].update(value=value),
    )
    with pytest.raises(DataError, match=r"sample facts-00: includes: got .*, wanted a value from 0 to 1"):
        harness_logs.read([log])


def test_a_sample_that_failed_is_a_failed_row(tmp_path: Path) -> None:
    def break_one(tree: dict[str, Any]) -> None:
        tree["samples"][0] |= {"error": {"message": "timed out"}, "scores": None}

    log = changed(inspect_logs("facts")[0], tmp_path, break_one)
    row = harness_logs.gather(harness_logs.read([log])).rows[0]
    assert (row.value, row.error) == (None, "timed out")


def test_an_eval_file_is_read_like_its_json(tmp_path: Path) -> None:
    log = json.loads(inspect_logs("facts")[0].read_text())
    with zipfile.ZipFile(tmp_path / "a.eval", "w", zipfile.ZIP_DEFLATED) as file:
        for s in log["samples"]:
            file.writestr(f"samples/{s['id']}_epoch_1.json", json.dumps(s))
        file.writestr("header.json", json.dumps({k: v for k, v in log.items() if k != "samples"}))
    zipped, plain = harness_logs.read([tmp_path / "a.eval"]), harness_logs.read([inspect_logs("facts")[0]])
    assert [(s.id, s.value, s.content) for s in zipped] == [(s.id, s.value, s.content) for s in plain]


def test_an_eval_file_packed_as_this_python_cannot_says_how_to_convert_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as file:
        file.writestr("header.json", "{}")
    raw = bytearray((tmp_path / "a.eval").read_bytes())
    raw[8:10] = (93).to_bytes(2, "little")  # zstd, in the member's own head ...
    at = raw.index(b"PK\x01\x02") + 10
    raw[at : at + 2] = (93).to_bytes(2, "little")  # ... and in the directory
    (tmp_path / "a.eval").write_bytes(bytes(raw))
    with pytest.raises(
        DataError, match=r"a.eval: compressed in a way .*inspect log convert .*a.eval --to json"
    ):
        harness_logs.read([tmp_path / "a.eval"])


# ---- what is compared ----


def test_the_table_is_the_paired_arithmetic_of_the_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "logs",
                "import",
                *map(str, inspect_logs("facts") + inspect_logs("arithmetic")),
                "--name",
                "x",
                "--results",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert "+harbour-desk" in capsys.readouterr().out
    result = load(tmp_path / "x.json")
    assert [v.id for v in result.variants] == list(MODELS)
    graded = {
        task: [
            [next(iter(s["scores"].values()))["value"] == "C" for s in json.loads(p.read_text())["samples"]]
            for p in inspect_logs(task)
        ]
        for task in ("facts", "arithmetic")
    }
    for n, step in enumerate(result.steps):
        for delta in step.deltas:
            was, now = graded[delta.axis][n : n + 2]
            assert (delta.fixed, delta.regressed) == (
                sum(b > a for a, b in zip(was, now)),
                sum(a > b for a, b in zip(was, now)),
            )
            assert delta.value == pytest.approx((sum(now) - sum(was)) / 8)
            assert (delta.n, delta.clusters) == (
                8,
                len(
                    {
                        i.cluster
                        for i in harness_logs.gather(harness_logs.read(inspect_logs(delta.axis))).items
                    }
                ),
            )
    assert all(s.mean_ms > 0 for s in result.cost)
    assert len(read_rows(tmp_path / "x.rows.jsonl")) == 3 * 16
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".jsonl", ".html", ".md"}


def test_times_that_no_log_told_are_not_shown_as_nothing(tmp_path: Path) -> None:
    main(["logs", "import", *map(str, FOLDERS), "--results", str(tmp_path)])
    assert load(tmp_path / "harness.json").cost == ()
    assert "Time and tokens" not in (tmp_path / "harness.md").read_text()


def test_only_shared_samples_are_compared_and_the_rest_is_counted(tmp_path: Path) -> None:
    found = harness_logs.gather(harness_logs.read(FOLDERS))
    assert {i.axis for i in found.items} == {"desk_say"}, "the whole was not asked desk_choose"
    assert found.caveats[0].startswith(
        "8 of 16 samples are shared by all variants, and only these are compared. Left out: 8 that some variant did "
        "not answer, 0 whose question or target differs between logs (desk_choose/0"
    )
    sft, dpo, whole = inspect_logs("facts")
    other = changed(dpo, tmp_path, lambda t: t["samples"][3].update(target="another"))
    found = harness_logs.gather(harness_logs.read([sft, other, whole]))
    assert len(found.items) == 7
    assert (
        "0 that some variant did not answer, 1 whose question or target differs between logs (facts/facts-03)"
        in found.caveats[0]
    )


def test_all_shared_is_said_by_saying_nothing() -> None:
    assert harness_logs.gather(harness_logs.read(inspect_logs("facts"))).caveats == ()


def test_logs_that_share_nothing_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"the 2 variants share no sample \(harbour-desk:sft 8, harbour-desk 8\)"
    ):
        harness_logs.gather(harness_logs.read([inspect_logs("facts")[0], inspect_logs("arithmetic")[2]]))


def test_one_run_told_twice_is_refused(tmp_path: Path) -> None:
    copy = changed(inspect_logs("facts")[0], tmp_path, lambda t: None)
    with pytest.raises(
        DataError, match=r"harbour-desk:sft answered facts/facts-00 \(epoch 0\) in .*facts_sft.json already"
    ):
        harness_logs.gather(harness_logs.read([inspect_logs("facts")[0], copy]))


# ---- what cannot be read ----


def test_what_is_no_log_is_named(tmp_path: Path) -> None:
    for name, text, said in (
        ("a.txt", "x", "neither a log of Inspect"),
        ("b.json", '{"x": 1}', "neither a log of Inspect"),
        ("samples_t_2026-01-01T00-00-00.1.jsonl", "{}", "no results_2026-01-01T00-00-00.1.json beside it"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=said):
            harness_logs.read([tmp_path / name])
    (tmp_path / "results_2026-01-01T00-00-00.1.json").write_text('{"model_name": "m"}')
    with pytest.raises(DataError, match="jsonl:1: not a sample of lm-eval: the field 'metrics' is missing"):
        harness_logs.read([tmp_path / "samples_t_2026-01-01T00-00-00.1.jsonl"])
    with pytest.raises(DataError, match="no such log"):
        harness_logs.read([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="Did lm-eval run with --log_samples"):
        harness_logs.read([tmp_path / "empty"])


def test_a_metric_that_nobody_logged_and_one_where_less_is_better_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--metric f1: no sample has it. Read: acc, exact_match"):
        harness_logs.read(FOLDERS, metric="f1")
    for path in FOLDERS[2].iterdir():
        (tmp_path / path.name).write_text(
            path.read_text().replace('"exact_match": true}', '"exact_match": false}')
        )
    with pytest.raises(DataError, match=r"exact_match: lower is better"):
        harness_logs.read([tmp_path])


# ---- as a suite of ours ----


def test_every_logged_answer_is_judged_by_our_scorer_as_it_was_there() -> None:
    samples = harness_logs.read([*FOLDERS, INSPECT])
    assert {(s.axis, s.repeat.scorer) for s in samples if not isinstance(s.repeat, str)} == {
        ("desk_say", "exact"),
        ("desk_choose", "choice"),
        ("facts", "exact"),
        ("arithmetic", "number"),
    }
    assert not any(s.differs() for s in samples)


def test_a_suite_is_one_that_eval_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "suite.jsonl"
    assert main(["logs", "import", *map(str, FOLDERS), str(INSPECT), "--as-suite", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 32 items\n"
    items = load_suite(out)
    assert {i.axis: sum(j.axis == i.axis for j in items) for i in items} == {
        "desk_choose": 8,
        "desk_say": 8,
        "facts": 8,
        "arithmetic": 8,
    }
    assert {i.cluster for i in items if i.axis == "facts"} == {
        i.cluster for i in items if i.axis == "desk_say"
    }


def test_what_our_scorer_judges_otherwise_is_left_out_and_counted(tmp_path: Path) -> None:
    log = changed(
        inspect_logs("facts")[0], tmp_path, lambda t: t["samples"][0]["scores"]["includes"].update(value="I")
    )
    items, reasons = harness_logs.as_suite(harness_logs.read([log]))
    assert len(items) == 7
    assert reasons == {"our `exact` judges a logged answer otherwise than inspect includes": 1}


@pytest.mark.parametrize(
    ("scorer", "options", "reason"),
    [
        ("model_graded_qa", {}, "no scorer of ours does what model_graded_qa does"),
        ("match", {}, "match at the end of a text; ours look anywhere"),
        ("choice", {}, "choice reads a letter that the model writes; our `choice` reads likelihoods"),
    ],
)
def test_scorers_that_are_not_ours_are_named(
    scorer: str, options: dict[str, Any], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def renamed(tree: dict[str, Any]) -> None:
        tree["eval"]["scorers"] = [{"name": scorer, "options": options}]
        for s in tree["samples"]:
            s["scores"] = {scorer: s["scores"]["includes"]}

    log = changed(inspect_logs("facts")[0], tmp_path, renamed)
    assert main(["logs", "import", str(log), "--as-suite", str(tmp_path / "out.jsonl")]) == 1
    assert f"8 left out: {reason}" in capsys.readouterr().out
    assert not (tmp_path / "out.jsonl").exists()


def lm_sample(folder: Path, task: str = "gsm8k_cot", **more: Any) -> Path:
    """One sample of a chat task as lm-eval writes it."""
    folder.mkdir(exist_ok=True)
    sample = {
        "doc_id": 0,
        "doc": {"question": "6 x 7?"},
        "target": "so 6 * 7 = 42\n#### 42",
        "arguments": {"gen_args_0": {"arg_0": ['[{"role": "user", "content": "6 x 7?"}]'], "arg_1": {}}},
        "resps": [["It is 42. #### 42"]],
        "filtered_resps": ["42"],
        "filter": "strict-match",
        "metrics": ["exact_match"],
        "doc_hash": "a",
        "target_hash": "b",
        "exact_match": 1.0,
        **more,
    }
    (folder / f"samples_{task}_2026-01-01T00-00-00.1.jsonl").write_text(json.dumps(sample) + "\n")
    (folder / "results_2026-01-01T00-00-00.1.json").write_text(
        json.dumps({"model_name": "m", "configs": {task: {"output_type": "generate_until"}}})
    )
    return folder


def test_gsm8k_of_lm_eval_is_our_gsm8k_and_a_filter_is_an_axis(tmp_path: Path) -> None:
    (found,) = harness_logs.read([lm_sample(tmp_path)])
    assert found.axis == "gsm8k_cot strict-match"
    assert found.cluster == "gsm8k_cot/0"
    ((item,), reasons) = harness_logs.as_suite([found])
    assert (item.scorer, dict(item.target), reasons) == ("gsm8k", {"answer": "42", "extract": "strict"}, {})


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"filter": "my-filter"}, "the filter my-filter is not ours"),
        ({"metrics": ["f1"], "f1": 0.5}, "no scorer of ours does what f1 does"),
        ({"filter": "none", "target": "?"}, "its target has no word"),
        (
            {"arguments": {"gen_args_0": {"arg_0": "6 x 7?", "arg_1": {}}}},
            "asked as raw text; our items are conversations (run lm-eval with --apply_chat_template)",
        ),
    ],
)
def test_samples_of_lm_eval_that_are_not_ours_are_named(
    more: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    assert harness_logs.as_suite(harness_logs.read([lm_sample(tmp_path, **more)])) == ([], {reason: 1})


def test_rows_of_two_filters_of_one_task_are_all_read_back(tmp_path: Path) -> None:
    for path in sorted((LM / "harbour-desk__sft").iterdir()):
        lines = path.read_text().splitlines()
        if path.suffix == ".jsonl":
            lines = [
                json.dumps({**json.loads(line), "filter": name})
                for line in lines
                for name in ("strict-match", "flexible-extract")
            ]
        (tmp_path / path.name).write_text("\n".join(lines) + "\n")
    found = harness_logs.gather(harness_logs.read([tmp_path]))
    assert (
        len({row.identity for row in found.rows})
        == len(found.rows)
        == 2 * len(harness_logs.read([LM / "harbour-desk__sft"]))
    )


def test_answers_that_eval_measured_are_not_written_over(tmp_path: Path) -> None:
    kept = tmp_path / "x.rows.jsonl"
    kept.write_text("measured\n")
    assert (
        main(["logs", "import", str(FOLDERS[0]), str(FOLDERS[1]), "--results", str(tmp_path), "--name", "x"])
        == 2
    )
    assert kept.read_text() == "measured\n"
    kept.unlink()
    for _ in range(2):
        assert (
            main(
                [
                    "logs",
                    "import",
                    str(FOLDERS[0]),
                    str(FOLDERS[1]),
                    "--results",
                    str(tmp_path),
                    "--name",
                    "x",
                ]
            )
            == 0
        )


# ---- foreign shapes ----

SAMPLES = next((LM / "harbour-desk").glob("samples_desk_say*.jsonl"))
RESULTS = SAMPLES.with_name("results_" + SAMPLES.name.rsplit("_", 1)[1].replace(".jsonl", ".json"))


def lm_log(folder: Path, rows: list[dict[str, Any]], results: object = None, *, mark: str = "") -> Path:
    """A log of lm-eval with these rows, and with the results of a real one unless others are given."""
    told = json.loads(RESULTS.read_text()) if results is None else results
    (folder / RESULTS.name).write_text(mark + json.dumps(told))
    (folder / SAMPLES.name).write_text(mark + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    return folder / SAMPLES.name


def lm_rows(number: int = 2) -> list[dict[str, Any]]:
    return [json.loads(line) for line in SAMPLES.read_text().split("\n")[:number]]


def test_separators_inside_a_text_end_no_line_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    rows = lm_rows()
    rows[0]["resps"] = [["one\u2028two\u0085three\x0bfour"]]
    found = harness_logs.read([lm_log(tmp_path, rows, mark="\ufeff")])
    assert [s.text for s in found] == ["one\u2028two\u0085three\x0bfour", rows[1]["resps"][0][0]]
    inspect = tmp_path / "facts.json"
    inspect.write_text("\ufeff" + inspect_logs("facts")[0].read_text())
    assert harness_logs.read([inspect]) != []


def test_half_a_character_in_a_log_is_replaced_so_that_the_result_can_be_written(tmp_path: Path) -> None:
    rows = lm_rows()
    rows[0]["resps"] = [["a \ud83d b"]]
    (tmp_path / RESULTS.name).write_text(RESULTS.read_text())
    (tmp_path / SAMPLES.name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert harness_logs.compare([tmp_path / SAMPLES.name], tmp_path, "x").name == "x"
    assert read_rows(tmp_path / "x.rows.jsonl")[0].text == "a \ufffd b"


@pytest.mark.parametrize(
    ("change", "want"),
    [
        (lambda r: r.pop("doc"), "jsonl:2: not a sample of lm-eval: the field 'doc' is missing"),
        (lambda r: r.update(metrics=[]), "jsonl:2: not a sample of lm-eval"),
        (
            lambda r: r.update({r["metrics"][0]: float("nan")}),
            r"jsonl:2: .*got nan, wanted a value from 0 to 1",
        ),
        (lambda r: r.update({r["metrics"][0]: None}), r"jsonl:2: .*got None, wanted a value from 0 to 1"),
        (lambda r: r.update(arguments=7), "jsonl:2: not a sample of lm-eval"),
    ],
)
def test_a_field_that_is_missing_or_no_number_is_told_with_file_and_line(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], want: str
) -> None:
    rows = lm_rows()
    change(rows[1])
    with pytest.raises(DataError, match=want):
        harness_logs.read([lm_log(tmp_path, rows)])
    with pytest.raises(DataError, match=r"results_.*json: model_name: got None"):
        harness_logs.read([lm_log(tmp_path, lm_rows(), {})])


def test_a_log_with_any_value_in_any_place_is_read_or_is_a_data_error(tmp_path: Path) -> None:
    values: list[Any] = [None, True, -1, 1.5, float("nan"), float("inf"), "1.2.3", "", [], {}, [[]], 10**30]
    rng, outcomes = random.Random(0), {"read": 0, "refused": 0}
    whole = json.loads(inspect_logs("facts")[0].read_text())
    whole["samples"] = whole["samples"][:2]
    rows, results = lm_rows(), json.loads(RESULTS.read_text())
    for n in range(240):
        tree = copy.deepcopy([whole, rows, results])
        place = rng.choice([p for p in places(tree[n % 3]) if 0 < len(p) < 8])
        target = tree[n % 3]
        for key in place[:-1]:
            target = target[key]
        if n % 2:
            target[place[-1]] = rng.choice(values)
        else:
            del target[place[-1]]
        log = tmp_path / "facts.json"
        log.write_text(json.dumps(tree[0]))
        try:
            samples = harness_logs.read([log if n % 3 == 0 else lm_log(tmp_path, tree[1], tree[2])])
            harness_logs.as_suite(samples)
            harness_logs.gather(samples)
            outcomes["read"] += 1
        except DataError as error:
            assert str(tmp_path) in str(error) or "no sample" in str(error) or "no log" in str(error)  # noqa: PT017
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


@pytest.mark.parametrize("data", [b"PK\x03\x04broken", b"", b"\x00" * 40])
def test_a_zip_that_is_none_is_a_data_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.eval").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.eval: not a log of Inspect"):
        harness_logs.read([tmp_path / "x.eval"])
