"""`demeanor label`: people compare answers: make a queue, invite, serve the page, see how far they agree, export rows to train on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from demeanor.cli.judges import JudgeKeys, OtherJudges, judge_clients, judge_specs
from demeanor.cli.options import RESULTS, RUNS, Overrides, Results, RunsFolder, StackFile, database_at, load
from demeanor.cli.tables import columns
from demeanor.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from demeanor.evaluation.answer_sampling import DrawnAnswer, PromptToSample
    from demeanor.evaluation.label_order import QueuePlace
    from demeanor.stack.stack import Stack
    from demeanor.store.labels import LabelItem

DATABASE = "sqlite:///runs/labels.db"
NO_QUEUE = "make a queue: demeanor label create STACK.yaml --prompts FILE"
Url = Annotated[str, typer.Option("--database", metavar="URL", help="The database of the queues.")]
Queue = Annotated[
    str | None, typer.Option("--queue", metavar="NAME", help="The queue (default: the only one).")
]

app = typer.Typer(
    no_args_is_help=True, help="Let people compare answers, and export their labels as training rows."
)


# ---- making a queue ----


@app.command()
def create(
    stack: StackFile,
    prompts: Annotated[
        str,
        typer.Option(
            metavar="SOURCE", help="Prompts: a file of rows, hf:owner/name, world:NAME; with --items a suite."
        ),
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the queue.")] = "labels",
    variants: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Model ids that answer in turn (default: the whole stack)."),
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Show two answers for each item (the default).")
    ] = False,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            min=2,
            max=9,
            metavar="K",
            help="Show K answers for each item, to be ranked; 4 to 9 are usual.",
        ),
    ] = None,
    labellers_per_item: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of people who label each item.")
    ] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of items in the queue.")
    ] = None,
    items: Annotated[
        bool, typer.Option("--items", help="SOURCE is a suite, such as world:exercises.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Random seed of the answers and their order.")] = 0,
    gold: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows with known labels (prompt, chosen, rejected, or with ranks), shown as hidden checks.",
        ),
    ] = None,
    gold_every: Annotated[
        int, typer.Option(min=1, metavar="N", help="One check in every N labels of a person.")
    ] = 10,
    uncertainty: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="Reward-model stages: items on which they disagree come first."),
    ] = None,
    random_share: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="With --uncertainty: share of the items that is chosen at random."
        ),
    ] = 0.3,
    candidates: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --uncertainty: prompts to choose the --limit items from (default: all).",
        ),
    ] = None,
    lease: Annotated[
        float, typer.Option(min=1.0, metavar="SECONDS", help="How long an item is reserved for one person.")
    ] = 900.0,
    question: Annotated[
        str, typer.Option(help="The question that the page shows.")
    ] = "Which answer does better what the request asks for?",
    url: Url = DATABASE,
    overrides: Overrides = None,
    runs: RunsFolder = RUNS,
) -> None:
    """Sample answers to prompts, make a queue of items to label, and print how to invite people."""
    from demeanor.store import labels
    from demeanor.store.labels import LabelQueue

    if pairs and k not in (None, 2):
        raise UsageError(f"--pairs: is --k 2; got --k {k} too")
    if candidates is not None and not uncertainty:
        raise UsageError("--candidates: is for --uncertainty, which chooses among them")
    count = k or 2
    checks = _gold(gold, count) if gold else []
    with database_at(url) as database:
        if labels.find_queue(database, name) is not None:
            raise UsageError(f"--name: a queue named '{name}' is there already; give another name")
        found = load(stack, overrides)
        asked = _prompts(found, prompts, items, candidates if uncertainty else limit, seed)
        draws = _Draws(name, count, temperature, seed, tuple(uncertainty or ()), random_share, limit)
        answering, made, same = _drawn_items(found, runs, variants or [], asked, draws)
        about = {
            "stack": str(found.path),
            "variants": {v.model_id: v.key() for v in answering},
            "prompts": prompts,
            "k": count,
            "temperature": temperature,
            "seed": seed,
            "uncertainty": list(uncertainty or ()),
            "random_share": random_share if uncertainty else None,
        }
        queue = LabelQueue(name, labellers_per_item, lease, gold_every if checks else 0, question, about)
        labels.create(database, queue, [*made, *_numbered(name, checks)])
    print(
        f"{name}: {len(made)} items of {count} answers, {labellers_per_item} labels each, {len(checks)} gold checks"
    )
    if same:
        print(f"{same} prompts were left out: their answers were all the same")
    fewer = sum(len(item.answers) < count for item in made)
    if fewer:
        print(f"{fewer} items have fewer than {count} answers, because some were the same")
    print(f"next: demeanor label invite ANNA --queue {name}, then demeanor label serve")


class _Draws(NamedTuple):
    """How the answers of a queue are drawn, and which prompts become its items."""

    queue: str
    answers: int
    temperature: float
    seed: int
    uncertainty: tuple[str, ...]
    random_share: float
    limit: int | None


def _drawn_items(
    stack: Stack, runs: Path, variants: Sequence[str], asked: Sequence[PromptToSample], draws: _Draws
) -> tuple[list[Stack], list[LabelItem], int]:
    """The variants that answer, the items in the order of the queue, and how many prompts had one answer only."""
    answering, drawn = _sampled(stack, runs, variants, asked, draws.answers, draws.temperature, draws.seed)
    kept = [n for n, answers in enumerate(drawn) if len(answers) >= 2]
    if not kept:
        failed = sum(not answers for answers in drawn)
        raise DataError(
            "no prompt has two different answers"
            + (f" ({failed} of {len(drawn)} have none: see above)" if failed else "")
            + "; raise --temperature, or name --variants that answer differently"
        )
    rewards = _rewards(stack, runs, draws.uncertainty, asked, drawn, kept) if draws.uncertainty else {}
    places = _places(kept, rewards, draws.limit or len(kept), draws.random_share, draws.seed)
    made = [
        _item(draws.queue, number, asked[place.row], drawn[place.row], place, rewards.get(place.row, {}))
        for number, place in enumerate(places)
    ]
    return answering, made, len(asked) - len(kept)


def _prompts(stack: Stack, source: str, items: bool, limit: int | None, seed: int) -> list[PromptToSample]:
    """The prompts of a source, in their order; `limit` of them by chance."""
    import random

    from demeanor import app as composed
    from demeanor.data import revision
    from demeanor.evaluation.answer_sampling import PromptToSample
    from demeanor.stack.schema import PromptSource
    from demeanor.training.prompts import to_revise

    root = Path() if not items else stack.root
    every = to_revise(PromptSource(source=source, items=items), root, composed.GENERATION.items)
    found = revision.distinct(every, None)
    if limit is not None and limit < len(found):
        chosen = sorted(random.Random(f"label prompts/{seed}").sample(range(len(found)), limit))
        found = [found[n] for n in chosen]
    if not found:
        raise DataError(f"{source}: no prompt; wanted at least one")
    return [PromptToSample(p.id, p.messages, p.tools, p.source) for p in found]


def _sampled(
    stack: Stack,
    runs: Path,
    variants: Sequence[str],
    asked: Sequence[PromptToSample],
    count: int,
    temperature: float,
    seed: int,
) -> tuple[list[Stack], list[list[DrawnAnswer]]]:
    from demeanor import app as composed
    from demeanor.evaluation import answer_sampling
    from demeanor.training.runs import Runs

    return answer_sampling.sample_stack(
        stack, composed.services(Runs(runs)), variants, asked, count, temperature=temperature, seed=seed
    )


def _rewards(
    stack: Stack,
    runs: Path,
    stages: Sequence[str],
    asked: Sequence[PromptToSample],
    drawn: Sequence[Sequence[DrawnAnswer]],
    kept: Sequence[int],
) -> dict[int, dict[str, tuple[float, ...]]]:
    """What each reward model gives the answers of the kept prompts."""
    from demeanor.core.types import Message, Preference
    from demeanor.training.reward_scores import reward_scores
    from demeanor.training.runs import Runs

    rows = [
        Preference(
            asked[n].messages,
            tuple((Message("assistant", answer.text),) for answer in drawn[n]),
            tuple(range(len(drawn[n]))),
            asked[n].tools,
        )
        for n in kept
    ]
    return dict(zip(kept, reward_scores(stack, Runs(runs), stages, rows), strict=True))


def _places(
    kept: Sequence[int], rewards: dict[int, dict[str, tuple[float, ...]]], count: int, share: float, seed: int
) -> list[QueuePlace]:
    from demeanor.evaluation import label_order
    from demeanor.evaluation.label_order import QueuePlace

    if not rewards:
        return [QueuePlace(n, "", 0.0) for n in kept[:count]]
    chosen = label_order.order([rewards[n] for n in kept], count, share, seed)
    return [place._replace(row=kept[place.row]) for place in chosen]


def _item(
    queue: str,
    number: int,
    asked: PromptToSample,
    drawn: Sequence[DrawnAnswer],
    place: QueuePlace,
    rewards: dict[str, tuple[float, ...]],
) -> LabelItem:
    from demeanor.core.types import message_json
    from demeanor.store.labels import LabelAnswer, LabelItem

    answers = tuple(
        LabelAnswer(
            one.text,
            one.model,
            one.stack_key,
            one.seed,
            one.logprobs,
            rewards={stage: values[n] for stage, values in rewards.items()},
        )
        for n, one in enumerate(drawn)
    )
    prompt = tuple(message_json(message) for message in asked.messages)
    return LabelItem(
        f"{queue}-{number}-{asked.id[:12]}",
        number,
        prompt,
        answers,
        None,
        place.arm,
        place.disagreement,
        asked.source,
    )


def _gold(path: Path, count: int) -> list[LabelItem]:
    """Rows with known ranks as checks."""
    from demeanor.core.types import Preference, message_json
    from demeanor.data import sources
    from demeanor.stack.schema import Source
    from demeanor.store.labels import LabelAnswer, LabelItem

    found = []
    for n, row in enumerate(sources.rows(Source(source=str(path)), root=Path(), want="preferences")):
        assert isinstance(row, Preference)
        if len(row.completions) != count:
            raise DataError(
                f"{path}: row {n + 1} has {len(row.completions)} answers and the items {count}; people would know a check by that"
            )
        texts = tuple(LabelAnswer(completion[0].content) for completion in row.completions)
        prompt = tuple(message_json(message) for message in row.prompt)
        found.append(LabelItem("", n, prompt, texts, row.ranks, source=f"{path}: row {n + 1}"))
    return found


def _numbered(queue: str, checks: Sequence[LabelItem]) -> list[LabelItem]:
    from dataclasses import replace

    return [replace(item, id=f"{queue}-check-{n}", number=n) for n, item in enumerate(checks)]


@app.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Potato's annotated_instances.jsonl, or Label Studio's JSON."),
    ],
    kind: Annotated[
        Literal["potato", "label-studio"], typer.Option("--from", help="The tool that exported.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the queue.")] = "imported",
    items: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Potato: the data file that its task showed.")
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The annotation scheme (Potato) or control tag (Label Studio)."),
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="The field with the list of answers, or the field of each."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="FIELD", help="The field of the prompt.")] = None,
    url: Url = DATABASE,
) -> None:
    """Read comparisons that another tool exported, with their labels, as a queue."""
    from demeanor.data import label_imports
    from demeanor.store import label_work, labels
    from demeanor.store.labels import GivenLabel, LabelAnswer, LabelItem, LabelQueue

    fields = [] if answers is None else [x.strip() for x in answers.split(",") if x.strip()]
    found = label_imports.read(files, kind, items=items, scheme=scheme, answers=fields, prompt=prompt)
    made, given = [], []
    for n, one in enumerate(found.items):
        item_id = f"{name}-{n}"
        texts = tuple(LabelAnswer(text) for text in one.answers)
        made.append(LabelItem(item_id, n, one.prompt, texts, source=f"{kind}:{one.id}"))
        shown = tuple(range(len(texts)))
        given += [
            GivenLabel(item_id, x.labeller, "labeller", x.choice, x.ranks, shown, x.reason, x.ms, "")
            for x in one.labels
        ]
    most = max(len(one.labels) for one in found.items)
    with database_at(url) as database:
        labels.create(
            database, LabelQueue(name, most, made={"imported": [str(f) for f in files], "from": kind}), made
        )
        label_work.add_given(database, labels.queue_of(database, name), given)
    print(f"{name}: {len(made)} items with {len(given)} labels")
    for why, count in found.left_out.items():
        print(f"  {count} left out: {why}")


# ---- people ----


@app.command()
def invite(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the person; exports contain a hash of it.")
    ],
    queue: Queue = None,
    role: Annotated[
        Literal["labeller", "adjudicator", "owner"],
        typer.Option(
            help="labeller; adjudicator: decides where labels disagree; owner: sees agreement, makes and ends links."
        ),
    ] = "labeller",
    hours: Annotated[
        float | None, typer.Option(min=0.01, metavar="N", help="How long the link is valid.")
    ] = None,
    page: Annotated[
        str, typer.Option("--page", metavar="URL", help="Where the page is served.")
    ] = "http://127.0.0.1:8010",
    url: Url = DATABASE,
) -> None:
    """Create a person's link and print it; it cannot be printed again."""
    from demeanor.store import labels

    with database_at(url, absent=NO_QUEUE) as database:
        found = labels.queue_of(database, queue)
        token = labels.invite(database, found.name, name, role, None if hours is None else 3600 * hours)
    print(f"{page.rstrip('/')}/label#{token}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The person whose links end.")],
    queue: Queue = None,
    url: Url = DATABASE,
) -> None:
    """End a person's links and release the item that is reserved for them."""
    from demeanor.store import labels

    with database_at(url, absent=NO_QUEUE) as database:
        count = labels.revoke(database, labels.queue_of(database, queue).name, name)
    if not count:
        raise UsageError(f"label revoke: '{name}' has no valid link to this queue")
    print(f"revoked: {count} links of {name}")


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port (0: any free one).")] = 8010,
    url: Url = DATABASE,
) -> None:
    """Serve the labelling page until Ctrl-C. Only people with a link can use it."""
    from demeanor.evaluation import label_agreement
    from demeanor.server import label_serve

    with database_at(url) as database:
        label_serve.serve(database, label_agreement.measured, host, port)


