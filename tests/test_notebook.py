"""The notebook runs from top to bottom, offline, and ends with a label."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
NOTEBOOK = REPOSITORY / "notebooks" / "first_steps.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    executed = tmp_path / "executed.ipynb"
    run = subprocess.run(
        [
            sys.executable, "-m", "jupyter", "execute", str(NOTEBOOK), f"--output={executed}",
            "--timeout=600",
        ],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    cells = json.loads(executed.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    figures = [output for output in outputs if "image/png" in output.get("data", ())]
    assert len(figures) == 3
    (answer,) = [output for output in outputs if output["output_type"] == "execute_result"]
    text = "".join(answer["data"]["text/plain"])
    assert text.count("label=") == 3 and "star.avi" in text
    printed = "".join("".join(output.get("text", ())) for output in outputs)
    assert "frame 0: I, 0 vectors" in printed
    # Nothing but what a run says on purpose.
    errors = [output for output in outputs if output.get("name") == "stderr"]
    assert errors == []
    assert list(tmp_path.glob("*/run/report.html"))
