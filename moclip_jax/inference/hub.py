"""Keep trained models on the Hugging Face hub: exports as repositories."""

import json
import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from moclip_jax.inference.exported import METADATA, SAFETENSORS, TOKENIZER

# What opens a model; Orbax's copy of the parameters stays at home.
_FILES = (METADATA, SAFETENSORS, "README.md", f"{TOKENIZER}/*")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_id(name: str) -> bool:
    """Return whether a name can be "owner/name" or "owner/name@revision" on the hub."""
    return _HUB_ID.fullmatch(name) is not None


def push(folder: Path, repository: str, *, private: bool = False, message: str = "") -> str:
    """Upload an export; the repository is made if it is not there.

    The model card becomes the repository's page. Nothing that is uploaded can execute code.

    Args:
      folder: from stage `export`.
      repository: "owner/name".
      private: of a repository that is made.
      message: of the commit.

    Returns:
      The address of the commit.

    Raises:
      ValueError: `repository` is no such name, or the export has no safetensors.
      OSError: the hub cannot be reached or does not accept the upload; the message says why.
    """
    if not is_hub_id(repository) or "@" in repository:
        raise ValueError(f"push_to_hub: {repository!r} is not of the form owner/name")
    metadata = json.loads((folder / METADATA).read_text())
    if "parameters_sha256" not in metadata or not (folder / SAFETENSORS).exists():
        raise ValueError(
            f"{folder} has no {SAFETENSORS}, as exports of version 0.1 on have; write it again "
            "with --config.stages=export"
        )
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(_FILES),
            commit_message=message or "Upload a moclip_jax model",
        )
    except (HfHubHTTPError, OSError) as error:
        raise OSError(
            f"cannot upload to {repository} ({_first_line(error)}); hf auth login stores a token "
            "that may write, and HF_ENDPOINT names another hub"
        ) from error
    return str(commit.commit_url)


def download(hub_id: str) -> Path:
    """Return the folder of a model on the hub, from the cache where it is there already.

    Args:
      hub_id: "owner/name", or with a branch, tag or commit as "owner/name@revision".

    Raises:
      OSError: it cannot be downloaded and is not in the cache; the message says what to do.
    """
    repository, _, revision = hub_id.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(_FILES)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise OSError(
            f"there is no folder {hub_id}, and the Hugging Face hub does not give it "
            f"({_first_line(error)}). A finished run has an export; a model on the hub can be "
            f"copied here from where it is reached: hf download {repository} --local-dir DIR"
        ) from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