@app.command()
def judge(
    stack: StackFile,
    queue: Queue = None,
    least: Annotated[
        float,
        typer.Option(
            "--min-accuracy",
            min=0.5,
            max=1.0,
            help="The lower end of the interval of the judge's accuracy must be above this.",
        ),
    ] = 0.5,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Label at most N items.")] = None,
    judges: OtherJudges = None,
    judge_keys: JudgeKeys = None,
    url: Url = DATABASE,
    overrides: Overrides = None,
    results: Results = RESULTS,
) -> None:
    """Let the stack's judge (with --judge a panel) label items that no person labelled, if it agrees with people's labels."""
    from demeanor.evaluation import judge as judging
    from demeanor.evaluation import label_judging
    from demeanor.store import label_work, labels

    found = load(stack, overrides)
    specs = judge_specs(found, judges, judge_keys)
    if not specs:
        raise UsageError(judging.NO_JUDGE.format(stack=found.path))
    names, weights = [spec.model for spec in specs], None
    with database_at(url, absent=NO_QUEUE) as database:
        chosen = labels.queue_of(database, queue)
        items, given = labels.items_of(database, chosen.name), labels.labels_of(database, chosen.name)
        clients = judge_clients(specs, results, f"{chosen.name}.label", RUNS)
        if len(clients) == 1:
            measured = label_judging.calibrate(clients[0], items, given)
        else:
            measured, each, weights = label_judging.calibrate_panel(clients, items, given)
            for one, weight in zip(each, weights, strict=True):
                print(f"{one.said()}; weight {weight:+.2f}")
        print(measured.said())
        if why := measured.unusable(least):
            raise UsageError(f"label judge: {measured.model} may not label '{chosen.name}': {why}")
        done = label_judging.label(clients, items, given, limit, weights_J=weights)
        who = f"judge:{names[0]}" if weights is None else f"panel:{'+'.join(names)}"
        label_work.add_judged(database, chosen, who, done)
    for client in clients:
        print(client.summary())
    print(
        f"labelled by {measured.model}: {sum(bool(ranks) for _, ranks in done)} items; {sum(not r for _, r in done)} without a verdict"
    )


