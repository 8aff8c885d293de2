"""What may stand behind the `?` of a kept response's addresses: how much of a list is shown, from where, in which order.

In: a request's query. Out: a checked Asked or Page; everything else there is refused by name, as in a body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import Field

from demeanor.core.errors import RequestError
from demeanor.server.bodies import Body, never, only
from demeanor.server.parse import checked

MAX_PAGE = 100


class Asked(Body):
    """The query of GET /v1/responses/{id}."""

    stream: Annotated[Any, only("false", because="a kept response is whole")] = None
    starting_after: Annotated[Any, never("a kept response is whole")] = None
    include_obfuscation: Annotated[Any, only("false", because="events are not padded")] = None
    include: Annotated[Any, never("log-probabilities are there if they were asked for")] = None


class Page(Body):
    """The query of GET /v1/responses/{id}/input_items; the latest item is first unless `order` is asc."""

    limit: int = Field(20, ge=1, le=MAX_PAGE, strict=False)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = Field(None, min_length=1, max_length=256)
    include: Annotated[Any, never("items are shown whole")] = None

    def of(self, items: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
        """This page of items that are given oldest first, and whether more follow. Raises RequestError if `after` is none of them."""
        ordered = list(items) if self.order == "asc" else list(reversed(items))
        ids = [item["id"] for item in ordered]
        if self.after is not None and self.after not in ids:
            raise RequestError(
                f"after: no item of this response has the id '{self.after}'.",
                param="after",
                code="invalid_value",
            )
        start = 0 if self.after is None else ids.index(self.after) + 1
        return ordered[start : start + self.limit], start + self.limit < len(ordered)


Q = TypeVar("Q", bound=Body)


def paged(request: Request, kind: type[Q]) -> Q:
    """A request's query, checked. Raises RequestError (400) that names the parameter."""
    return checked({name.removesuffix("[]"): value for name, value in request.query_params.items()}, kind)
