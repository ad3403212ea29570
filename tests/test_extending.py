"""The code of docs/extending.md runs as it stands there, and does what the page says."""

import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from moclip_jax.input_pipeline.datasets.registry import DATASETS
from moclip_jax.input_pipeline.datasets.shapes import render_clip
from moclip_jax.training.stages import StageRecord

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four files CLASS-GROUP.mp4."""
    for name in ("ring-1", "ring-2", "star-1", "star-2"):
        shape, _, group = name.partition("-")
        frames = render_clip(
            shape, "rising", group_seed=int(group), clip_seed=0, num_frames=6, height=64, width=64
        )
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=Fraction(25))
            stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
    return tmp_path


def test_the_code_of_the_page_runs_and_does_what_it_says(
    folder, tmp_path_factory, monkeypatch, capsys
):
    # The page adds a data set, which is taken out again.
    monkeypatch.setitem(DATASETS, "flat_folder", None)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    # Dataclasses ask for the module that they are defined in.
    workdir = tmp_path_factory.mktemp("workdir")
    names = {"folder": folder, "workdir": workdir, "__name__": __name__}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    printed = capsys.readouterr().out
    assert "('ring', 'star') ['ring-2.mp4', 'star-2.mp4'] ['ring-1.mp4', 'star-1.mp4']" in printed
    assert "[(2, 3, 64), (2, 5)]" in printed
    right = int(re.search(r"right: (\d+) of 32", printed)[1])
    assert right > 24
    assert [entry.num_frames for entry in names["dataset"].index] == [6] * 4
    # The stage is done, and a change of what it was made from is noticed.
    videos = StageRecord(workdir, "videos", {"dataset": "flat_folder"})
    videos.finish()
    settings = {"dataset": "flat_folder", "unit": "frames"}
    with pytest.raises(ValueError, match="no longer exists"):
        StageRecord(workdir, "lengths", settings, videos).is_done()
    assert np.isfinite(names["logits"]).all()