# ---- what came of it ----


@app.command("list")
def list_queues(url: Url = DATABASE) -> None:
    """List the queues with their progress."""
    from demeanor.store import labels

    with database_at(url) as database:
        rows = []
        for queue in labels.queues(database):
            done = labels.progress(database, queue.name)
            open_ones = f"{done['adjudicated']} of {done['disagreements']}"
            rows.append(
                (
                    queue.name,
                    str(done["items"]),
                    f"{done['given']} of {done['wanted']}",
                    open_ones,
                    queue.created,
                )
            )
    print("\n".join(columns(("queue", "items", "labels", "adjudicated", "created"), rows)))


@app.command()
def status(queue: Queue = None, url: Url = DATABASE) -> None:
    """Show progress, agreement and each labeller; with --uncertainty also how informative the labels were."""
    from demeanor.evaluation import label_agreement, label_order
    from demeanor.report import outputs
    from demeanor.store import labels

    with database_at(url, absent=NO_QUEUE) as database:
        found = labels.queue_of(database, queue)
        items, given = labels.items_of(database, found.name), labels.labels_of(database, found.name)
        done = labels.progress(database, found.name)
    print(
        f"{found.name}: {done['given']} of {done['wanted']} labels of {done['items']} items, {done['claimed']} being made, "
        f"{done['adjudicated']} of {done['disagreements']} disagreements adjudicated"
    )
    gold = {item.id: item.gold for item in items if item.gold is not None}
    people = [label for label in given if label.role == "labeller"]
    outputs.show(
        label_agreement.section(label_agreement.measure(people, gold), found.name), outputs.console()
    )
    rewards = {item.id: _by_stage(item) for item in items if item.arm}
    gain = label_order.gain(people, rewards, {item.id: item.arm for item in items})
    if gain is not None:
        outputs.show(label_order.section(gain), outputs.console())


