"""The embedded world: a made-up ferry harbour, all of it generated from fixed seeds, so that the truth is known.

`lexicon` is the truth; `corpus`, `instructions`, `preferences` say it to a model; `behaviour` asks about it; `notices` holds what
only today knows. `catalog` names everything for build.py, `files` writes what a stack of this world needs.
"""
