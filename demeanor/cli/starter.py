"""`demeanor init` for a model of one's own: a folder with a stack that fits it, and everything the stack names.

In: where the model is (an endpoint, a folder or hub id, a GGUF file), and perhaps documents and rows. Out: files, written
all or none, never over others, and read back as a stack before the command ends.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import typer

from demeanor.cli.options import PORT, load
from demeanor.core.errors import DemeanorError, UsageError

Kind = Literal["remote", "base", "gguf"]
FILES = resources.files("demeanor.cli") / "starter_files"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
NAME = re.compile(r"[a-z0-9][a-z0-9._]*(-[a-z0-9._]+)*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DOCUMENTS = ("opening.md", "hire.md", "trouble.md")
MOST_UP = 2
WANTED = "files that end with .md, .txt, .html, .pdf, .docx or .jsonl"
LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Wish:
    """What the user has: the kind of model and where it is, the environment variable of its key, documents, rows."""

    kind: Kind
    model: str
    key_env: str | None = None
    documents: Path | None = None
    rows: Path | None = None


@dataclass
class Plan:
    """Every file to write: its text by its path."""

    folder: Path
    name: str
    files: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def interview() -> Wish | None:
    """Ask in the terminal what the user has; None: the demo."""
    print(
        "What shall answer?\n  1  a model behind an OpenAI-compatible address (vLLM, Ollama, llama.cpp, a provider)"
    )
    print(
        "  2  a Hugging Face folder or hub id\n  3  a GGUF file\n  4  the embedded demo, trained from nothing"
    )
    chosen = typer.prompt("1 to 4").strip()
    key_env: str | None = None
    if chosen == "4":
        return None
    if chosen not in ("1", "2", "3"):
        raise UsageError(f"got '{chosen}', wanted 1, 2, 3 or 4")
    if chosen == "1":
        url = typer.prompt("its address, up to /v1", default="http://127.0.0.1:8000/v1")
        model = f"{url}#{typer.prompt('its model id')}"
        key_env = typer.prompt(
            "environment variable of its API key (empty: none)", default="", show_default=False
        )
    else:
        model = typer.prompt("the folder or hub id" if chosen == "2" else "the file")
    documents = typer.prompt("folder of your documents (empty: samples)", default="", show_default=False)
    kinds: dict[str, Kind] = {"1": "remote", "2": "base", "3": "gguf"}
    return Wish(kinds[chosen], model, key_env or None, Path(documents) if documents else None)


def asked_in_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def plan(folder: Path, wish: Wish) -> Plan:
    """Return the files of a starter; raises UsageError for a model or documents that are not there."""
    name = name_of(folder)
    values = {"NAME": name, **_weights(folder, wish), **_documents(folder, wish), **_workflow(folder, name)}
    found = Plan(folder, name)
    kind = "remote" if wish.kind == "remote" else "local"
    values["SERVE"] = _fill(_read(f"serve_{kind}.txt"), values).rstrip("\n")
    values["WEIGHTS"] = _fill(_read(f"weights_{wish.kind}.txt"), values).rstrip("\n")
    trains = wish.kind == "base"
    values["TRAIN"] = "      - run: demeanor train stack.yaml\n" if trains else ""
    values["ENV"] = _secret(wish)
    values["STEPS"] = _fill(_read(f"steps_{kind}.txt"), values).rstrip("\n")
    values |= {"PORT": str(_port(wish)), "ATPORT": _at_port(wish)}
    values["TRY"] = "\n".join(_commands(wish))
    values["MORE"] = _more(trains)
    text = {
        "stack.yaml": "stack.txt",
        "policy.yaml": "policy.yaml",
        "prompts/system.md": "system.md",
        "my_tools.py": "my_tools.txt" if wish.documents is None else "my_tools_own.txt",
        "suite.jsonl": "suite.jsonl" if wish.documents is None else "suite_own.jsonl",
        "gate.yaml": "gate.yaml",
        "README.md": "readme.txt",
        ".gitignore": "gitignore.txt",
    }
    if wish.documents is None:
        text |= {f"documents/{each}": f"documents/{each}" for each in DOCUMENTS}
    if trains and wish.rows is None:
        text["data/train.jsonl"] = "train.jsonl"
    found.files = {folder / path: _fill(_read(source), values) for path, source in text.items()}
    found.files[Path(values["ACTIONS"])] = _fill(_read("workflow.txt"), values)
    found.notes = _notes(wish, values)
    return found


def write(found: Plan, *, force: bool) -> None:
    """Write every file and read them back as a stack; none if one exists already, or if they make no stack here."""
    there = [path for path in found.files if path.exists()]
    if there and not force:
        names = ", ".join(map(str, there[:3]))
        raise UsageError(
            f"{found.folder}: {names}{' ...' if len(there) > 3 else ''} exist already. "
            "Choose another folder, or add --force to overwrite them."
        )
    try:
        for path, text in found.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        load(found.folder / "stack.yaml")
    except (DemeanorError, OSError):
        for path in set(found.files) - set(there):  # nothing half useful stays
            path.unlink(missing_ok=True)
        raise


def name_of(folder: Path) -> str:
    """The folder's name as a model id."""
    name = re.sub(r"[^a-z0-9._]+", "-", folder.resolve().name.lower()).strip("-._")
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{folder}: the assistant is named after its folder; wanted one with letters or digits"
        )
    return name


