"""Indexes of a stack's retrieval layers: which folder is searched how, by which encoder, and where that is kept.

In: a folder and a retrieval layer's `search`. Out: its search function, or a new index with what had to be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from demeanor.core.addresses import shown
from demeanor.core.errors import UsageError
from demeanor.core.files import private_cache
from demeanor.core.types import Search
from demeanor.layers.prompt import SelectSpec
from demeanor.layers.retrieval import SearchSpec
from demeanor.layers.retrieval import Spec as RetrievalSpec
from demeanor.model.text_encoder import load_encoder
from demeanor.retrieval import documents, formats, index, postgres_index, similar, vectors, web
from demeanor.stack.stack import Stack

__all__ = ["RetrievalSpec", "SearchSpec", "web"]  # what callers of this file pass to it

SMALL = 1 << 20  # bytes; a smaller folder is indexed in memory, within a second


def changed(settings: SearchSpec, values: dict[str, object]) -> SearchSpec:
    """Return a search with some settings changed; raises UsageError that says what is wrong."""
    try:
        return SearchSpec.model_validate({**settings.model_dump(), **values})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"search{'.' * bool(where)}{where}: {first['msg']}") from None


def layers_of(stack: Stack) -> list[tuple[str, Path, SearchSpec]]:
    """Return the name, the folder and the search of every retrieval layer."""
    specs = [(layer.name, layer.spec) for layer in stack.layers]
    return [
        (name, stack.root / spec.index, spec.search or SearchSpec())
        for name, spec in specs
        if isinstance(spec, RetrievalSpec)
    ]


def readable(folder: Path) -> bool:
    """Whether a folder holds a document that an index would read."""
    return bool(documents.files_of(folder))


def packages_missing(folder: Path) -> str | None:
    """Return how many documents of a folder need packages that are not installed, and how to install them."""
    ends = [path.suffix.lower() for path in documents.files_of(folder).values()]
    absent = formats.unreadable_here(set(ends))
    if not absent:
        return None
    count = sum(end in absent for end in ends)
    return (
        f"{count} of {len(ends)} documents ({', '.join(sorted(absent))}) cannot be read yet: {formats.EXTRA}"
    )


def open_folder(
    folder: Path, settings: SearchSpec, root: Path, progress: vectors.Progress | None = None
) -> Search:
    """Return the search over a folder; its index is brought up to date first."""
    if settings.store is not None:
        return postgres_index.open_folder(settings.store, folder, ranking(settings, root), progress)
    return index.open_folder(folder, kept_in(folder, settings), ranking(settings, root), progress)


def build(
    folder: Path, settings: SearchSpec, root: Path, progress: vectors.Progress | None = None
) -> index.Counts:
    """Bring the index of a folder up to date; raises DataError that lists files which cannot be read."""
    if settings.store is not None:
        return postgres_index.build(settings.store, folder, ranking(settings, root), progress)
    return index.build(folder, kept_in(folder, settings), ranking(settings, root), progress)


def indexed(layer: RetrievalSpec, root: Path) -> str:
    """Return how much a retrieval layer finds in its folder, nothing encoded; raises DataError for files that it
    cannot read."""
    words = (layer.search or SearchSpec()).model_copy(update={"by": "words", "encoder": None, "store": None})
    counts = build(root / layer.index, words, root)
    return f"{counts.files} files, {counts.passages} passages"


def place_of(folder: Path, settings: SearchSpec) -> str:
    """Say where the index of a folder is kept."""
    if settings.store is not None:
        return f"kept in {shown(settings.store)}"
    kept = kept_in(folder, settings)
    return f"kept in {kept}" if kept else "so small that it is indexed in memory whenever it is used"


def kept_in(folder: Path, settings: SearchSpec) -> Path | None:
    """Return where the index and the vectors of a folder are kept; None: a small folder is indexed in memory."""
    size = sum(path.stat().st_size for path in documents.files_of(folder).values())
    return private_cache("indexes") if size > SMALL or settings.encoder else None


def ranking(settings: SearchSpec, root: Path) -> index.Ranking:
    """How an index is searched by a retrieval layer's settings; raises DemeanorError if its encoder cannot be had."""
    stop_words = settings.stop_words
    words = index.STOP_WORDS[stop_words] if isinstance(stop_words, str) else frozenset(stop_words)
    encoder = None if settings.encoder is None else encoder_of(settings.encoder, settings.key_env, root)
    return index.Ranking(words, settings.stemming, encoder, settings.by, settings.passage_chars)


def rank_texts(texts: Sequence[str], settings: SelectSpec, root: Path) -> similar.Ranked:
    """How examples are ordered for a question by a prompt layer's `select`; raises DemeanorError if its encoder cannot be
    had."""
    encoder = None if settings.encoder is None else encoder_of(settings.encoder, settings.key_env, root)
    return similar.ranked(texts, settings.by, encoder)


def encoder_of(name: str, key_env: str | None, root: Path) -> vectors.Encoder:
    """Return an encoder by its address, folder or hub id; raises DemeanorError if it cannot be had."""
    return vectors.RemoteEncoder(name, key_env) if vectors.is_address(name) else load_encoder(name, root)


def names(folder: Path, settings: SearchSpec) -> frozenset[str]:
    """Return the ids and the sources of all passages of a folder."""
    found = documents.read_folder(folder)
    chunks = (
        chunk
        for name, text in found.items()
        for chunk in documents.chunks(name, text, settings.passage_chars)
    )
    return frozenset(name for chunk in chunks for name in (chunk.id, chunk.source))


def remove(folder: Path, settings: SearchSpec) -> int:
    """Delete the kept indexes of a folder; return how many there were."""
    if settings.store is not None:
        return postgres_index.remove(settings.store, folder)
    return index.remove(folder, private_cache("indexes"))
