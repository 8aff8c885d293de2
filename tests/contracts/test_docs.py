"""The documentation names what exists: links, settings, plug-ins, commands with their options, tests and files."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

import demeanor
from demeanor import cli
from demeanor.core import registry
from demeanor.server.admission import Operations
from demeanor.server.metrics import Metrics
from demeanor.stack import schema, serving_schema

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"]
GENERATED = DOCS / "examples" / "tulu3.md"
WRITTEN = [page for page in PAGES if page != GENERATED]
EXAMPLES = {
    "demeanor/evaluation/scorers/brief.py",
    "demeanor/text/templates/plain.py",
}
"""Files that a page shows how to write."""

name_of = pytest.mark.parametrize("page", WRITTEN, ids=lambda p: p.name)


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a language; without one, blocks of commands and output."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S)
    return [text for kind, text in fenced if kind == language]


def inline(page: Path) -> list[str]:
    """What stands in backticks outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S))


def commands(page: Path) -> Iterator[list[str]]:
    """Every command line of demeanor on a page, as words; of a block of commands also what a CI file runs."""
    found = "\n".join([*blocks(page), *blocks(page, "yaml")]).replace("\\\n", " ")
    lines = found.splitlines()
    for text in [*lines, *inline(page)]:
        line = re.sub(r"^\s*(\$ |- run: |\.venv/bin/)+", "", text)
        if line.startswith("demeanor ") and not line.startswith("demeanor:"):
            yield shlex.split(line.split("  #")[0].replace("$(", "("), comments=False)[1:]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_and_its_anchor_exist(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        if not other.exists():
            wrong.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", other.read_text(), re.M)
            wrong += [] if anchor in map(slug, headings) else [target]
    assert wrong == []


def test_every_page_is_linked_from_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    pages = [page.name for page in DOCS.glob("*.md") if page.name != "README.md"]
    assert [page for page in pages if f"({page}" not in index] == []


@pytest.mark.parametrize(
    "page", [p for p in WRITTEN if p.parent == DOCS and p.name != "README.md"], ids=lambda p: p.name
)
def test_a_page_starts_with_an_example(page: Path) -> None:
    """A command, a configuration or code stands before the first section."""
    assert "\n```" in page.read_text().split("\n## ")[0]


@name_of
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    named = re.findall(r"\btests/[\w./-]*\w", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@name_of
def test_every_file_of_the_package_that_a_page_names_exists(page: Path) -> None:
    """`demeanor/room/file.py`, or `room/file.py: Name`, which then stands in that file."""
    wrong = []
    rooms = [path.name for path in (ROOT / "demeanor").iterdir() if path.is_dir()]
    for text in inline(page):
        path, _, symbols = text.partition(": ")
        if (
            "NAME" in path
            or not re.fullmatch(rf"(demeanor/)?({'|'.join(rooms)})/[\w./]*", path)
            or path in EXAMPLES
        ):
            continue
        file = ROOT / "demeanor" / path.removeprefix("demeanor/")
        names = re.findall(r"\w+", symbols) if file.suffix == ".py" else []
        if not file.exists() or any(not re.search(rf"\b{name}\b", file.read_text()) for name in names):
            wrong.append(text)
    assert wrong == []


@name_of
def test_every_module_of_bench_and_target_of_make_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    modules = re.findall(r"python -m bench\.(\w+)", text)
    files = [ROOT / "bench" / name for name in modules]
    assert [file for file in files if not file.is_dir() and not file.with_suffix(".py").exists()] == []
    runs = [line for block in blocks(page) for line in block.splitlines()] + inline(page)
    targets = [found[1] for line in runs if (found := re.match(r"(?:\$ )?make ([a-z]+)\b", line))]
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in targets if not re.search(rf"^{name}:", makefile, re.M)] == []


COMMANDS = typer.main.get_command(cli.app)


@name_of
def test_every_command_that_a_page_names_exists_with_its_options(page: Path) -> None:
    wrong = []
    for words in commands(page):
        if words[0] in ("VERB", "demeanor"):
            continue
        command = COMMANDS
        while hasattr(command, "commands") and words and words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        options = {name for p in command.params for name in p.opts} | {"--help"}
        given = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        unknown = [option for option in given if option not in options]
        if hasattr(command, "commands") and words and not words[0].startswith("-"):
            unknown.append(words[0])
        wrong += [(" ".join(words), unknown)] if unknown else []
    assert wrong == []


@name_of
def test_every_block_of_python_and_yaml_parses(page: Path) -> None:
    python = [ast.parse(code) for code in blocks(page, "python")]
    yamls = [yaml.safe_load(text) for text in blocks(page, "yaml")]
    source = page.read_text()
    assert (bool(python), bool(yamls)) == ("```python\n" in source, "```yaml\n" in source)


@pytest.mark.parametrize(
    "name",
    [
        "StackSpec",
        "WeightsSpec",
        "Scratch",
        "Import",
        "Remote",
        "Fallback",
        "TokenizerSpec",
        "ModelShape",
        "Stage",
        "Adapter",
        "GenerationEvalSpec",
        "ImportStage",
        "OnlineStage",
        "PromptSource",
        "ModelReward",
        "ItemReward",
        "ScorerReward",
        "RuleReward",
        "JudgeReward",
        "LengthReward",
        "RepetitionReward",
        "CostSpec",
        "PtxSpec",
        "RolloutsSpec",
        "ServerSpec",
        "ImportanceSpec",
        "MergeStage",
        "QuantiseStage",
        "Optim",
        "Source",
        "DecodingSpec",
        "EvaluationSpec",
        "JudgeSpec",
        "ServeSpec",
    ],
)
def test_every_setting_of_the_stack_is_on_its_page(name: str) -> None:
    page = (DOCS / "stack.md").read_text()
    fields = getattr(schema, name).model_fields  # one of settings of its own may stand as `field.setting`
    assert [f for f in fields if f"| `{f}` |" not in page and f"| `{f}." not in page] == []


@pytest.mark.parametrize(
    "name",
    ["ExperimentSpec", "ArmSpec", "ScoreSpec", "ShadowSpec", "EvaluatorSpec", "DriftSpec", "JobBudget"],
)
def test_every_setting_of_live_traffic_is_on_its_page(name: str) -> None:
    page = (DOCS / "experiments.md").read_text()
    assert [f for f in getattr(serving_schema, name).model_fields if f"`{f}`" not in page] == []


@pytest.mark.parametrize("kind", registry.known("demeanor.layers"))
def test_every_layer_and_its_settings_are_on_the_page_of_layers(kind: str) -> None:
    page = (DOCS / "layers.md").read_text().split(f"\n## {kind}", 1)[1].split("\n## ")[0]
    assert [
        f for f in registry.spec_of("demeanor.layers", kind).model_fields if f"| `{f}` |" not in page
    ] == []


@pytest.mark.parametrize("kind", registry.known("demeanor.evaluation.scorers"))
def test_every_scorer_and_its_settings_are_on_the_page_of_scorers(kind: str) -> None:
    page = (DOCS / "scorers.md").read_text().split(f"\n## {kind}\n", 1)[1].split("\n## ")[0]
    spec = registry.spec_of("demeanor.evaluation.scorers", kind)
    names = [field.alias or name for name, field in spec.model_fields.items()]
    assert [name for name in names if f"`{name}`" not in page] == []


def test_every_metric_is_on_the_page_of_serving() -> None:
    page = (DOCS / "serving.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    series = re.findall(r"^# TYPE (\w+) ", Metrics(Operations()).text().decode(), re.M)
    assert len(series) > 15
    assert [name for name in series if f"`{name}" not in page] == []


def test_every_error_code_is_on_the_page_of_the_api() -> None:
    """All but those of the labelling page and of a status that has no code of its own."""
    page = (DOCS / "api.md").read_text().split("\n## Errors\n")[1].split("\n## ")[0]
    files = [path for path in (ROOT / "demeanor").rglob("*.py") if path.name != "labelling.py"]
    codes = {code for path in files for code in re.findall(r'\bcode="([a-z_]+)"', path.read_text())}
    assert len(codes) > 30
    assert sorted(code for code in codes - {"http_error"} if f"`{code}`" not in page) == []


def test_python_examples_use_what_the_api_has() -> None:
    texts = [text for page in WRITTEN for text in blocks(page, "python")] + [demeanor.__doc__ or ""]
    used = {name for text in texts for name in re.findall(r"\bdemeanor\.(\w+)\(", text)}
    assert used >= {"load", "train", "assistant", "evaluate"}
    assert used <= set(demeanor.__all__)
