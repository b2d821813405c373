"""Loading tables with ``datasets``, from the disk and from the hub: quietly, off the network where none is meant."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape, has_magic
from pathlib import Path
from typing import Any, NamedTuple

from frostline.data.listing import is_hidden
from frostline.errors import ConfigError, DataError, FrostlineError, StorageError, suggestion

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""What a split may be called in ``datasets``, the most usual first."""

_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_SPLIT_PART = re.compile(rf"({'|'.join(_SPLIT_OF)})(?:[-_. ].*)?", re.IGNORECASE | re.DOTALL)
_COMMIT = re.compile("[0-9a-f]{40}")
_PROBE_SECONDS = 10.0


class Layout(NamedTuple):
    """What lies at a place: ``saved``, ``card``, ``metadata``, ``parquet`` or ``folder``; and its files by split."""

    kind: str
    place: Path
    config: str | None
    files: dict[str, list[Path]]
    watched: list[Path]


def import_datasets() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            "data=hf needs the package datasets, which is not installed.", mend="pip install 'frostline[hf]'"
        ) from error
    return datasets


def layout_of(place: Path, config: str | None) -> Layout:
    """What lies in a folder or file; lists it, and opens nothing but its card.

    Raises:
        ConfigError: there is no such configuration.
        DataError: the file is no table, or its splits cannot be told apart.
    """
    if place.is_file():
        if place.suffix.lower() != ".parquet":
            raise DataError(f"{place} is no .parquet file.", mend="Set data.root to one, or to a folder.")
        return Layout("parquet", place, config, {"train": [place]}, [place])
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        return Layout("saved", place, config, {}, [])
    if _has_configs(place / "README.md"):
        return Layout("card", place, config, {}, _files_below(place))
    if config is not None:
        if not (place / config).is_dir():
            folders = [entry.name for entry in place.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
            raise ConfigError(
                f"{place} has no configuration '{config}'.", mend=suggestion(config, folders, known_as="folders")
            )
        return layout_of(place / config, None)
    files = _files_below(place)
    tables = [file for file in files if file.suffix.lower() == ".parquet" and file.stem != "metadata"]
    if tables:
        return Layout("parquet", place, config, _by_split(tables, place), tables)
    if any(file.stem == "metadata" and file.suffix in (".csv", ".jsonl", ".parquet") for file in files):
        return Layout("metadata", place, config, {}, files)
    return Layout("folder", place, config, {}, [])


def _has_configs(card: Path) -> bool:
    """Whether the card of a data set says itself which files are which split."""
    if not card.is_file():
        return False
    with card.open(encoding="utf-8", errors="replace") as file:
        head = re.match(r"---\n(.*?)\n---", file.read(2**20), re.DOTALL)
    return head is not None and re.search("^configs:", head[1], re.MULTILINE) is not None


def _files_below(folder: Path) -> list[Path]:
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [Path(path, name) for name in sorted(files) if not is_hidden(name)]
    return found


def _by_split(tables: Sequence[Path], root: Path) -> dict[str, list[Path]]:
    """The files of each split, by the first word of a folder or of the file's name."""
    found: dict[str, list[Path]] = {}
    unknown = []
    for table in tables:
        relative = table.relative_to(root)
        parts = (*relative.parent.parts, relative.stem)
        split = next((_SPLIT_OF[match[1].lower()] for part in parts if (match := _SPLIT_PART.fullmatch(part))), None)
        if split is None:
            unknown.append(table)
        else:
            found.setdefault(split, []).append(table)
    if found and unknown:
        raise DataError(
            f"{root} names splits in some files, but not in {unknown[0].relative_to(root)}.",
            mend="Begin its name with train, val or test, or remove it.",
        )
    return found or {"train": list(tables)}


def from_disk(hub: Any, layout: Layout) -> dict[str, Any]:
    """The tables of a layout by the names of their splits; nothing is asked of the network.

    Raises:
        DataError: ``datasets`` cannot read them.
    """
    with _faults_named(str(layout.place)), _offline(hub):
        return _loaded(hub, layout)


def _loaded(hub: Any, layout: Layout) -> dict[str, Any]:
    if layout.kind == "saved":
        loaded = hub.load_from_disk(str(layout.place))
    elif layout.kind == "card":
        if has_magic(str(layout.place.absolute())):
            raise DataError(
                f"The package datasets finds no files below {layout.place}, as it takes [, ], * and ? for a pattern.",
                mend="Rename the folder, or remove 'configs' from its README.md.",
            )
        loaded = hub.load_dataset(str(layout.place), layout.config, cache_dir=_cache(hub, layout.watched), token=False)
    elif layout.kind == "metadata":
        loaded = hub.load_dataset(
            "imagefolder",
            data_files=_top_patterns(layout.place),
            cache_dir=_cache(hub, layout.watched),
            drop_labels=True,
            token=False,
        )
    else:
        files = {split: [escape(str(file.absolute())) for file in found] for split, found in layout.files.items()}
        loaded = hub.load_dataset("parquet", data_files=files, cache_dir=_cache(hub, layout.watched), token=False)
    return dict(loaded) if isinstance(loaded, hub.DatasetDict) else {"train": loaded}


def _top_patterns(root: Path) -> dict[str, str]:
    """The folders of the splits: where datasets looks for itself, the class ``test tube`` is a split."""
    folders = {entry.name: _SPLIT_OF.get(entry.name.lower()) for entry in sorted(root.iterdir()) if entry.is_dir()}
    start = escape(str(root.absolute()))
    splits = {split: f"{start}/{escape(name)}/**" for name, split in folders.items() if split}
    return splits or {"train": f"{start}/**"}


def _cache(hub: Any, files: Sequence[Path]) -> str:
    """A folder in the cache of datasets that is another one when a file changes; its own key is the times alone."""
    digest = hashlib.sha256()
    for file in files:
        found = file.stat()
        known_by = (str(file.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        digest.update(repr(known_by).encode("utf-8", "surrogateescape"))
    return str(Path(hub.config.HF_DATASETS_CACHE) / f"frostline-{digest.hexdigest()[:32]}")


def from_hub(hub: Any, name: str, config: str | None, revision: str | None) -> tuple[dict[str, Any], list[str]]:
    """The tables by the names of their splits, and a note on which commit they are of.

    Raises:
        DataError: ``datasets`` cannot read them.
        StorageError: the hub has no such data set or revision, or cannot be reached and the cache lacks it.
    """
    unreachable = _unreachable(hub, name, revision)
    if unreachable is None:
        with _faults_named(f"The hub's data set '{name}'"), _quiet(hub):
            tables = _load_by_name(hub, name, config, revision)
        note = "is the newest one" if revision is None else f"is what '{revision}' is now"
    else:
        try:
            with _offline(hub):
                tables = _load_by_name(hub, name, config, None)
        except Exception as error:
            raise _not_cached(hub, name, unreachable, error) from error
        note = f"is the newest one in the cache: {unreachable}"
    commit = _commit(tables)
    if revision is not None and _COMMIT.fullmatch(revision):
        if commit != revision:
            raise StorageError(
                f"The cache {hub.config.HF_DATASETS_CACHE} has '{name}' at commit {commit}, not at {revision}"
                f"{f', and {unreachable}' if unreachable else ''}.",
                mend="Run once with a network, or set data.revision to that commit.",
            )
        return tables, []
    return tables, [f"The hub's '{name}' at {commit} {note}; data.revision keeps it."] if commit else []


def _not_cached(hub: Any, name: str, unreachable: str, error: Exception) -> StorageError:
    text = " ".join(str(error).split()).rstrip(".")
    told = f" ({text})" if "config" in text else ""  # a configuration that is not there, or has to be chosen
    return StorageError(
        f"The data set '{name}' is not in the cache {hub.config.HF_DATASETS_CACHE}{told}, and {unreachable}.",
        mend="Run once with a network (without HF_HUB_OFFLINE), point HF_HOME or HF_DATASETS_CACHE at a folder that "
        "holds it, or set data.root to a copy on this machine.",
    )


def _load_by_name(hub: Any, name: str, config: str | None, revision: str | None) -> dict[str, Any]:
    loaded = hub.load_dataset(name, config, revision=revision)
    return dict(loaded) if isinstance(loaded, hub.DatasetDict) else {"train": loaded}


def _unreachable(hub: Any, name: str, revision: str | None) -> str | None:
    """Why nothing can be asked of the hub; None where it answers.

    The client asks six times, half a minute in all, where one look says as much.

    Raises:
        StorageError: the hub answers that it has no such data set or revision for this user.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE or hub.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        address = huggingface_hub.hf_hub_url(name, "README.md", repo_type="dataset", revision=revision)
        huggingface_hub.get_hf_file_metadata(address, timeout=_PROBE_SECONDS)
    except errors.RevisionNotFoundError as error:
        raise StorageError(
            f"The hub's data set '{name}' has no revision '{revision}'.",
            mend="Set data.revision to a branch, tag or commit that it has.",
        ) from error
    except errors.RepositoryNotFoundError as error:  # a GatedRepoError is one too
        raise StorageError(
            f"The hub has no data set '{name}' that may be read here, and there is no such folder.",
            mend="Check the spelling; a private or gated data set needs a token with access, in HF_TOKEN.",
        ) from error
    except errors.EntryNotFoundError:
        return None
    except Exception as error:
        # the client's transport has its own error tree, which no stable name of the client covers
        if not isinstance(error, OSError) and not type(error).__module__.startswith(
            ("httpx", "httpcore", "huggingface")
        ):
            raise
        return f"{constants.ENDPOINT} cannot be reached: {_reason(error)}"
    return None


def _commit(tables: Mapping[str, Any]) -> str | None:
    files = [Path(file["filename"]) for table in tables.values() for file in table.cache_files]
    return next((file.parent.name for file in files if _COMMIT.fullmatch(file.parent.name)), None)


@contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Neither log lines, nor bars in a file, nor a word to anybody on what was loaded."""
    logging, config = hub.utils.logging, hub.config
    verbosity, counted = logging.get_verbosity(), config.HF_UPDATE_DOWNLOAD_COUNTS
    bars = hub.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if not os.isatty(2):
        hub.disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        config.HF_UPDATE_DOWNLOAD_COUNTS = counted
        if bars:
            hub.enable_progress_bars()


@contextmanager
def _offline(hub: Any) -> Iterator[None]:
    """As under ``HF_HUB_OFFLINE``: a card on the disk may name addresses, and the client would try each for minutes."""
    before = hub.config.HF_HUB_OFFLINE
    hub.config.HF_HUB_OFFLINE = True
    try:
        with _quiet(hub):
            yield
    finally:
        hub.config.HF_HUB_OFFLINE = before


@contextmanager
def _faults_named(what: str) -> Iterator[None]:
    try:
        yield
    except FrostlineError:
        raise
    except Exception as error:  # the package and its readers raise nearly anything on a damaged file
        raise DataError(
            f"{what} cannot be read: {_reason(error)}.", mend="Mend or copy it again; or name a data.config."
        ) from error


def _reason(error: BaseException) -> str:
    """The innermost cause in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