def _weights(folder: Path, wish: Wish) -> dict[str, str]:
    if wish.kind == "remote":
        return _remote(wish)
    if wish.key_env is not None:
        raise UsageError("--key-env: is for --remote; leave it out")
    path = Path(wish.model)
    if wish.kind == "gguf" and not path.is_file():
        raise UsageError(f"--gguf: got '{wish.model}', wanted a .gguf file")
    if wish.kind == "base" and path.exists() and not (path / "config.json").is_file():
        raise UsageError(f"--base: {path} has no config.json; wanted the folder of a Hugging Face model")
    if wish.kind == "base" and not path.exists() and not HUB_ID.fullmatch(wish.model):
        raise UsageError(f"--base: got '{wish.model}', wanted a folder, or a hub id such as owner/name")
    if wish.rows is not None and (wish.kind != "base" or not wish.rows.exists()):
        why = "no such file" if wish.kind == "base" else "rows are for --base, which trains on them"
        raise UsageError(f"--rows: {wish.rows}: {why}")
    rows = "data/train.jsonl" if wish.rows is None else _relative(wish.rows, folder)
    where = _relative(path, folder) if path.exists() else wish.model
    return {"PATH": _quoted(where), "ROWS": _quoted(rows), "TEMPLATE": _template(wish.kind, path)}


def _remote(wish: Wish) -> dict[str, str]:
    url, _, model = wish.model.partition("#")
    if not re.fullmatch(r"https?://[^@\s]+", url) or not model:
        raise UsageError(
            f"--remote: got '{wish.model}', wanted URL#MODEL, such as http://127.0.0.1:8000/v1#my-model"
        )
    if wish.key_env is not None and not VARIABLE.fullmatch(wish.key_env):
        raise UsageError(
            f"--key-env: got a text of {len(wish.key_env)} characters, wanted the name of an environment variable, such "
            "as MODEL_API_KEY; the key itself belongs into no file"
        )
    if wish.rows is not None:
        raise UsageError("--rows: a model on another server is not trained here; rows are for --base")
    key = (
        f"    key_env: {wish.key_env}"
        if wish.key_env
        else "    # key_env: MODEL_API_KEY            # the environment variable that holds its API key"
    )
    return {"URL": _quoted(url), "MODEL": _quoted(model), "KEY": key}


def _template(kind: Kind, path: Path) -> str:
    """`model` where the model has a chat template of its own, as far as its folder shows."""
    if kind == "gguf" or not path.is_dir() or (path / "chat_template.jinja").is_file():
        return "model"
    about = path / "tokenizer_config.json"
    has_one = about.is_file() and "chat_template" in json.loads(about.read_text(encoding="utf-8"))
    return "model" if has_one else "chatml"


def _documents(folder: Path, wish: Wish) -> dict[str, str]:
    if wish.documents is None:
        return {"DOCUMENTS": "documents", "ORGANISATION": "Brook Street Bike Hire"}
    if not wish.documents.is_dir():
        raise UsageError(f"--documents: {wish.documents}: no such folder")
    from demeanor.indexes import readable

    if not readable(wish.documents):
        raise UsageError(
            f"--documents: {wish.documents}: holds no document that can be read; wanted {WANTED}"
        )
    return {"DOCUMENTS": _quoted(_relative(wish.documents, folder)), "ORGANISATION": "our company"}


