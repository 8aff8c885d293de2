"""The schema of `serve:`: which variants keys may ask for, and what else happens with live traffic.

Experiments split users between variants, shadows answer copies of requests, evaluators score answers. All of it is operational: none of it
is part of a stack key.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from demeanor.core.registry import Spec
from demeanor.stack.upstreams import Price

NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(gt=0)]


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("traffic", message)


class ArmSpec(Spec):
    """One arm of an experiment: a variant and the share of users that it answers."""

    model: str = Field(description="model id of a variant, such as NAME or NAME-policy")
    share: Share = Field(description="of the experiment's users; the shares add up to 1")
    stack: str | None = Field(
        None,
        description="another stack file whose variant `model` is; null: this stack. Its record and limits layers are this stack's",
    )
    name: str | None = Field(
        None,
        pattern=NAME,
        description="how reports call the arm; null: `control` or `treatment`, numbered from the third arm on",
    )


class ScoreSpec(Spec):
    """What an experiment compares; it is stated before the experiment begins and is part of its identity."""

    kind: Literal["complaint", "feedback", "refused", "scorer", "evaluator", "tokens", "ms"] = Field(
        description="complaint: a turn with a rating below 0; feedback: of rated turns, a rating above 0; refused: a layer refused; "
        "scorer: a scorer of docs/scorers.md; evaluator: what a serve.evaluators entry gave; tokens: of the answer; ms: of the turn"
    )
    scorer: str | None = Field(None, description="of kind scorer: its name")
    target: dict[str, Any] = Field(default_factory=dict, description="of kind scorer: its settings")
    evaluator: str | None = Field(None, description="of kind evaluator: its name")
    bounds: tuple[float, float] | None = Field(
        None, description="of kinds tokens and ms: what counts as least and most; values beyond are clipped"
    )
    better: Literal["higher", "lower"] | None = Field(
        None, description="null: lower for complaint, refused, tokens and ms, else higher"
    )
    window_hours: float = Field(
        24.0,
        ge=0,
        le=24 * 90,
        description="a user counts once: the mean over this long from the first turn on, when it is over; 0: the first score",
    )

    @property
    def lower_is_better(self) -> bool:
        """Whether a smaller value is the better one."""
        falling = self.kind in ("complaint", "refused", "tokens", "ms")
        return falling if self.better is None else self.better == "lower"

    @model_validator(mode="after")
    def _fits(self) -> ScoreSpec:
        for name, kinds in (
            ("scorer", ("scorer",)),
            ("evaluator", ("evaluator",)),
            ("bounds", ("tokens", "ms")),
        ):
            given = getattr(self, name) is not None
            if given != (self.kind in kinds):
                raise _wrong(
                    f"{name}: {'is for kind ' + ' or '.join(kinds) if given else 'wanted with kind ' + self.kind}"
                )
        if self.target and self.kind != "scorer":
            raise _wrong("target: is for kind scorer")
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise _wrong(f"bounds: got {list(self.bounds)}, wanted the least and the most")
        if self.kind == "complaint" and not self.window_hours:
            raise _wrong("window_hours: complaints come after the answer; wanted a number above 0")
        return self


class ExperimentSpec(Spec):
    """An A/B test of the whole stack's users; the first arm is the control."""

    name: str = Field(pattern=NAME)
    arms: tuple[ArmSpec, ...] = Field(min_length=2, max_length=8, description="the first one is the control")
    score: ScoreSpec = Field(description="what is compared")
    salt: str | None = Field(
        None, max_length=128, description="of the hash that assigns users; null: the name"
    )
    traffic: Share = Field(1.0, description="share of users that take part; the others get the whole stack")
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="largest probability of ever naming a difference where there is none"
    )
    planned: Count = Field(
        1000, description="users at which the interval is tightest; it holds at any number"
    )

    @model_validator(mode="after")
    def _fits(self) -> ExperimentSpec:
        total = sum(arm.share for arm in self.arms)
        if abs(total - 1) > 1e-9:
            raise _wrong(f"arms: the shares add up to {total:g}, wanted 1")
        names = self.arm_names
        if len(set(names)) < len(names):
            raise _wrong(f"arms: got the names {', '.join(names)}, wanted each once")
        same = {(arm.model, arm.stack) for arm in self.arms}
        if len(same) < len(self.arms):
            raise _wrong("arms: the same variant stands twice, so there is nothing to compare")
        return self

    @property
    def arm_names(self) -> tuple[str, ...]:
        """What reports call the arms, in order."""
        known = ("control", "treatment")
        return tuple(arm.name or (known[i] if i < 2 else f"treatment-{i}") for i, arm in enumerate(self.arms))


