"""Classifiers and probes: what they learn, what their files say, and that equal rows give equal bits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from demeanor.core.errors import UsageError
from demeanor.evaluation import labelled_texts, policy_texts, policy_training
from demeanor.evaluation.labelled_texts import LabelledText
from demeanor.evaluation.statistics import ranking
from demeanor.layers.policy.classifier import load_classifier
from demeanor.layers.policy.model_scores import load_probe
from tests.conftest import each

HOT = ("fire", "flame", "burning", "ember", "blaze")
COLD = ("ice", "snow", "frost", "glacier", "sleet")


def rows(count: int = 120, seed: int = 0) -> list[LabelledText]:
    """Texts about hot things (labelled) and cold ones, in sentences of common words."""
    rng, made = random.Random(seed), []
    for n in range(count):
        words = HOT if n % 2 else COLD
        text = f"The {rng.choice(words)} lay on table {n}, and the {rng.choice(words)} was seen by {rng.choice(('Ana', 'Tom'))}."
        made.append(LabelledText(text, frozenset({"hot"} if n % 2 else ()), f"g{n // 4}", "made"))
    return made


def test_a_classifier_learns_and_its_probabilities_are_calibrated(tmp_path: Path) -> None:
    made = policy_training.train(rows(200), ["hot"], tmp_path / "c.safetensors", bits=12)
    (fit,) = made.fits
    assert fit.ranking.value > 0.99
    assert (fit.positives, fit.negatives) == (100, 100)
    found = load_classifier(made.path)
    p_hot, p_cold = (float(found.parts(f"A {word} on the hill.")[1].max()) for word in ("blaze", "glacier"))
    assert p_hot > 0.5 > p_cold
    fresh = rows(100, seed=1)
    p_N = np.array([found.parts(row.text)[1].max() for row in fresh])
    y_N = np.array([bool(row.labels) for row in fresh])
    assert ranking(p_N, y_N).value > 0.99
    assert abs(p_N.mean() - 0.5) < 0.1, "as many texts as probability says"


def test_the_order_of_the_rows_does_not_matter_and_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for path, some in zip(paths, (rows(), rows()[::-1])):
        policy_training.train(some, ["hot"], path, bits=10)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_one_file_may_have_several_labels(tmp_path: Path) -> None:
    both = [LabelledText(r.text, r.labels or frozenset({"cold"}), r.group, r.source) for r in rows()]
    made = policy_training.train(both, ["cold", "hot"], tmp_path / "c.safetensors", bits=10)
    found = load_classifier(made.path)
    (p_L,) = found.parts("The blaze, the blaze, the flame.")[1]
    assert p_L[found.column("hot")] > p_L[found.column("cold")]


@pytest.mark.parametrize(
    ("some", "label", "why"),
    [(rows(20), "hot", "wanted 20 of each"), (rows(), "warm", "Labels in the rows: hot")],
)
def test_too_few_rows_are_a_mistake_that_says_so(
    some: list[LabelledText], label: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=why):
        policy_training.train(some, [label], tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


def test_a_long_text_is_judged_by_its_most_suspect_part(tmp_path: Path) -> None:
    filler = "Nothing of note happened in the town that day. " * 20
    long = [
        LabelledText(filler + row.text + " " + filler, row.labels, row.group, row.source) for row in rows(80)
    ]
    made = policy_training.train([*rows(), *long], ["hot"], tmp_path / "c.safetensors", bits=12, window=120)
    found = load_classifier(made.path)
    spans, p_W1 = found.parts(filler + "The blaze and the flame were seen by Ana. " + filler)
    best = spans[int(p_W1[:, 0].argmax())]
    assert best[0] <= len(filler) < best[1]
    assert made.fits[0].ranking.value > 0.95


def test_a_probe_learns_from_vectors(tmp_path: Path) -> None:
    rng, some = np.random.default_rng(0), policy_training.distinct(rows(200))
    vectors_ND = rng.normal(size=(len(some), 8)) / 10
    vectors_ND[:, 3] += [0.3 if row.labels else -0.3 for row in some]
    made = policy_training.train_probe(some, vectors_ND, "hot", "key", tmp_path / "p.safetensors")
    probe = load_probe(made.path)
    assert made.fits[0].ranking.value > 0.95
    assert (probe.stage_key, int(np.abs(probe.weights_D).argmax())) == ("key", 3)
    assert probe.probability(vectors_ND[[bool(r.labels) for r in some]].mean(0).astype(np.float32)) > 0.9


def test_a_threshold_lets_no_more_negatives_through_than_wanted() -> None:
    p_N = np.linspace(0, 0.99, 100)
    for rate in each((0.0, 0.01, 0.05, 0.5)):
        assert (p_N >= policy_training.threshold_for(p_N, rate)).mean() <= rate


# ---- AUROC ----


def test_the_auroc_is_the_share_of_pairs_in_order_and_its_interval_is_delongs() -> None:
    scores_N, y_N = np.array([1.0, 2, 3, 3, 5, 0, 1, 2, 3, 4]), np.array([1] * 5 + [0] * 5)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores_N[:5] for b in scores_N[5:]]
    found = ranking(scores_N, y_N)
    assert found.value == pytest.approx(np.mean(pairs))
    grid = np.array(pairs).reshape(5, 5)
    variance = grid.mean(1).var(ddof=1) / 5 + grid.mean(0).var(ddof=1) / 5
    odds = np.log(found.value / (1 - found.value))
    half = 1.96 * np.sqrt(variance * 0.9 / 0.8 * 0.8 / 0.9) / (found.value * (1 - found.value))
    # G/(G-1) over all rows instead of n/(n-1) in each group: a little narrower for five
    assert found.low == pytest.approx(1 / (1 + np.exp(-(odds - half))), abs=0.03)


def test_the_interval_of_an_auroc_covers_and_is_wider_in_clusters() -> None:
    rng, covered = np.random.default_rng(1), 0
    for _ in range(200):
        y_N = rng.random(120) < 0.4
        found = ranking(rng.normal(size=120) + y_N, y_N)
        covered += found.low <= 0.7602 <= found.high
    assert covered >= 180
    y_N = np.repeat(rng.random(30) < 0.5, 8)
    scores_N = np.repeat(rng.normal(size=30), 8) + y_N
    alone, together = ranking(scores_N, y_N), ranking(scores_N, y_N, np.repeat(np.arange(30), 8))
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_a_ranking_without_a_mistake_is_no_certainty() -> None:
    found = ranking(np.arange(40.0), np.arange(40) >= 20)
    assert found.value == 1.0
    assert 0.8 < found.low < 0.9


# ---- texts ----


def test_the_shipped_texts_are_distinct_and_no_attack_is_among_the_harmless() -> None:
    attacks, harmless = policy_texts.attacks(3), [*policy_texts.harmless(3), *policy_texts.triggers()]
    assert len(policy_texts.triggers()) >= 300
    assert all("{" not in row.text for row in each([*attacks, *harmless]))
    assert not {row.text for row in attacks} & {row.text for row in harmless}
    assert policy_texts.attacks(3) == attacks


@pytest.mark.parametrize(
    ("name", "text", "labels"),
    [
        ("a.jsonl", '{"text": "x", "label": "bad", "stage": "output"}', {"bad"}),
        ("a.jsonl", '{"text": "x", "label": ["a", "b"]}', {"a", "b"}),
        ("a.jsonl", '{"text": "x", "label": 1}', {"harm"}),
        ("a.jsonl", '{"text": "x", "label": "benign"}', set()),
        ("a.jsonl", '{"text": "x", "label": null}', set()),
        ("a.jsonl", '{"prompt": "x", "S": 0, "H": 1, "V": 0}', {"hate", "harm"}),
        ("a.csv", "prompt,label,type\nx,unsafe,t\n", {"harmful-request", "unsafe"}),
        ("a.txt", "# a comment\nx\n", set()),
        (
            "a.json",
            '[{"full_text": "x", "spans": [{"entity_type": "US_SSN"}, {"entity_type": "CITY"}], "template_id": 3}]',
            {"ssn"},
        ),
        (
            "a.json",
            '[{"user_input": "x", "injection_variant": "v", "risk_category": "logic-violating"}]',
            {"injection", "logic-violating"},
        ),
    ],
)
def test_every_shape_of_labelled_texts_is_read(
    name: str, text: str, labels: set[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    (row,) = labelled_texts.read([tmp_path / name])
    assert (row.text, set(row.labels)) == ("x", labels)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"words": "x"}', "its first row has the fields words"),
        ('{"text": "x", "label": "a"}\n{"text": 3, "label": "a"}', ":2: text: got int"),
        ('{"text": "x", "label": "a", "stage": "outputs"}', "stage: got 'outputs'"),
        ('{"text": "x", "label": "a"}\nno JSON', ":2: "),
    ],
)
def test_a_row_that_is_wrong_is_named(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=why):
        labelled_texts.read([path])


def test_a_text_is_always_in_the_same_half() -> None:
    halves = [row.half for row in policy_texts.triggers()]
    assert halves == [row.half for row in policy_texts.triggers()]
    assert 0.4 < halves.count("tune") / len(halves) < 0.6
