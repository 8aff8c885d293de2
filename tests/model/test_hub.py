"""A hub id that gives no weights is one error that says why: no network, no such model, no permission."""

from __future__ import annotations

import httpx
import huggingface_hub
import pytest
from huggingface_hub import errors

from demeanor.core.errors import CheckpointError
from demeanor.model import hub

ANSWER = httpx.Response(401, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.LocalEntryNotFoundError("x"), "the hub cannot be reached. Check the network"),
        (errors.OfflineModeIsEnabled("x"), "the hub cannot be reached"),
        (httpx.ConnectError("x"), "the hub cannot be reached"),
        (errors.RepositoryNotFoundError("x", response=ANSWER), "no public model of this name"),
        (errors.GatedRepoError("x", response=ANSWER), "accept them on its page"),
        (errors.RevisionNotFoundError("x", response=ANSWER), "no revision 'v2'"),
        (errors.HFValidationError("x"), r"no id of the hub \(owner/name\)"),
    ],
)
def test_a_hub_id_without_weights_says_why(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, **_: object) -> str:
        assert name == "owner/name"
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(CheckpointError, match=f"^owner/name@v2: .*{said}"):
        hub.snapshot("owner/name@v2")
