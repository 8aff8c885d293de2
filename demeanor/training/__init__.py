"""Training: a stack's pipeline, one stage, the offline loop, optimizer, checkpoints, metrics, run folders."""
