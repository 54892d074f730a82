"""Reads a recipe's sources into documents, up to each source's cap. Decides nothing about them.

Files are taken in the order of a digest of their name: a cap takes a fair sample, and the same
one every time. A file that cannot be read becomes a document in quarantine.
"""

import fnmatch
import os
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from m1.data_recipes.document import Document, digest_of
from m1.data_recipes.readers import READERS, Extract, licence_of
from m1.data_recipes.recipe import Recipe, Source
from m1.infra.errors import BadInputError

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SKIPPED_FOLDERS = frozenset({"__pycache__", ".git", ".venv", "node_modules", "site-packages"})


def normalised(text: str) -> str:
    """Unix line ends, NFC, no control characters, one final line end."""
    unix = text.replace("\r\n", "\n").replace("\r", "\n")
    clean = _CONTROL.sub("", unicodedata.normalize("NFC", unix)).rstrip()
    return clean + "\n" if clean else ""


def _folder_of(location: str, corpus: Path | None) -> Path:
    if location == "corpus":
        if corpus is None:
            raise BadInputError("this recipe reads a folder; none was given")
        return corpus
    if location == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    _, _, package = location.partition("/")
    return Path(sysconfig.get_path("purelib")) / package


def _relative_files(folder: Path) -> Iterator[str]:
    """Every regular file below `folder`; links are not followed out of it."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        for name in names:
            path = Path(parent) / name
            if not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _matches(uri: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(uri, pattern) for pattern in patterns)


def files_of(source: Source, folder: Path) -> list[str]:
    """Paths a source includes, relative to its folder, in digest order."""
    if not any("*" in pattern for pattern in source.include):
        found = [uri for uri in source.include if (folder / uri).is_file()]
    elif source.location == "site-packages":  # no walk: an installation has 100,000 files
        matches = (path for pattern in source.include for path in folder.glob(pattern))
        found = [path.relative_to(folder).as_posix() for path in matches]
    else:
        found = list(_relative_files(folder))
    chosen = (
        uri for uri in found if _matches(uri, source.include) and not _matches(uri, source.exclude)
    )
    return sorted(chosen, key=lambda uri: (digest_of(uri), uri))


def _package_licence(source: Source, folder: Path, file_text: str) -> str:
    if source.licence != "from-metadata":
        return source.licence
    if source.reader == "metadata":
        return licence_of(file_text)
    for path in sorted(folder.parent.glob(f"{folder.name}-*.dist-info/METADATA")):
        return licence_of(path.read_text(encoding="utf-8", errors="replace"))
    return "unknown"


def _quarantined(source: Source, uri: str, error: Exception | str) -> Document:
    return Document(
        id=digest_of(source.name, uri, "unreadable"),
        source=source.name,
        uri=uri,
        licence=source.licence,
        kind=source.kind,
        text="",
        status="quarantine",
        drop_stage="read",
        drop_reason="unreadable",
        error=(error if isinstance(error, str) else f"{type(error).__name__}: {error}")[:500],
    )


def _documents_of_file(source: Source, folder: Path, uri: str, limit: int) -> list[Document]:
    path = folder / uri
    try:
        with path.open("rb") as stream:
            body = stream.read(limit + 1)
        if len(body) > limit:
            return [_quarantined(source, uri, f"larger than {limit} bytes")]
        text = body.decode("utf-8-sig")
        extracts = READERS[source.reader](text)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        return [_quarantined(source, uri, error)]
    licence = _package_licence(source, folder, text)
    return [_document(source, uri, extract, licence) for extract in extracts]


def _document(source: Source, uri: str, extract: Extract, licence: str) -> Document:
    place = f"{uri}#{extract.place}" if extract.place else uri
    # spans count characters of the extract: a text with spans is kept as it was read
    text = extract.text if extract.pairs else normalised(extract.text)
    return Document(
        id=digest_of(source.name, place, extract.text),
        source=source.name,
        uri=place,
        licence=licence,
        kind=source.kind,
        text=text,
        pairs=extract.pairs,
    )


def read_source(source: Source, *, corpus: Path | None, maximum_file_bytes: int) -> list[Document]:
    """Documents of one source until its cap is reached; a missing package gives none."""
    folder = _folder_of(source.location, corpus)
    documents: list[Document] = []
    taken = 0
    for uri in files_of(source, folder) if folder.is_dir() else []:
        for document in _documents_of_file(source, folder, uri, maximum_file_bytes):
            size = len(document.text.encode("utf-8", errors="replace"))
            if taken + size <= source.maximum_bytes:
                documents.append(document)
                taken += size
        if taken >= 0.98 * source.maximum_bytes:  # ours: good enough, spares parsing the rest
            break
    return documents


def read_corpus(
    recipe: Recipe, *, corpus: Path | None, report: Callable[[str, int, int], None]
) -> list[Document]:
    """All documents of a recipe, sorted by id.

    Raises:
        BadInputError: the folder is missing or holds no file of an accepted type, or the
            installation carries no sources.
    """
    sources = recipe.sources if corpus is None else recipe.folder_sources
    if corpus is not None and not corpus.is_dir():
        raise BadInputError(f"corpus = {corpus} is not a folder")
    documents: dict[str, Document] = {}
    for number, source in enumerate(sources):
        report(source.name, number, len(sources))
        for document in read_source(
            source, corpus=corpus, maximum_file_bytes=recipe.maximum_file_bytes
        ):
            documents[document.id] = document
    if not documents:
        where = "the Python installation" if corpus is None else f"folder {corpus}"
        suffixes = sorted({pattern for source in sources for pattern in source.include})
        raise BadInputError(f"{where} holds no documents; accepted: {', '.join(suffixes)}")
    return [documents[key] for key in sorted(documents)]
