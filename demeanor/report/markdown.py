"""The same tables as Markdown, for a README, an issue or a release note. In: a result. Out: text."""

from __future__ import annotations

from collections.abc import Sequence

from demeanor.report import trust, words
from demeanor.report.shape import Comparison, Result


def markdown(result: Result) -> str:
    """Headline, ladder, losses, every comparison with its interval, refusals, cost and method."""
    labels = words.labels_of(result)
    rungs = words.ladder_of(result)
    parts = [f"# {safe(words.headline(result))}"]
    parts += [f"> {safe(warning)}" for warning in result["caveats"]]
    parts += [
        "## What each layer did",
        table(
            ["share right, %", *(v["label"] for v in rungs), "items (clusters)", "smallest detectable"],
            [
                [
                    words.axis_name(a["name"]),
                    *(_cell(result, a["name"], n) for n in range(len(rungs))),
                    f"{a['items']} ({a['clusters']})",
                    words.percent(a["detectable"]),
                ]
                for a in result["axes"]
            ],
        ),
        "Change from the column before in points, where its interval excludes zero; bold: also after Holm's correction.",
    ]
    lost = [f"* {safe(words.cost_sentence(cost))}" for cost in result["regressions"]]
    if result["steps"]:
        parts += ["## What it cost", "\n".join(lost) or words.no_costs(result)]
    if result["steps"]:
        parts += ["## Each step", _comparisons(result["steps"], "+")]
    if result["without"]:
        parts += ["## The whole against the whole without one layer", _comparisons(result["without"], "")]
    if result["external"]:
        parts += [
            "## Beside other assistants",
            "\n".join(f"* {safe(words.beside_sentence(c))}" for c in result["external"]),
            table(
                ["share right, %", "the whole stack", *(c["name"] for c in result["external"])],
                [
                    [
                        words.axis_name(a["name"]),
                        *(
                            words.mean_interval(a["means"][i])
                            for i in (
                                result["external"][0]["after"],
                                *(c["before"] for c in result["external"]),
                            )
                        ),
                    ]
                    for a in result["axes"]
                ],
            ),
            _comparisons(result["external"], "against "),
        ]
    if result["refusals"]:
        parts += [
            "## Refusals",
            table(
                ["", "safe answered", "unsafe refused", "Youden's J", "d'", "criterion", "unsafe refused by"],
                [
                    [
                        labels[r["variant"]],
                        words.mean_interval(r["safe_compliance"]),
                        words.mean_interval(r["unsafe_refusal"]),
                        words.rate_interval(r["youden_j"]),
                        words.rate_interval(r["d_prime"]),
                        words.rate_interval(r["criterion"]),
                        ", ".join(f"{who} {count}" for who, count in r["who_unsafe"].items()),
                    ]
                    for r in result["refusals"]
                ],
            ),
        ]
    if result["confidences"]:
        parts += ["## Does it know what it knows", table(trust.CONFIDENCE, trust.confidence_rows(result))]
    if result["robustness"]:
        parts += [
            "## The same question in other words",
            table(trust.STEADINESS, trust.steadiness_rows(result)),
        ]
    parts += (
        []
        if not result["cost"]
        else [
            "## Time and tokens",
            table(
                ["", "ms", "95th percentile", "tokens read", "tokens written", "ms by layer"],
                [
                    [
                        labels[s["variant"]],
                        f"{s['mean_ms']:.3g}",
                        f"{s['p95_ms']:.3g}",
                        f"{s['prompt_tokens']:.0f}",
                        f"{s['completion_tokens']:.1f}",
                        ", ".join(f"{name} {ms:.2g}" for name, ms in s["layer_ms"].items()),
                    ]
                    for s in result["cost"]
                ],
            ),
        ]
    )
    parts += [
        "## How this was measured",
        "\n".join(f"* {line}" for line in words.method(result)),
        "\n".join(
            f"* {k}: {safe(str(v))}"
            for k, v in {"suite hash": result["suite_hash"], **result["settings"]}.items()
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table, first column to the left and the others to the right; pipes and markup in cells are escaped."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(
        f"| {' | '.join(cell if line is lines[1] else safe(cell) for cell in line)} |" for line in lines
    )


def _cell(result: Result, axis: str, rung: int) -> str:
    variant = words.ladder_of(result)[rung]["id"]
    mean = words.percent(next(a for a in result["axes"] if a["name"] == axis)["means"][variant]["value"])
    delta = (
        next((d for d in result["steps"][rung - 1]["deltas"] if d["axis"] == axis), None) if rung else None
    )
    if delta is None or not delta["shown"]:
        return mean
    change = words.points(delta["value"])
    return f"{mean} (**{change}**)" if delta["verdict"] in ("better", "worse") else f"{mean} ({change})"


def _comparisons(comparisons: Sequence[Comparison], sign: str) -> str:
    rows = [[f"{sign}{c['name']}", *words.comparison_row(d)] for c in comparisons for d in c["deltas"]]
    return table(words.COMPARISON_COLUMNS, rows)


def safe(text: str) -> str:
    """Text of a model or a file in Markdown: no tag, no cell border, one line."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
