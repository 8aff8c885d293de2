from demeanor.core import registry
from demeanor.core.types import Completion, Item, Score


def score_item(item: Item, completion: Completion) -> Score:
    """Score one completion with the item's scorer."""
    module = registry.entry("demeanor.evaluation.scorers", item.scorer)
    score: Score = module.score(module.Spec.model_validate(dict(item.target)), completion)
    return score


def scored_from_text(item: Item) -> bool:
    """Can an answer to this item be scored from what a row keeps: its text, and which layer refused?"""
    return not getattr(registry.entry("demeanor.evaluation.scorers", item.scorer), "READS_EVENTS", False)
