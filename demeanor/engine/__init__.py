"""Tokens to tokens: a continuous-batching decode loop over the slots of one KV cache, sampling, and incremental text."""
