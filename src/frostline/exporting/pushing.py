"""Uploading a model folder to a hub, by the hub's own client."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from frostline.errors import ConfigError, StorageError


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Make a repository, if it is not there, and upload a folder to it in one commit.

    Args:
        folder: of the model, with its card.
        repository: ``ORG/NAME``.
        private: whether a new repository is hidden from others; one that is there stays as it is.

    Returns:
        Its address.

    Raises:
        ConfigError: no such name, or nobody is logged in.
        StorageError: the hub cannot be reached, or refuses.
    """
    hub = HfApi()
    try:
        made = hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Model and card")
    except HFValidationError as fault:
        raise ConfigError(f"push={repository} is no name of a repository: {fault}", mend="push=ORG/NAME") from fault
    except LocalTokenNotFoundError as fault:
        raise ConfigError(
            f"push={repository}: nobody is logged in", mend="Run `hf auth login`, or set HF_TOKEN."
        ) from fault
    except HfHubHTTPError as fault:
        mend = "Log in with `hf auth login` or HF_TOKEN, with a token that may write there."
        raise StorageError(f"push={repository}: {_first_line(fault)}", mend=mend) from fault
    except Exception as fault:
        # the client's transport has its own error tree, which no stable name of the client covers
        if not isinstance(fault, OSError) and not type(fault).__module__.startswith(("httpx", "httpcore")):
            raise
        raise StorageError(f"push={repository}: the hub cannot be reached: {_first_line(fault)}") from fault
    return str(made)


def _first_line(fault: Exception) -> str:
    return next((line.strip() for line in str(fault).splitlines() if line.strip()), type(fault).__name__)
