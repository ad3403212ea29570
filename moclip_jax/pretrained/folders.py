"""Folders of weights in the layouts of the Hugging Face hub: found, downloaded, read."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

# A small CLIP for the embedded data set, trained by moclip_jax.pretrained.train_tiny_clip.
TINY_CLIP = Path(__file__).parent / "tiny_clip"

_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def find_folder(source: str | os.PathLike[str]) -> Path:
    """Return the local folder of the source, downloaded from the hub if it is not there yet.

    Args:
      source: "tiny", a local folder, or a hub id with or without "@" and a revision.

    Raises:
      OSError: there is no such folder, and it cannot be downloaded.
    """
    if source == "tiny":
        return TINY_CLIP
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(f"{folder} is a file; a tower is a folder with its config in it")
    if not _HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"no folder {folder}, and not a hub id (owner/name) either; the embedded CLIP is 'tiny'"
        )
    repository, _, revision = str(source).partition("@")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    # No pickles: what is never loaded need not be downloaded.
    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision or None, allow_patterns=wanted
            )
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        at_revision = f" --revision {revision}" if revision else ""
        raise OSError(
            f"{source} is not a local folder, and cannot be downloaded from the Hugging Face hub "
            f"({type(error).__name__}). On a machine with network access, run\n"
            f"  hf download {repository}{at_revision} --local-dir clip "
            f"--include {' '.join(repr(pattern) for pattern in wanted)}\n"
            "copy the folder clip to this machine and pass its path instead of the id"
        ) from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file of a folder of weights.

    Raises:
      FileNotFoundError: it is absent.
      ValueError: it is not JSON.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path.parent} has no {path.name}; download it into that folder")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error


def read_weights(folder: Path, stem: str) -> dict[str, np.ndarray]:
    """Read all weights, from `stem`.safetensors or from the files that its index names.

    Raises:
      FileNotFoundError: a file is absent.
      ValueError: the weights are pickles, or damaged.
    """
    whole, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if (folder / index).exists():
        files = sorted(set(read_json(folder / index)["weight_map"].values()))
    elif (folder / whole).exists():
        files = [whole]
    else:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        if pickles:
            raise ValueError(
                f"{', '.join(pickles)} is a pickle, which can execute code when loaded; only "
                f"{whole} is supported. {_SAFETENSORS_REMEDY}"
            )
        raise FileNotFoundError(f"{folder} has no {whole}. {_SAFETENSORS_REMEDY}")
    weights: dict[str, np.ndarray] = {}
    for name in files:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}, which {index} names; download it")
        try:
            with safe_open(folder / name, framework="numpy") as file:
                weights |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{name} is damaged ({error}); download it again") from error
    return weights


_SAFETENSORS_REMEDY = (
    "Models without it on the hub often have it in an open pull request by SFconvertbot: pass the "
    "id as owner/name@refs/pr/NUMBER, such as openai/clip-vit-base-patch32@refs/pr/15"
)