def _workflow(folder: Path, name: str) -> dict[str, str]:
    """Where GitHub looks for workflows: the root of the repository that the folder is in, else the folder itself."""
    here = folder.resolve()
    root = next((p for p in (here, *here.parents) if (p / ".git").exists()), here)
    inside = here.relative_to(root).as_posix()
    prefix = "" if inside == "." else f"{inside}/"
    file = "demeanor.yml" if root == here else f"demeanor-{name}.yml"
    actions = (folder if root == here else Path(os.path.relpath(root))) / ".github" / "workflows" / file
    shown = os.path.relpath(root / ".github" / "workflows" / file, here)
    return {"WORKING": inside, "PREFIX": prefix, "ACTIONS": str(actions), "WORKFLOW": shown}


def _secret(wish: Wish) -> str:
    if wish.kind != "remote" or not wish.key_env:
        return ""
    return f"  {wish.key_env}: ${{{{ secrets.{wish.key_env} }}}}   # set it in the repository's settings\n"


def _commands(wish: Wish) -> list[str]:
    lines = [f"export {wish.key_env}=..."] if wish.key_env else []
    lines.append(
        "demeanor explain stack.yaml                               # what it is, and what is missing"
    )
    if wish.kind == "base":
        lines.append(
            "demeanor train stack.yaml                                 # the stage `sft`, on data/train.jsonl"
        )
    lines += [
        'demeanor chat stack.yaml --ask "How much is the deposit?" # one answer, and what each layer did'
        if wish.documents is None
        else 'demeanor chat stack.yaml --ask "A question?"              # one answer, and what each layer did',
        "demeanor eval stack.yaml                                  # every layer measured on suite.jsonl",
        f"demeanor gate stack.yaml --against {'@NAME@'}:base --rules gate.yaml",
        f"{'demeanor serve stack.yaml' + _at_port(wish):57} # the chat page and the API",
    ]
    return lines


def _port(wish: Wish) -> int:
    """Where the stack is served: another port than that of a model server on this machine."""
    try:
        there = urlsplit(wish.model.partition("#")[0]) if wish.kind == "remote" else None
        taken = there is not None and there.hostname in LOCAL and there.port == PORT
    except ValueError:  # a port that is none; asking the model says so
        taken = False
    return PORT + 1 if taken else PORT


def _at_port(wish: Wish) -> str:
    """The option of `serve` for it."""
    port = _port(wish)
    return "" if port == PORT else f" --port {port}"


def _more(trains: bool) -> str:
    return "| `data/train.jsonl` | the rows that stage `sft` is trained on |\n" if trains else ""


def _notes(wish: Wish, values: dict[str, str]) -> list[str]:
    notes = []
    if wish.kind == "remote":
        host = urlsplit(wish.model.partition("#")[0]).hostname
        if not wish.key_env and host not in LOCAL:
            notes.append(
                "no key is sent to this address: if it wants one, set key_env in stack.yaml (or --key-env)"
            )
    if wish.documents is not None:
        from demeanor.indexes import packages_missing

        if missing := packages_missing(wish.documents):
            notes.append(missing)
        notes.append("stack.yaml says `organisation: our company`: write your company's name there")
        notes.append("suite.jsonl asks nothing about your documents yet; README.md shows the line to add")
    notes.append(f"the GitHub Actions file is {values['ACTIONS']}")
    where = Path(values.get("PATH", ""))
    if wish.kind != "remote" and where.is_absolute():
        notes.append(
            f"GitHub cannot see {where}: for the gate there, name a hub id, or a file in the repository"
        )
    return notes


def _relative(path: Path, folder: Path) -> str:
    """A path as the stack file names it: relative where it lies near the folder, so that both can move together."""
    found = Path(os.path.relpath(path.resolve(), folder.resolve()))
    return (path.resolve() if found.parts.count("..") > MOST_UP else found).as_posix()


def _quoted(text: str) -> str:
    """A text as YAML: bare where that is safe."""
    safe = re.fullmatch(r"[A-Za-z0-9./_][A-Za-z0-9./_@-]*(:[A-Za-z0-9./_@-]+)*", text)
    return text if safe else json.dumps(text, ensure_ascii=False)


def _read(name: str) -> str:
    return FILES.joinpath(*name.split("/")).read_text(encoding="utf-8")


def _fill(text: str, values: dict[str, str]) -> str:
    filled = re.sub(r"@([A-Z]+)@", lambda m: values.get(m[1], m[0]), text)
    return re.sub(r"@NAME@", values["NAME"], filled)
