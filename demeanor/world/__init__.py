"""The embedded world: a fictional ferry harbour, generated from fixed seeds, so that the truth is known.

`lexicon` holds the facts; `corpus`, `instructions` and `preferences` are training data; `behaviour` is the
suite; `contexts` holds the notices of today; `catalog` lists all of it by name.
"""
