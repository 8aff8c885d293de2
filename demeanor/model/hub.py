"""A snapshot of a model on the Hugging Face hub, downloaded only because its id is named, or taken from the cache.

In: owner/name[@revision]. Out: its folder, or a CheckpointError that says why there is none: no network, no such model, no permission.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from demeanor.core.errors import CheckpointError

FILES = ("*.json", "*.safetensors", "*.jinja")


def snapshot(named: str) -> Path:
    """The folder of a hub id's weights, config and tokenizer. Raises CheckpointError."""
    from huggingface_hub import errors, snapshot_download

    name, _, revision = named.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(FILES)))
    except errors.HFValidationError:
        why = "no such folder or file here, and no id of the hub (owner/name)"
    except errors.GatedRepoError:
        why = "the hub gives it only to those who accepted its terms: accept them on its page, then run: hf auth login"
    except errors.RevisionNotFoundError:
        why = f"the hub has no revision '{revision}' of it"
    except errors.RepositoryNotFoundError:
        why = (
            "no such folder here, and the hub has no public model of this name (private ones: hf auth login)"
        )
    except (httpx.HTTPError, ConnectionError, errors.LocalEntryNotFoundError):
        why = (
            "no such folder here, it was not downloaded before, and the hub cannot be reached. Check the network, "
            "or name a folder of weights or a GGUF file as the base"
        )
    raise CheckpointError(f"{named}: {why}")
