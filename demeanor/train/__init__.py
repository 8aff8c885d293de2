"""Batches to weights: the offline loop, optimiser, checkpoint, ledger, lineage, and one stage from parent to finished folder."""