def _by_stage(item: LabelItem) -> dict[str, list[float]]:
    stages = item.answers[0].rewards
    return {stage: [answer.rewards[stage] for answer in item.answers] for stage in stages}


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The file to write.")],
    queue: Queue = None,
    what: Annotated[
        Literal["rows", "each", "labels"],
        typer.Option(
            help="rows: one preference for each item; each: one for each label; labels: the labels as they were given."
        ),
    ] = "rows",
    force: Annotated[bool, typer.Option("--force", help="Overwrite OUT.")] = False,
    url: Url = DATABASE,
) -> None:
    """Write the labels as rows to train on (TRL's columns, with provenance), or as they were given."""
    from demeanor.data import curation
    from demeanor.store import label_rows, labels

    curation.check_out(out, force=force)
    with database_at(url, absent=NO_QUEUE) as database:
        name = labels.queue_of(database, queue).name
        if what == "labels":
            given = labels.labels_of(database, name)
            rows = list(label_rows.sheet(labels.items_of(database, name), given, name))
            dropped: dict[str, int] = {}
        else:
            found = label_rows.export(database, name, each=what == "each")
            rows, dropped = found.rows, dict(found.dropped)
    curation.write(out, rows)
    print(f"written: {len(rows)} rows, {out}")
    for why, count in sorted(dropped.items(), key=lambda x: -x[1]):
        print(f"  {count} left out: {why}")


@app.command()
def delete(
    queue: Annotated[str, typer.Argument(metavar="NAME", help="The queue.")],
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is deleted.")] = False,
    url: Url = DATABASE,
) -> None:
    """Delete a queue with its items, links and labels."""
    from demeanor.store import labels

    with database_at(url, absent=NO_QUEUE) as database:
        found = labels.queue_of(database, queue)
        count = labels.progress(database, found.name)["given"]
        if not yes:
            raise UsageError(f"label delete: '{found.name}' has {count} labels; add --yes to delete it")
        labels.delete_queue(database, found.name)
    print(f"deleted: {queue}")
