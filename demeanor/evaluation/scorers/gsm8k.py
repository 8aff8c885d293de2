"""`gsm8k`: the final number of a worked answer (Cobbe et al. 2021, arXiv 2110.14168).

In: the gold number and how to extract. Out: 1 or 0 with the extracted answer. `value`: the last number after the last `####`, else of the
whole answer, compared by value. The others compare text, as published scores did. `official`: first `#### NUMBER`, commas dropped.
`strict`: lm-eval's strict-match, which also drops `$` and a last full stop. `flexible`: lm-eval's flexible-extract, the last number.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from demeanor.core import registry
from demeanor.core.types import Completion, Score
from demeanor.evaluation.scorers._words import numbers

_MARKED = re.compile(r"#### (\-?[0-9\.\,]+)")
_ANYWHERE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_LAST_STOP = re.compile(r"\.$")
INVALID = "[invalid]"


class Spec(registry.Spec):
    """The gold number as the data writes it."""

    answer: str = Field(min_length=1, description="what stands after #### in the gold solution")
    extract: Literal["value", "official", "strict", "flexible"] = "value"

    @model_validator(mode="after")
    def _a_number(self) -> Spec:
        if len(numbers(self.answer)) != 1:
            raise ValueError(f"answer: got '{self.answer}', wanted one number, as after #### in the data")
        return self


def extracted(text: str, how: str) -> str:
    """The answer that a text gives, or `[invalid]`."""
    if how == "flexible":
        found = _ANYWHERE.findall(text)
        return next(part for part in found[-1] if part).strip() if found else INVALID
    marked = _MARKED.search(text)
    return marked.group(1).strip() if marked else INVALID


def _plain(text: str) -> str:
    """What lm-eval's regexes_to_ignore leave: no `,`, no `$`, nothing up to the last `#### `, no last full stop."""
    return _LAST_STOP.sub("", text.replace(",", "").replace("$", "").rpartition("#### ")[2]).lower()


def score(target: Spec, completion: Completion) -> Score:
    """1.0 if the extracted number is the gold one."""
    if target.extract == "value":
        read = numbers(completion.text.rpartition("####")[2])
        last = str(read[-1]) if read else INVALID
        return Score(float(read[-1:] == numbers(target.answer)), last, f"wanted {target.answer}")
    found = extracted(completion.text, target.extract)
    if target.extract == "official":
        right = found != INVALID and found.replace(",", "") == target.answer.replace(",", "")
    else:
        right = _plain(found) == _plain(target.answer)
    return Score(float(right), found, f"wanted {target.answer}")
