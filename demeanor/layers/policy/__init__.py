"""The policy layer: rules from a file on everything that goes in, comes out, or is read from elsewhere on the way.

In: a turn. Out: its events without anything that a rule forbids. Requests are judged before the inner layers see them
(`requests.py`), answers and what is told about them as they leave (`output.py`, `masks.py`), and passages, tools, calls
and results right around the model (`model_guard.py`). What rules did is told by `RuleHit` events (`hit_log.py`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from pydantic import Field

from demeanor.core import registry
from demeanor.core.errors import Problem, RequestError, SpecError
from demeanor.core.long_text import off_loop
from demeanor.core.types import Event, Respond, Turn
from demeanor.layers import Kit, timed
from demeanor.layers.policy import model_guard
from demeanor.layers.policy.hit_log import HitLog
from demeanor.layers.policy.kept_requests import kept_turn
from demeanor.layers.policy.matching import Rule, bound, declared, load
from demeanor.layers.policy.output import BY, ending, judged_answer
from demeanor.layers.policy.requests import judge_turn, note_turn, read_by, size
from demeanor.layers.policy.rules import PolicySpec, problems_of

BEHAVIOUR = True
MAX_CHARS = 2**20  # of one request that rules read; 1 MiB takes them a second or two


class Spec(registry.Spec):
    """The rules file."""

    rules: registry.File = Field(
        "policy.yaml", description="YAML file of rules, beside the stack file, or builtin:default"
    )

    def further_files(self, root: Path) -> list[Path]:
        """Return the weights of classifiers and probes that the rules name."""
        path = registry.file_path(root, self.rules)
        try:
            return [registry.file_path(path.parent, name) for rule in declared(path) for name in rule.files]
        except SpecError:
            return []  # `check` tells what is wrong with the file


def check(spec: Spec, root: Path) -> list[Problem]:
    """Return every mistake in the rules file and in the files that it names."""
    path = registry.file_path(root, spec.rules)
    problems = problems_of(path, PolicySpec)
    for rule in () if problems else declared(path):
        problems += [
            Problem(f"{path}: rule {rule.name}", f"no such file: {name}")
            for name in rule.files
            if not Path(name).is_file()
        ]
    return problems


def notes(spec: Spec, root: Path) -> list[str]:
    """Return a sentence about the rules for which an answer waits for its end, if there are any."""
    waiting = [
        rule.name
        for rule in declared(registry.file_path(root, spec.rules))
        if "output" in rule.stages and rule.holds == "buffer" and rule.action != "flag"
    ]
    if not waiting:
        return []
    return [
        f"policy: a streamed answer is sent when it has ended, for the rules {', '.join(waiting)} (hold: buffer, cues, or a "
        "pattern without a longest match); until then the stream sends keep-alive comments"
    ]


def wrap(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Apply the rules to requests and answers; `around_model` applies the others."""
    rules = load(registry.file_path(kit.root, spec.rules), kit)
    input_rules = [rule for rule in rules if "input" in rule.stages]
    leaving = [rule for rule in rules if rule.stages & {"output", "retrieved", "tool_result"}]

    async def body(turn: Turn, inner: Respond) -> AsyncIterator[Event]:
        log = HitLog()
        outcome, before = await _request(turn, input_rules, log)
        for event in before:
            yield event
        if isinstance(outcome, Rule):
            *told, done = ending(outcome, "input")
            for event in (*told, *log.events(), done):
                yield event
            return
        for event in log.events():
            yield event
        events = inner(outcome)
        async for event in judged_answer(events, leaving, log) if leaving else events:
            yield event

    return timed(BY, body, inner, kit.clock)


def around_model(spec: Spec, inner: Respond, kit: Kit) -> Respond:
    """Apply the rules on passages, tools, calls and results, right around the model."""
    return model_guard.around_model(load(registry.file_path(kit.root, spec.rules), kit), inner, kit)


def kept(spec: Spec, kit: Kit) -> Callable[[Turn], Awaitable[Turn]]:
    """Return what takes out of a turn what the rules hide from the model, for those who keep it."""
    rules = [rule for rule in load(registry.file_path(kit.root, spec.rules), kit) if rule.replaces]

    async def without(turn: Turn) -> Turn:
        return turn if size(turn) > MAX_CHARS else await kept_turn(turn, rules)  # a longer one is refused

    return without


async def _request(turn: Turn, rules: list[Rule], log: HitLog) -> tuple[Turn | Rule, list[Event]]:
    """Return the turn that goes on or the rule that ends it, and what is told about the request."""
    chars = size(turn) if rules else 0
    if chars > MAX_CHARS:
        raise RequestError(
            f"messages: {chars} characters are more than the policy's rules read; wanted at most {MAX_CHARS}. "
            "Shorten the conversation or send it in parts.",
            param="messages",
            code="string_above_max_length",
        )
    ready = await bound(rules, lambda rule: read_by(rule, turn))
    log.went_on(ready, "input")
    outcome, left_out = await off_loop(chars, judge_turn, turn, [r for r in ready if r.enforces], log)
    if isinstance(outcome, Turn):
        await off_loop(chars, note_turn, turn, [r for r in ready if not r.enforces], log)
    return outcome, list(left_out)
