"""Inference over a KV cache: decode loop, sampling, incremental detokenization, remote servers."""
