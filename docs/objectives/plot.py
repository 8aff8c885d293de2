"""Draw every objective as it is: loss (left) and its slope (right), computed by the objective itself. `python docs/objectives/plot.py`

Pairs: against the gap h of log-ratios, chosen at +h/2 and rejected at -h/2, four tokens each; labelled rows: against a completion's
log-ratio, good and bad; imitation: against a token's log-prob; reward models: against the gap of rewards; online objectives: against
the log-ratio to the sampler of a completion of one token, advantage 1 and -1. Default settings.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from demeanor.core import registry
from demeanor.data.trees import Branch, Tree, collate
from demeanor.model.tensors import Outputs

PACKAGE, HERE = "demeanor.objectives", Path(__file__).parent
SETTINGS: dict[str, dict[str, Any]] = {
    "mixture": {"parts": [{"kind": "dpo", "weight": 0.8}, {"kind": "nca", "weight": 0.2}]}
}
RANGE: dict[str, float] = {
    "sppo": 20,
    "ipo": 60,
    "dpop": 4,
    "simpo": 12,
    "alphapo": 8,
    "orpo": 8,
    "ln_dpo": 12,
    "reward": 6,
    "gspo": 0.002,
    "luspo": 0.002,
}
TOKENS, POINTS, BASE = 4, 121, -1.5
W, H, LEFT, RIGHT, TOP, BOTTOM = 360, 230, 54, 14, 26, 40
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}.axis{stroke:#999;stroke-width:1}.grid{stroke:#ddd}"
    ".a{stroke:#1668b0;fill:none;stroke-width:2}.b{stroke:#c2410c;fill:none;stroke-width:2}"
    "@media (prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}.a{stroke:#6cb6ff}.b{stroke:#ff9a5c}}"
)
LINES: dict[str, tuple[tuple[str, str, int | None], ...]] = {
    "unpaired": (("good", "a", 1), ("bad", "b", 0)),
    "prompts": (("A = 1", "a", 1), ("A = -1", "b", -1)),
}
Line = tuple[str, str, list[float]]
"""Label, class, values."""


def value(kind: str, x: float, label: int | None) -> tuple[float, float]:
    """Loss and slope in x of one row."""
    module = registry.entry(PACKAGE, kind)
    spec = module.Spec(**SETTINGS.get(kind, {}))
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    branch = Branch((3,) * TOKENS, (True,) * TOKENS)
    if module.READS == "rewards":
        batch = collate([Tree((1,), (branch, branch), (0, 1), labels=(1, 0))], read_last=True)
        outputs = Outputs(rewards_B=torch.stack([at / 2, -at / 2]))
    elif module.ONLINE is not None:
        nothing, advantage = torch.zeros(1, dtype=torch.float64), torch.full((1,), float(label or -1))
        batch = collate([Tree((1,), (Branch((3,), (True,)),))])._replace(
            sampled_C=nothing + BASE, advantage_C=advantage, value_C=nothing, return_C=nothing
        )
        outputs = Outputs(logprobs_C=at[None] + BASE, values_C=nothing)
    elif module.ROWS == "examples":
        batch = collate([Tree((1,), (Branch((3,), (True,)),))])
        outputs = Outputs(logprobs_C=at[None])
    else:
        both = module.ROWS == "preferences"
        tree = Tree(
            (1,),
            (branch, branch) if both else (branch,),
            (0, 1) if both else (0,),
            labels=() if both else (label or 0,),
        )
        sides = [at / 2, -at / 2] if both else [at]
        logprobs = torch.cat([(BASE + side / TOKENS).expand(TOKENS) for side in sides])
        reference = torch.full((len(sides) * TOKENS,), BASE, dtype=torch.float64)
        batch = collate([tree])._replace(reference_C=reference)
        outputs = Outputs(logprobs_C=logprobs, collision_C=torch.full_like(reference, BASE))
    loss = module.loss(spec, outputs, batch)
    mean = loss.total / loss.count
    (slope,) = torch.autograd.grad(mean, at)
    return float(mean.detach()), float(slope)


def axis(kind: str) -> tuple[float, float, str]:
    """Where x runs from and to, and what it is."""
    module = registry.entry(PACKAGE, kind)
    if module.ONLINE is not None:
        wide = RANGE.get(kind, 1.0)
        return -wide, wide, "log pi/sampler of a completion of one token (nats)"
    if module.ROWS == "examples":
        return -6.0, -0.01, "log p of a token (nats)"
    if module.ROWS == "unpaired":
        return -40.0, 40.0, "log pi/ref of a completion (nats)"
    if module.READS == "rewards":
        return -6.0, 6.0, f"{'C(safer) - C(worse)' if kind == 'cost' else 'r(chosen) - r(rejected)'}"
    wide = RANGE.get(kind, 40.0)
    if module.ROLES:
        return -wide, wide, "h: gap of log-ratios (nats)"
    wide = min(wide, -2 * BASE * TOKENS - 0.1)  # a log-prob is below 0
    return -wide, wide, "gap of log-probs (nats)"


def panel(title: str, xs: list[float], found: list[Line], label: str, shift: int) -> str:
    """One of the two pictures; values far beyond the middle are cut off at the frame."""
    everything = sorted(y for *_, ys in found for y in ys if math.isfinite(y))
    tenth = len(everything) // 10
    middle = everything[tenth : len(everything) - tenth]
    spread = max(middle) - min(middle) or 0.1
    low, high = max(everything[0], min(middle) - 2 * spread), min(everything[-1], max(middle) + 2 * spread)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    across, down = (W - LEFT - RIGHT) / (xs[-1] - xs[0]), (H - TOP - BOTTOM) / (high - low)
    px = lambda x: LEFT + (x - xs[0]) * across  # noqa: E731
    py = lambda y: TOP + (high - min(max(y, low), high)) * down  # noqa: E731
    parts = [f'<g transform="translate({shift},0)">']
    for i in range(5):
        x, y = xs[0] + (xs[-1] - xs[0]) * i / 4, low + (high - low) * i / 4
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{W - RIGHT}" y1="{py(y):.1f}" y2="{py(y):.1f}"/>'
            f'<text x="{LEFT - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>'
            f'<text x="{px(x):.1f}" y="{H - BOTTOM + 16}" text-anchor="middle">{x:.3g}</text>'
        )
    if low < 0 < high:
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{W - RIGHT}" y1="{py(0):.1f}" y2="{py(0):.1f}"/>')
    parts.append(f'<text x="{LEFT}" y="14">{title}</text>')
    for i, (name, style, ys) in enumerate(found):
        points = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in zip(xs, ys) if math.isfinite(y))
        parts.append(f'<polyline class="{style}" points="{points}"/>')
        if name:
            at = LEFT + 60 + 80 * i
            parts.append(
                f'<line class="{style}" x1="{at}" x2="{at + 24}" y1="10" y2="10"/><text x="{at + 30}" y="14">{name}</text>'
            )
    parts.append(f'<text x="{(LEFT + W - RIGHT) / 2}" y="{H - 6}" text-anchor="middle">{label}</text></g>')
    return "".join(parts)


def svg(kind: str) -> str:
    """The whole picture."""
    low, high, label = axis(kind)
    xs = [low + (high - low) * i / (POINTS - 1) for i in range(POINTS)]
    curves = [
        (name, style, [value(kind, x, which) for x in xs])
        for name, style, which in LINES.get(registry.entry(PACKAGE, kind).ROWS, (("", "a", None),))
    ]
    losses: list[Line] = [(name, style, [v for v, _ in pairs]) for name, style, pairs in curves]
    slopes: list[Line] = [(name, style, [s for _, s in pairs]) for name, style, pairs in curves]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * W} {H}" role="img"><title>{kind}: loss and slope</title>'
        f"<style>{STYLE}</style>{panel('loss', xs, losses, label, 0)}{panel('slope', xs, slopes, label, W)}</svg>\n"
    )


if __name__ == "__main__":
    for each in registry.known(PACKAGE):
        (HERE / f"{each}.svg").write_text(svg(each))
        print(f"wrote {each}.svg")
