"""Training of text classifiers and probes for the policy: cross-validated, calibrated, with a threshold for a wanted false-positive rate.

In: LabelledTexts (and vectors, for a probe). Out: a file of tensors with what it was trained on in its header, and the
measurements by cross-validation. The file holds no text. Deterministic in the rows and the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from demeanor.core.errors import UsageError
from demeanor.core.files import origin
from demeanor.core.long_text import Folded
from demeanor.evaluation.labelled_texts import LabelledText, group_numbers
from demeanor.evaluation.statistics import Auroc, Floats, ranking
from demeanor.layers.policy.classifier import FORMAT, hashed, meant, normal, windows, write_tensors
from demeanor.layers.policy.concepts import WEIGHT, digest
from demeanor.layers.policy.concepts import size as concepts_size
from demeanor.layers.policy.model_scores import PROBE_FORMAT

FOLDS = 5
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)
MOST_WINDOWS = 3  # of one long text, the most suspect ones, that a second round trains on
LEAST = 20  # rows of each kind
Show = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LabelFit:
    """What cross-validation says of one label: ranking, threshold, and the rates there."""

    label: str
    positives: int
    negatives: int
    ranking: Auroc
    threshold: float
    found: float  # share of positives at the threshold
    false: float  # share of negatives at it
    penalty: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The measurements of a training and the file that it wrote."""

    path: Path
    fits: tuple[LabelFit, ...]


def train(
    rows: Sequence[LabelledText],
    labels: Sequence[str],
    out: Path,
    *,
    window: int = 2000,
    bits: int = 16,
    false_positives: float = 0.01,
    seed: int = 0,
    concepts: bool = False,
    show: Show = lambda what, done, of: None,
) -> Trained:
    """Train one classifier with a head for each label and write it; `concepts`: it reads meanings of words too."""
    rows = distinct(rows)
    show("reading n-grams", 0, 1)
    folded = [Folded(row.text).text for row in rows]
    rarity_D = _rarity(folded, bits)
    fits, heads = list[LabelFit](), list[tuple[Floats, float, tuple[float, float]]]()
    for i, label in enumerate(labels):
        fit, head = _head(rows, folded, label, rarity_D, window, false_positives, seed, concepts)
        fits.append(fit)
        heads.append(head)
        show("fitting", i + 1, len(labels))
    tensors: dict[str, npt.NDArray[Any]] = {
        "weights": np.stack([w[: 2**bits] for w, _, _ in heads]).astype(np.float16),
        "bias": np.array([b for _, b, _ in heads], np.float32),
        "rarity": rarity_D.astype(np.float16),
        "platt": np.array([p for *_, p in heads], np.float32),
    }
    if concepts:
        tensors["concepts"] = np.stack([w[2**bits :] for w, _, _ in heads]).astype(np.float16)
    header = {
        "format": FORMAT,
        "labels": list(labels),
        **({"concepts": digest()} if concepts else {}),
        "window": window,
        "thresholds": [fit.threshold for fit in fits],
        "about": about(rows, fits, seed),
    }
    write_tensors(out, tensors, header)
    return Trained(out, tuple(fits))


def about(rows: Sequence[LabelledText], fits: Sequence[LabelFit], seed: int) -> dict[str, Any]:
    """Return what a file was trained on and how well it did in cross-validation; no text."""
    total = hashlib.sha256()
    for row in rows:
        total.update(
            row.text.encode("utf-8", "surrogatepass") + b"\0" + ",".join(sorted(row.labels)).encode() + b"\1"
        )
    sources: dict[str, int] = {}
    for row in rows:
        sources[row.source] = sources.get(row.source, 0) + 1
    measured = {
        fit.label: {
            "auroc": round(fit.ranking.value, 4),
            "tpr": round(fit.found, 4),
            "fpr": round(fit.false, 4),
        }
        for fit in fits
    }
    made = {key: value for key, value in origin().items() if key in ("git", "versions", "python")}
    return {
        "rows": len(rows),
        "sources": sources,
        "rows_sha256": total.hexdigest(),
        "seed": seed,
        "cross_validation": measured,
        **made,
    }


def distinct(rows: Sequence[LabelledText]) -> list[LabelledText]:
    """Return each text once, in an order that does not depend on the files'."""
    found = {row.text: row for row in rows}
    return [found[text] for text in sorted(found)]


def _targets(rows: Sequence[LabelledText], label: str) -> npt.NDArray[np.float64]:
    y_N = np.array([float(label in row.labels) for row in rows])
    if min(y_N.sum(), len(y_N) - y_N.sum()) < LEAST:
        known = ", ".join(sorted({x for row in rows for x in row.labels})) or "none"
        raise UsageError(
            f"--label {label}: {int(y_N.sum())} texts have it and {int(len(y_N) - y_N.sum())} do not; wanted {LEAST} of each. "
            f"Labels in the rows: {known}"
        )
    return y_N