class JobBudget(Spec):
    """How much work on live turns may be done beside answering; what does not fit is skipped and counted."""

    concurrency: Count = Field(1, description="jobs at once, in each server process")
    waiting: Count = Field(64, description="jobs that may wait; further ones are skipped")
    patience_s: float = Field(
        30.0,
        gt=0,
        description="how long a job of the own engine waits until no live answer is written; then it is skipped",
    )
    timeout_s: float = Field(60.0, gt=0, description="longest time of one job, in seconds")
    per_minute: Count | None = Field(
        60, description="jobs begun in 60 s, in each server process; null: no limit"
    )
    per_day: Count | None = Field(
        None, description="jobs begun on a day (UTC), over all processes; null: no limit"
    )
    tokens_per_day: Count | None = Field(
        None,
        description="prompt and answer tokens of its model calls on a day (UTC), over all processes; null: no limit",
    )
    usd_per_day: float | None = Field(
        None, gt=0, description="cost on a day (UTC), over all processes; null: no limit"
    )
    usd_per_million: tuple[float, float] | None = Field(
        None, description="price of a million prompt tokens and of a million answer tokens; null: free"
    )
    alarm_after: Count = Field(
        20,
        description="selected turns without one finished job after which /readyz and the log say that it does not run",
    )

    @model_validator(mode="after")
    def _fits(self) -> JobBudget:
        if self.usd_per_day is not None and self.usd_per_million is None:
            raise _wrong("usd_per_day: wanted usd_per_million too, or nothing has a cost")
        return self


class ShadowSpec(Spec):
    """Copies of a share of requests, answered by another variant after the live answer; no user sees the result."""

    name: str = Field(pattern=NAME)
    model: str = Field(description="model id of the variant that answers the copies")
    stack: str | None = Field(
        None, description="another stack file whose variant `model` is; null: this stack"
    )
    share: Share = Field(1.0, description="of the turns that the whole stack's model id answers")
    tools: Literal["dry", "run"] = Field(
        "dry",
        description="dry: a tool that may have side effects is not run, the model is told so; run: tools are run",
    )
    scorer: str | None = Field(
        None, description="scores both answers by a scorer of docs/scorers.md; null: none"
    )
    target: dict[str, Any] = Field(default_factory=dict, description="settings of `scorer`")
    budget: JobBudget = JobBudget()


class DriftSpec(Spec):
    """When a change of an evaluator's mean is an alarm."""

    baseline: Count = Field(200, description="first scores, which say what is normal")
    false_alarm_every: int = Field(
        10_000,
        ge=100,
        description="scores between two false alarms, on average and at least, while nothing has changed",
    )


class EvaluatorSpec(Spec):
    """A scorer or a judge on a sample of live turns, after their answers."""

    name: str = Field(pattern=NAME)
    scorer: str = Field(description="a scorer of docs/scorers.md; `judged` asks evaluation.judge")
    target: dict[str, Any] = Field(default_factory=dict, description="settings of `scorer`")
    share: Share = Field(1.0, description="of the finished turns")
    models: tuple[str, ...] = Field((), description="only turns that these model ids answered; empty: all")
    drift: DriftSpec | None = Field(DriftSpec(), description="null: no alarm on drift")
    budget: JobBudget = JobBudget()


class ShowSpec(Spec):
    """What `demeanor.events` of an answer, and so the chat page, shows of what the layers added."""

    prompts: bool = Field(True, description="the text of messages that layers put before the conversation")
    passages: Literal["all", "cited", "none"] = Field(
        "all", description="whose text is shown: of all retrieved passages, of cited ones, of none"
    )
    tools: bool = Field(True, description="arguments and results of tools that the stack runs itself")


class ServeSpec(Spec):
    """What a server offers, shows, and does with live traffic besides answering."""

    publish: tuple[str, ...] = Field(
        (),
        description="model ids that keys may ask for besides the whole stack, such as NAME:sft; `all`: every variant",
    )
    show: ShowSpec = Field(ShowSpec(), description="what clients see of prompts, passages and tools")
    settings: tuple[Literal["system_prompt", "sampling", "max_tokens"], ...] = Field(
        ("system_prompt", "sampling", "max_tokens"),
        description="what requests may set for themselves; a request that sets another of them is refused (403)",
    )
    history: bool = Field(
        True, description="keep the chat page's conversations of users with keys in the database of turns"
    )
    prices: str | dict[str, Price] | None = Field(
        None,
        description="USD per million tokens, by upstream name, model id or weights; or a YAML file of that; null: none",
    )
    experiments: tuple[ExperimentSpec, ...] = Field(
        (), max_length=16, description="A/B tests; a user takes part in the first one that takes them"
    )
    shadows: tuple[ShadowSpec, ...] = Field(
        (), max_length=16, description="variants that answer copies of requests"
    )
    evaluators: tuple[EvaluatorSpec, ...] = Field((), max_length=32, description="scores of live turns")
