"""Fetching a file of a pretrained model: from the hub's cache, from the hub, or from a plain address."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import torch.hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from frostline.errors import ConfigError, StorageError

CONFIG = ("config.json",)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PROBE_SECONDS = 10.0


def weight_names(stated: str | None) -> tuple[str, ...]:
    """The file names to look for, safetensors first; ``stated`` is the one a pretrained config names, if any."""
    if stated is None:
        return WEIGHTS
    safe = f"{stated.replace('pytorch_model', 'model').removesuffix('.bin')}.safetensors"
    return (safe, stated) if stated.endswith(".bin") else (stated,)


def fetch(repo: str, names: Sequence[str], *, model: str) -> Path:
    """The first of ``names`` that the hub's repository has, from the cache where the hub cannot be reached.

    Args:
        repo: ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        names: files of the repository, in order of preference.
        model: as the config names it, for the messages.

    Raises:
        ConfigError: ``repo`` is not a well-formed name.
        StorageError: no network and nothing cached; no such repository, revision or file; no access; no space.
    """
    repo_id, _, revision = repo.partition("@")
    try:
        found = _first(repo_id, names, revision or None)
    except HFValidationError as fault:
        raise ConfigError(
            f"'{model}' is no hub name: {fault}",
            mend="Write backbone.name=hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION.",
        ) from fault
    except Exception as fault:
        # the client's transport has its own error tree, which no stable name of the client covers
        if not isinstance(fault, OSError) and not type(fault).__module__.startswith(
            ("httpx", "httpcore", "huggingface")
        ):
            raise
        found = _cached(repo_id, names, revision or None)
        if found is None:
            raise _not_fetched(repo, names, model, fault) from fault
    if found is None:
        raise StorageError(
            f"The hub's '{repo}' has none of {', '.join(names)}, which '{model}' needs.",
            mend="Give the weights as a file: backbone.weights=FILE, or none.",
        )
    return found


def fetch_address(address: str, *, model: str) -> Path:
    """A weight file from a plain web address, kept in torch's own cache.

    Raises:
        StorageError: no network and nothing cached.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    target = folder / Path(urlsplit(address).path).name
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # torch's download has no time limit of its own on the first answer
        probe = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(probe, timeout=_PROBE_SECONDS).close()
        torch.hub.download_url_to_file(address, str(target), progress=False)
    except (OSError, urllib.error.URLError, RuntimeError) as fault:
        raise StorageError(
            f"The weights of '{model}' are not cached in {folder} and {urlsplit(address).netloc} cannot be reached: "
            f"{_reason(fault)}.",
            mend="Run once with a network (TORCH_HOME moves the cache), or set backbone.weights=FILE or none.",
        ) from fault
    return target


def _first(repo_id: str, names: Sequence[str], revision: str | None) -> Path | None:
    for name in names:
        try:
            return _fetch_one(repo_id, name, revision)
        except LocalEntryNotFoundError:  # an EntryNotFoundError that tells of the network, not of the repository
            raise
        except EntryNotFoundError:
            continue
    return None


def _fetch_one(repo_id: str, name: str, revision: str | None) -> Path:
    if _cached(repo_id, (name,), revision) is None and not constants.HF_HUB_OFFLINE:
        # For a file that is not cached the client tries six times with a minute each; one look says as much.
        address = huggingface_hub.hf_hub_url(repo_id, name, revision=revision)
        huggingface_hub.get_hf_file_metadata(address, timeout=_PROBE_SECONDS, token=None)
    return Path(huggingface_hub.hf_hub_download(repo_id, name, revision=revision, library_name="frostline"))


def _cached(repo_id: str, names: Sequence[str], revision: str | None) -> Path | None:
    for name in names:
        found = huggingface_hub.try_to_load_from_cache(repo_id, name, revision=revision)
        if isinstance(found, str):
            return Path(found)
    return None


def _not_fetched(repo: str, names: Sequence[str], model: str, fault: Exception) -> StorageError:
    if isinstance(fault, RevisionNotFoundError):
        return StorageError(f"The hub's '{repo}' has no such revision.", mend="Check what stands after the '@'.")
    if isinstance(fault, RepositoryNotFoundError):  # a GatedRepoError is one too
        return StorageError(
            f"The hub has no '{repo}' that may be read here, which '{model}' needs.",
            mend="Check the spelling; a private or gated model needs a token with access, in HF_TOKEN.",
        )
    offline = constants.HF_HUB_OFFLINE or isinstance(fault, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} gave no file: {_reason(fault)}"
    return StorageError(
        f"'{model}' needs {' or '.join(names)} of the hub's '{repo}'. "
        f"The cache {constants.HF_HUB_CACHE} does not hold it and {why}.",
        mend="Run once with a network, or point HF_HUB_CACHE at a folder that holds it; "
        "or set backbone.weights=FILE (.safetensors, .pth, a timm folder, a run), or backbone.weights=none.",
    )


def _reason(fault: BaseException) -> str:
    """The innermost cause in one line: the client's own text is advice, its cause is the fact."""
    while (cause := fault.__cause__ or fault.__context__) is not None:
        fault = cause
    lines = str(fault).strip().splitlines()
    return (lines[0] if lines else type(fault).__name__).rstrip(".")