def _folds(rows: Sequence[LabelledText], seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each row; rows of one group share it."""
    return np.array(
        [
            int.from_bytes(
                hashlib.sha256(f"{seed} {row.group}".encode("utf-8", "surrogatepass")).digest()[:4]
            )
            % FOLDS
            for row in rows
        ]
    )


# ---- a classifier ----


def _rarity(texts: Sequence[str], bits: int) -> Floats:
    counts_D = np.zeros(2**bits)
    for text in texts:
        counts_D[np.unique(hashed(normal(text), bits))] += 1
    rarity = np.log((1 + len(texts)) / (1 + counts_D)) + 1
    return np.asarray(rarity.astype(np.float16).astype(np.float64))


def _meanings(texts: Sequence[str]) -> scipy.sparse.csr_matrix:
    """Return a row of concepts.py's features for each text."""
    columns = [meant(text) for text in texts]
    ends = np.cumsum([0, *map(len, columns)])
    every = np.concatenate(columns)
    return scipy.sparse.csr_matrix((np.full(len(every), WEIGHT), every, ends), (len(texts), concepts_size()))


def _matrix(texts: Sequence[str], rarity_D: Floats) -> scipy.sparse.csr_matrix:
    """Return rows of unit length, one for each text."""
    bits = len(rarity_D).bit_length() - 1
    columns, values, ends = list[Any](), list[Any](), [0]
    for text in texts:
        buckets = hashed(normal(text), bits)
        rarity = rarity_D[buckets]
        columns.append(buckets)
        values.append(rarity / (np.sqrt(rarity @ rarity) or 1.0))
        ends.append(ends[-1] + len(buckets))
    return scipy.sparse.csr_matrix(
        (np.concatenate(values), np.concatenate(columns), np.array(ends)), (len(texts), len(rarity_D))
    )


def _head(
    rows: Sequence[LabelledText],
    folded: Sequence[str],
    label: str,
    rarity_D: Floats,
    window: int,
    false_positives: float,
    seed: int,
    concepts: bool,
) -> tuple[LabelFit, tuple[Floats, float, tuple[float, float]]]:
    """Fit one label: the penalty by cross-validation, a second round on the most suspect windows of long texts, calibration."""
    y_N, folds_N = _targets(rows, label), _folds(rows, seed)
    weights_N = np.array([row.weight for row in rows])
    cut = [[text[a:b] for a, b in windows(text, window)] for text in folded]
    pieces, owner_P = (
        [piece for parts in cut for piece in parts],
        np.repeat(np.arange(len(cut)), [len(p) for p in cut]),
    )
    X_P, X_N = _matrix(pieces, rarity_D), _matrix(folded, rarity_D)
    if concepts:
        X_P, X_N = (
            scipy.sparse.hstack([X, _meanings(texts)]).tocsr() for X, texts in ((X_P, pieces), (X_N, folded))
        )

    def held_out(penalty: float, chosen_P: npt.NDArray[np.bool_] | None) -> Floats:
        scores_N = np.zeros(len(rows))
        for fold in range(FOLDS):
            inside = folds_N != fold
            if chosen_P is None:
                w, b = logistic(X_N[inside], y_N[inside], penalty, weights_N[inside])
            else:
                pick = chosen_P & inside[owner_P]
                w, b = logistic(X_P[pick], y_N[owner_P[pick]], penalty, weights_N[owner_P[pick]])
            best = np.full(len(rows), -np.inf)
            np.maximum.at(best, owner_P, X_P @ w + b)
            scores_N[~inside] = best[~inside]
        return scores_N

    ranked = {penalty: ranking(held_out(penalty, None), y_N).value for penalty in PENALTIES}
    penalty = max(ranked, key=lambda each: ranked[each])
    chosen_P = None
    if len(pieces) > len(rows):
        w, b = logistic(X_N, y_N, penalty, weights_N)
        chosen_P = _suspect(X_P @ w + b, owner_P, y_N)
    scores_N = held_out(penalty, chosen_P)
    a, c = platt(scores_N, y_N, weights_N)
    if chosen_P is None:
        w, b = logistic(X_N, y_N, penalty, weights_N)
    else:
        w, b = logistic(X_P[chosen_P], y_N[owner_P[chosen_P]], penalty, weights_N[owner_P[chosen_P]])
    p_N = 1 / (1 + np.exp(-(a * scores_N + c)))
    fit = _measured(label, p_N, y_N, [row.group for row in rows], false_positives, penalty)
    return fit, (w, b, (a, c))


def _suspect(scores_P: Floats, owner_P: npt.NDArray[np.int64], y_N: Floats) -> npt.NDArray[np.bool_]:
    """Return which windows train: of a text with the label the most suspect one, of others up to three."""
    chosen_P = np.zeros(len(scores_P), bool)
    order = np.lexsort((-scores_P, owner_P))
    seen: dict[int, int] = {}
    for p in order:
        text = int(owner_P[p])
        seen[text] = seen.get(text, 0) + 1
        chosen_P[p] = seen[text] <= (1 if y_N[text] else MOST_WINDOWS)
    return chosen_P


def logistic(X: Any, y_N: Floats, penalty: float, weights_N: Floats) -> tuple[Floats, float]:
    """Return weights and bias that minimise weighted log-loss plus penalty/2 ||w||^2 (L-BFGS)."""
    sign_N = 2 * y_N - 1

    def loss(v: Floats) -> tuple[float, Floats]:
        margin_N = sign_N * (X @ v[:-1] + v[-1])
        g_N = -weights_N * sign_N / (1 + np.exp(np.clip(margin_N, -500, 500)))
        value = float(weights_N @ np.logaddexp(0, -margin_N)) + penalty / 2 * float(v[:-1] @ v[:-1])
        return value, np.append(X.T @ g_N + penalty * v[:-1], g_N.sum())

    found = scipy.optimize.minimize(
        loss, np.zeros(X.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 300}
    )
    return np.asarray(found.x[:-1]), float(found.x[-1])


def platt(scores_N: Floats, y_N: Floats, weights_N: Floats) -> tuple[float, float]:
    """Return a, b of sigmoid(a s + b) fitted to held-out scores, with Platt's smoothed targets. Source: Platt 1999."""
    high, low = (y_N.sum() + 1) / (y_N.sum() + 2), 1 / (len(y_N) - y_N.sum() + 2)
    target_N = np.where(y_N > 0, high, low)

    def loss(v: Floats) -> tuple[float, Floats]:
        z_N = v[0] * scores_N + v[1]
        d_N = weights_N * (1 / (1 + np.exp(-np.clip(z_N, -500, 500))) - target_N)
        value = float(weights_N @ (np.logaddexp(0, z_N) - target_N * z_N))
        return value, np.array([d_N @ scores_N, d_N.sum()])

    found = scipy.optimize.minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])


