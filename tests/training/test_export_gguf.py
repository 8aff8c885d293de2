"""An export for llama.cpp and Ollama: what is written, what is refused, and the Modelfile beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demeanor import app
from demeanor.cli import main
from demeanor.core.errors import CheckpointError, UsageError
from demeanor.core.types import Decoding, Message
from demeanor.engine.local import LocalEngine, Request
from demeanor.model import checkpoints, gguf, gguf_llama, quantize
from demeanor.model.grouped import GroupFormat
from demeanor.model.llama import Llama
from demeanor.stack.stack import Stack
from demeanor.text import tokenizer as tokenizers
from demeanor.text.template import JinjaTemplate, load_template
from demeanor.training import export, export_gguf, gguf_folder, ollama
from demeanor.training.runs import Runs, weights_folder
from tests.app.test_gguf_base import stack_on
from tests.groups import grouped_matrices
from tests.model import gguf_files


@pytest.mark.parametrize("dtype", export.WRITTEN["gguf"])
def test_what_is_exported_is_a_base_with_the_same_weights(dtype: export.Dtype, tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path, form="F32")
    app.train(stack, runs)
    out = export.export(stack, runs, tmp_path / "out", target="gguf", dtype=dtype)
    path = export_gguf.file_of(out)
    assert path.name == f"gg-sft-{export_gguf.FORMATS[dtype]}.gguf"
    gguf_folder.write(path, tmp_path / "again")
    wanted = checkpoints.load(weights_folder(stack, runs, "sft")).state_dict()
    found = checkpoints.load(tmp_path / "again").state_dict()
    furthest = max(float((found[n] - t).abs().max() / t.abs().max()) for n, t in wanted.items())
    assert furthest <= {"fp32": 0, "fp16": 1e-3, "bf16": 4e-3, "q8_0": 1 / 200, "q4_0": 1 / 7}[dtype]
    assert {gguf.read(path).tensors[n].format for n in ("blk.0.attn_k.weight", "blk.1.ffn_down.weight")} == {
        export_gguf.FORMATS[dtype]
    }
    ours, theirs = (
        tokenizers.load(folder) for folder in (weights_folder(stack, runs, "base"), tmp_path / "again")
    )
    assert (ours.special, ours.config["chat_template"]) == (theirs.special, theirs.config["chat_template"])


@pytest.mark.parametrize(
    ("format", "head", "dtype", "kept"),
    [
        ("q4_0", "q8_0", "q4_0", {"Q4_0", "Q8_0"}),
        ("q4_1", "q8_0", "q4_0", {"Q4_1", "Q8_0"}),
        ("q4_0", "q4_0", "q8_0", {"Q4_0"}),
        ("q8_0", "q8_0", "q8_0", {"Q8_0"}),
    ],
)
def test_a_rounded_policy_keeps_its_own_blocks(
    format: GroupFormat, head: GroupFormat, dtype: export.Dtype, kept: set[str], tmp_path: Path
) -> None:
    """Read back it has the same integers, scales and minima, so the same greedy answers."""
    stack, runs = stack_on(tmp_path, form="F32")
    app.train(stack, runs)
    small, again = tmp_path / "small", tmp_path / "again"
    quantize.write_groups(weights_folder(stack, runs, "sft"), small, format, head=head, activations="int8")
    model = checkpoints.exported(small)
    assert isinstance(model, Llama)
    tokenizer = tokenizers.load(weights_folder(stack, runs, "base"))
    template = load_template("model", tokenizer, folder=weights_folder(stack, runs, "base"), root=tmp_path)
    about = export_gguf.settings(model, tokenizer, template, name="x", dtype=dtype, texts=())
    export_gguf.write(tmp_path / "x.gguf", model, about, dtype)
    matrices = {t.format for t in gguf.read(tmp_path / "x.gguf").tensors.values() if len(t.shape) > 1}
    assert matrices == kept
    gguf_folder.write(tmp_path / "x.gguf", again)
    ours, theirs = (grouped_matrices(checkpoints.load(f, keep_groups=True)) for f in (small, again))
    assert ours.keys() == theirs.keys()
    different = [
        name
        for name, matrix in ours.items()
        for part in ("packed_OB", "scales_OG", "minima_OG")
        if (one := getattr(matrix, part)) is not None and not torch.equal(one, getattr(theirs[name], part))
    ]
    assert different == []
    asked = [Request((1, 5, 9, 30), Decoding(temperature=0, max_tokens=12), frozenset())]
    answers = []
    for folder in (small, again):
        engine = LocalEngine(checkpoints.serving(folder), tokenizer, num_slots=1)
        answers.append([piece.token for piece in engine.generate(asked)[0]])
        engine.close()
    assert answers[0] == answers[1]


def test_finer_blocks_than_the_file_asks_for_are_rounded_and_an_exact_file_unpacks_them(
    tmp_path: Path,
) -> None:
    stack, runs = stack_on(tmp_path, form="F32")
    small = tmp_path / "small"
    quantize.write_groups(weights_folder(stack, runs, "base"), small, "q8_0", head="q8_0", activations="int8")
    formats = gguf_llama.tensors(checkpoints.exported(small), "Q4_0")  # type: ignore[arg-type]
    assert {form for shape, form, _ in formats.values() if len(shape) > 1} == {"Q4_0", "Q8_0"}
    assert formats["token_embd.weight"][1] == "Q8_0"
    wide = gguf_llama.tensors(checkpoints.exported(small), "F32")  # type: ignore[arg-type]
    plain = checkpoints.load(small).state_dict()["model.layers.0.mlp.down_proj.weight"]
    found = wide["blk.0.ffn_down.weight"][2]().view(torch.float32).view(plain.shape)
    assert torch.equal(found, plain)


def test_a_tokenizer_that_llama_cpp_reads_differently_is_refused_and_nothing_stays(
    trained: tuple[Stack, Runs], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"llama\.cpp does not split texts as this tokenizer does"):
        export.export(*trained, tmp_path / "out", target="gguf", dtype="fp32")
    assert list(tmp_path.iterdir()) == []


def test_formats_of_other_targets_and_values_beyond_fp16_are_refused(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path, form="F32")
    with pytest.raises(UsageError, match="--dtype q8_0: --to hf is written in fp32, bf16, fp16"):
        export.export(stack.variant("base"), runs, tmp_path / "out", target="hf", dtype="q8_0")
    model = gguf_files.model("llama", 420)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5  # type: ignore[union-attr,index]
    folder = weights_folder(stack, runs, "base")
    tokenizer = tokenizers.load(folder)
    template = load_template("model", tokenizer, folder=folder, root=tmp_path)
    with pytest.raises(CheckpointError, match=r"layers.0.mlp.up_proj.weight has values beyond 65504"):
        export_gguf.settings(model, tokenizer, template, name="x", dtype="fp16", texts=[])


def test_the_verb_says_how_to_check_where_llama_cpp_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_gguf, "runnable", lambda: False)
    stack, runs = stack_on(tmp_path)
    given = [str(stack.path), str(tmp_path / "out"), "--runs", str(runs.root), "--model", "gg:base"]
    assert main(["export", *given, "--to", "gguf", "--dtype", "Q8_0"]) == 0
    said = capsys.readouterr().out
    assert "(base, gguf, q8_0)" in said
    assert "not checked: llama.cpp is not installed here; pip install 'demeanor[gguf]'" in said
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"gg-base-Q8_0.gguf", "Modelfile"}


@pytest.mark.skipif(not export_gguf.runnable(), reason="xllamacpp is not installed here")
def test_llama_cpp_answers_as_ours_does(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path, form="F32")
    app.train(stack, runs)
    out = export.export(stack, runs, tmp_path / "out", target="gguf", dtype="fp32")
    found = app.check_export(stack, runs, out, target="gguf", limit=1)
    assert (found.items, found.equal) == (1, True), export.report(found, "gguf")


# ---- Modelfile ----

SYSTEM_FIRST = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
    + gguf_files.CHATML
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
TRIMMED = HEADERS.replace("m.content", "m.content | trim")


def pieces_of(jinja: str, tmp_path: Path) -> ollama.Pieces | None:
    return ollama.pieces(JinjaTemplate("x", gguf_files.bpe(), jinja), gguf_files.bpe())


def test_a_chain_of_messages_becomes_a_go_template(tmp_path: Path) -> None:
    found = pieces_of(gguf_files.CHATML, tmp_path)
    assert found is not None
    assert found.go(None) == (
        '{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}{{ end }}'
        "<|im_start|>assistant\n"
    )
    default = pieces_of(SYSTEM_FIRST, tmp_path)
    assert default is not None
    assert default.go(None).startswith(
        '{{ if ne (index .Messages 0).Role "system" }}<|im_start|>system\nHelp.<|im_end|>\n{{ end }}{{ range'
    )
    assert pieces_of(HEADERS, tmp_path) is not None
    assert pieces_of(TRIMMED, tmp_path) is None, "spaces around a text are cut: no chain of pieces"


def test_a_modelfile_has_the_decoding_the_system_prompt_and_what_is_lost(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path)
    loaded = app.load_stack(
        stack.path,
        overrides=[
            "layers=[{kind: tools, allow: [calculator]}, {kind: prompt, text: Be brief.}]",
            "decoding={temperature: 0.5, max_tokens: 9, seed: 3, stop: ['END']}",
        ],
    )
    folder = weights_folder(loaded, runs, "base")
    tokenizer = tokenizers.load(folder)
    template = load_template("model", tokenizer, folder=folder, root=tmp_path)
    said = ollama.modelfile(loaded, "x.gguf", template, tokenizer, 128).split("\n")
    wanted = [
        "FROM ./x.gguf",
        "PARAMETER num_ctx 128",
        "PARAMETER num_predict 9",
        "PARAMETER temperature 0.5",
    ]
    wanted += [
        "PARAMETER seed 3",
        'PARAMETER stop "END"',
        'PARAMETER stop "<|im_end|>"',
        'SYSTEM "Be brief."',
    ]
    wanted += ["PARAMETER repeat_penalty 1.0", "# Layers of the stack that are not in a Modelfile: tools."]
    assert [line for line in wanted if line not in said] == []
    odd = JinjaTemplate("x", tokenizer, TRIMMED)
    assert "# No TEMPLATE" in ollama.modelfile(loaded, "x.gguf", odd, tokenizer, 128)


def test_pieces_write_what_the_template_writes(tmp_path: Path) -> None:
    tokenizer = gguf_files.bpe()
    template = JinjaTemplate("x", tokenizer, SYSTEM_FIRST)
    found = ollama.pieces(template, tokenizer)
    assert found is not None
    given = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    text = tokenizer.decode(list(template.render(given, generate=True).tokens))
    assert found.write([(m.role, m.content) for m in given]) == text


def commands_of(text: str) -> list[tuple[str, str]]:
    """The commands of a Modelfile as Ollama's parser/parser.go reads them: a value ends at the first line end or the end of the
    file where its quotes, if it has any, are closed; no escapes."""
    found: list[tuple[str, str]] = []
    name, value = "", ""
    for char in text + "\n":
        if not name and (not value.strip() and char.isspace()):
            continue
        if not name:
            value += char
            if value.startswith("#"):
                value = "" if char == "\n" else value
            elif char == " ":
                name, value = value.strip().lower(), ""
            continue
        if char == "\n":
            inner = value.strip()
            mark = (
                '"""' if inner.startswith('"""') else '"' if inner.partition(" ")[0].startswith('"') else ""
            )
            if len(inner) >= 2 * len(mark) and inner.endswith(mark):
                found.append((name, inner[len(mark) : len(inner) - len(mark)]))
                name, value = "", ""
                continue
        value += char if char.isprintable() or char in "\n\t" else ""
    assert not name, "the last value is not closed"
    return found


@pytest.mark.parametrize(
    "text",
    [
        "Be brief.",
        'Say "yes" or "no"',
        '"quoted"',
        "  two\n\n# no comment\nFROM here\n\ttab ",
        'ends with "',
        "a\\nb {{ x }}",
        "café 日本 👍",
    ],
)
def test_ollama_reads_back_every_text_that_is_written(text: str) -> None:
    written = ollama.quoted(text)
    assert written is not None
    file = f"# c\nFROM ./x.gguf\nPARAMETER stop {written}\nSYSTEM {written}\n"
    assert commands_of(file.replace("PARAMETER stop ", "PARAMETER ")) == [
        ("from", "./x.gguf"),
        ("parameter", text),
        ("system", text),
    ]


def test_what_a_modelfile_cannot_hold_is_said(tmp_path: Path) -> None:
    (tmp_path / "system.md").write_text(
        '---\nversion: 3\n---\nYou help {{ whom }}\u00a0"well".\nToday it is {{ weather }}.\n',
        encoding="utf-8",
    )
    variables = "{whom: sailors, weather: {value: fair, request: true, values: [fair, foul]}}"
    stack, runs = stack_on(tmp_path)
    loaded = app.load_stack(
        stack.path,
        overrides=[
            f"layers=[{{kind: prompt, system: system.md, variables: {variables}}}]",
            'decoding={temperature: 0, max_tokens: 9, stop: [\'a"b\', "x\\ny", "\'\'\'\\"\\"\\""]}',
        ],
    )
    folder = weights_folder(loaded, runs, "base")
    tokenizer = tokenizers.load(folder)
    template = load_template("model", tokenizer, folder=folder, root=tmp_path)
    said = ollama.modelfile(loaded, "x.gguf", template, tokenizer, 128)
    assert ("system", 'You help sailors"well".\nToday it is fair.') in commands_of(said)
    assert "is without U+00A0." in said
    assert 'PARAMETER stop """a"b"""\nPARAMETER stop """x\ny"""\n' in said
    assert "# Stop texts that a Modelfile cannot hold: '\\'\\'\\'\"\"\"'." in said
    assert "prompt (requests cannot set weather)" in said


def test_what_a_killed_export_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    stack, runs = stack_on(tmp_path, form="F32")
    left, mine = tmp_path / ".out.abc", tmp_path / ".out.mine"
    for folder in (left, mine):
        folder.mkdir()
        (folder / "half.gguf").touch()
    (left / export.LOCK).write_text("process 1 on elsewhere")
    out = export.export(stack.variant("base"), runs, tmp_path / "out", target="gguf", dtype="q8_0")
    assert not left.exists()
    assert mine.exists(), "no export made it"
    assert sorted(p.suffix for p in out.iterdir()) == ["", ".gguf"]
    assert sorted(p.name for p in tmp_path.glob(".out.*")) == [".out.mine"]
