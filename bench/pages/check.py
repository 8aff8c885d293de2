"""Does one page: its commands, code and settings in order, in a folder of its own."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.pages import blocks, place, quoted, readme, settings
from bench.pages.blocks import Block, Command, Page, PageError, without_comment
from bench.pages.shell import Done, Shell

SECONDS = {"quick": 60.0, "full": 240.0}
SLOW_S = 90.0
"""A command that takes more processor seconds says so on its page."""


@dataclass
class Item:
    """What became of a command or block."""

    where: str
    text: str
    state: str  # "run", "failed", "skipped" or "later": of the other level
    why: str = ""
    seconds: float = 0.0
    processor_s: float = 0.0


@dataclass
class PageDone:
    """What became of a page."""

    page: str
    items: list[Item] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, state: str) -> int:
        return sum(item.state == state for item in self.items)

    @property
    def failures(self) -> list[Item]:
        return [item for item in self.items if item.state == "failed"]


def runnable(block: Block) -> bool:
    return block.language in ("", "python", "yaml", "json") or (
        block.language == "text" and "output" in block.settings
    )


def level_of(page: Page, own: dict[str, Any]) -> str:
    return str(own.get("level") or page.settings.get("level") or "full")


def do(page: Page, level: str, runs: Path | None, results: Path | None, keep: bool = False) -> PageDone:
    """Run what a page has of a level (`full`: everything that is not skipped)."""
    done = PageDone(page.name)
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="page-"))
    shell: Shell | None = None
    last: tuple[str, Command] | None = None
    try:
        if page.name in blocks.WRITTEN and level == "full":
            shell = place.made(page, scratch, level, runs, results)
            page = place.written(page, shell)
        for block in page.blocks:
            if not runnable(block):
                continue
            if block.language in ("yaml", "json"):
                _check_settings(page, block, done)
            if shell is None and _wanted(page, block, level):
                shell = place.made(page, scratch, level, runs, results)
            if shell is not None and (name := block.settings.get("save")):
                _save(shell, page, block, str(name))
            if block.language == "" and shell is None:
                for command in block.commands():
                    done.items.append(_left(page, command))
            elif block.language == "" and shell is not None:
                last = _commands(page, block, level, shell, done) or last
            elif block.language == "python":
                _python(page, block, level, shell, done)
            elif block.language == "text" and last is not None:
                _compare(block.where, tuple(block.text.splitlines()), last[0], block.settings["output"], done)
    except place.Absent as absent:
        done.items.append(Item(page.name, "the whole page", "skipped", str(absent)))
    except (PageError, FileNotFoundError) as error:
        done.items.append(Item(page.name, "what the page needs", "failed", str(error)))
    finally:
        if page.name == "README.md" and level == "full" and results is not None:
            done.items += [Item(page.name, "its table", "failed", why) for why in readme.wrong(results)]
            done.items.append(Item(page.name, "its table", "run"))
        if shell is not None:
            for trace in shell.stop(everything=True):
                done.items.append(Item(page.name, "a server", "failed", trace))
        if not keep:
            shutil.rmtree(scratch, ignore_errors=True)
    done.seconds = time.monotonic() - began
    return done


def _wanted(page: Page, block: Block, level: str) -> bool:
    """Has a block something to run on this level?"""
    if block.settings.get("skip"):
        return False
    if block.language == "":
        return any(_now(page, c.settings, level) for c in block.commands())
    return (block.language == "python" or "save" in block.settings) and _now(page, block.settings, level)


def _now(page: Page, own: dict[str, Any], level: str) -> bool:
    return not own.get("skip") and (level == "full" or level_of(page, own) == "quick")


def _left(page: Page, command: Command) -> Item:
    own = command.settings
    if own.get("skip"):
        return Item(command.where, command.text, "skipped", _reason(own))
    return Item(command.where, command.text, "later")


def _reason(own: dict[str, Any]) -> str:
    return str(own["skip"]) + (f": {own['by']}" if own.get("by") else "")


def _check_settings(page: Page, block: Block, done: PageDone) -> None:
    what = f"{block.language} block"
    if block.settings.get("skip"):
        done.items.append(Item(block.where, what, "skipped", _reason(block.settings)))
        return
    wrong = settings.problems(replace(block, text=_let(page, block.settings, block.text)))
    done.items.append(Item(block.where, what, "failed" if wrong else "run", "; ".join(wrong)))


def _save(shell: Shell, page: Page, block: Block, name: str) -> None:
    path = shell.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(shell.with_ports(_let(page, block.settings, block.text, shell)))


def _let(page: Page, own: dict[str, Any], text: str, shell: Shell | None = None) -> str:
    """A text with what stands for the names that only a reader can fill in."""
    own = {**page.settings.get("let", {}), **own.get("let", {}), **(shell.let if shell else {})}
    for name, value in own.items():
        text = text.replace(str(name), str(value))
    return text


def _commands(
    page: Page, block: Block, level: str, shell: Shell, done: PageDone
) -> tuple[str, Command] | None:
    last = None
    commands = block.commands()
    if any(_now(page, c.settings, level) for c in commands):
        _before(page, block.settings, shell, done, block.where)
    for i, command in enumerate(commands):
        if not _now(page, command.settings, level):
            done.items.append(_left(page, command))
            continue
        _before(page, command.settings, shell, done, command.where)
        exit_code = command.settings.get(
            "exit", block.settings.get("exit", 0) if i + 1 == len(commands) else 0
        )
        printed = _run(page, command, level, shell, done, exit_code)
        if printed is None:
            continue
        last = (printed, command)
    return last


def _before(page: Page, own: dict[str, Any], shell: Shell, done: PageDone, where: str) -> None:
    """What must have happened, without a word on the page."""
    for text in own.get("before", []):
        result = shell.run(_let(page, {}, text, shell), 120)
        if result.code != 0:
            done.items.append(Item(where, f"(before) {text}", "failed", _tail(result)))


def _run(
    page: Page, command: Command, level: str, shell: Shell, done: PageDone, exit_code: int
) -> str | None:
    own = command.settings
    text = without_comment(_let(page, own, command.text, shell))
    file = text.startswith("cat > ")
    given = "\n".join(command.printed) + "\n" if file else ""
    result = shell.run(text, float(own.get("seconds", SECONDS[level])), given)
    why = ""
    if result.code != exit_code:
        code = (
            "went on past its time" if result.code is None else f"exit code {result.code}, wanted {exit_code}"
        )
        why = f"{code}\n{_tail(result)}"
    elif not file and (line := quoted.missing(command.printed, result.printed, own.get("output", "words"))):
        why = f"the page quotes, and it did not print: {line}\n{_tail(result)}"
    elif result.processor_s > SLOW_S and "seconds" not in own:
        why = f"took {result.processor_s:.0f} processor seconds: a page says that a command takes long (`seconds:` in its comment allows it)"
    state = "failed" if why else "run"
    done.items.append(Item(command.where, command.text, state, why, result.seconds, result.processor_s))
    return None if why else result.printed


def _tail(result: Done) -> str:
    return "\n".join("    " + line for line in result.printed.rstrip().splitlines()[-25:])


def _compare(where: str, lines: tuple[str, ...], printed: str, how: str, done: PageDone) -> None:
    line = quoted.missing(lines, printed, how)
    why = f"the page quotes, and it was not printed: {line}\n{printed[-1500:]}" if line else ""
    done.items.append(Item(where, f"output ({how})", "failed" if why else "run", why))


def _python(page: Page, block: Block, level: str, shell: Shell | None, done: PageDone) -> None:
    own = block.settings
    if own.get("skip"):
        done.items.append(Item(block.where, "python block", "skipped", _reason(own)))
    elif shell is None or not _now(page, own, level):
        done.items.append(Item(block.where, "python block", "later"))
    else:
        _before(page, own, shell, done, block.where)
        source = shell.with_ports(_let(page, own, block.text, shell))
        (shell.folder / ".block.py").write_text(source)
        result = shell.python(".block.py", float(own.get("seconds", SECONDS[level])))
        why = "" if result.code == 0 else f"exit code {result.code}\n{_tail(result)}"
        done.items.append(Item(block.where, "python block", "failed" if why else "run", why, result.seconds))