def _measured(
    label: str, p_N: Floats, y_N: Floats, groups: Sequence[str], false_positives: float, penalty: float
) -> LabelFit:
    threshold = threshold_for(p_N[y_N == 0], false_positives)
    return LabelFit(
        label,
        int(y_N.sum()),
        int(len(y_N) - y_N.sum()),
        ranking(p_N, y_N, np.array(group_numbers(groups))),
        threshold,
        float((p_N[y_N == 1] >= threshold).mean()),
        float((p_N[y_N == 0] >= threshold).mean()),
        penalty,
    )


def threshold_for(negatives_N: Floats, rate: float) -> float:
    """Return the least threshold in (0, 1) that at most a share `rate` of negatives reaches."""
    ranked = np.sort(negatives_N)[::-1]
    allowed = int(rate * len(ranked))
    edge = float(ranked[allowed]) if allowed < len(ranked) else 0.0
    return float(min(0.9999, max(0.0001, edge + 1e-4)))


# ---- a probe ----


def train_probe(
    rows: Sequence[LabelledText],
    vectors_ND: Floats,
    label: str,
    stage_key: str,
    out: Path,
    *,
    false_positives: float = 0.01,
    seed: int = 0,
) -> Trained:
    """Train a linear probe on vectors of the same (distinct) rows and write it."""
    y_N, folds_N = _targets(rows, label), _folds(rows, seed)
    weights_N = np.array([row.weight for row in rows])
    scale = float(vectors_ND.std()) or 1.0
    X_ND = vectors_ND / scale

    def held_out(penalty: float) -> Floats:
        scores_N = np.zeros(len(rows))
        for fold in range(FOLDS):
            inside = folds_N != fold
            w, b = logistic(X_ND[inside], y_N[inside], penalty, weights_N[inside])
            scores_N[~inside] = X_ND[~inside] @ w + b
        return scores_N

    scored: Mapping[float, Floats] = {penalty: held_out(penalty) for penalty in (*PENALTIES, 3.0, 10.0, 30.0)}
    penalty = max(scored, key=lambda each: ranking(scored[each], y_N).value)
    a, c = platt(scored[penalty], y_N, weights_N)
    w, b = logistic(X_ND, y_N, penalty, weights_N)
    p_N = 1 / (1 + np.exp(-(a * scored[penalty] + c)))
    fit = _measured(label, p_N, y_N, [row.group for row in rows], false_positives, penalty)
    tensors = {
        "weights": (w / scale).astype(np.float32),
        "bias": np.array([b], np.float32),
        "platt": np.array([a, c], np.float32),
    }
    header = {
        "format": PROBE_FORMAT,
        "label": label,
        "stage_key": stage_key,
        "threshold": fit.threshold,
        "about": about(rows, [fit], seed),
    }
    write_tensors(out, tensors, header)
    return Trained(out, (fit,))
