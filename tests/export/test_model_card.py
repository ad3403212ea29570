"""The card in every export: it can be read by the hub's tools, and what it says is so."""

import contextlib
import io
import json
import re

import pytest
from huggingface_hub import ModelCard

from moclip_jax.configs import testing, ucf101
from moclip_jax.export.model_card import write_model_card
from tests.input_pipeline import real_clips

ROWS = ("zero_shot", "clip_head", "motion", "fusion")


@pytest.fixture(scope="module")
def card(finished_run) -> ModelCard:
    return ModelCard.load(finished_run / "export" / "README.md")


def test_the_card_of_an_export_has_metadata_for_the_hub_and_the_measured_results(
    card, finished_run
):
    rows = json.loads((finished_run / "results.json").read_text())["rows"]
    assert (card.data.pipeline_tag, card.data.license) == ("video-classification", "apache-2.0")
    measured = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert measured == {"top-1": rows["fusion"]["top1"], "top-5": rows["fusion"]["top5"]}
    for name in ROWS:
        row = rows[name]
        assert f"| {name} | {100 * row['top1']:.1f} | {100 * row['top5']:.1f} | 36 |" in card.text
        assert row["protocol"] in card.text
    assert card.text.count("| 36 |") == 3 + len(ROWS)  # train, validation, test; and each row
    names = json.loads((finished_run / "export" / "metadata.json").read_text())["class_names"]
    listed = card.text.partition("## Classes")[2].partition("## Made with")[0]
    assert re.findall(r"^    (.+)$", listed, flags=re.MULTILINE) == names


def test_the_code_that_the_card_gives_labels_a_video(card, finished_run):
    video = real_clips.path("carphone_pristine")
    (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    code = code.replace("THIS_FOLDER", str(finished_run / "export"))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace("clip.mp4", str(video)), {})
    assert printed.getvalue().count("label=") == 3


def test_names_are_no_markup_and_foreign_weights_are_not_called_ours(tmp_path):
    config = ucf101.get_config()
    config.selection.mode = "test"
    row = {
        "top1": 0.5, "top5": 0.75, "num_examples": 4, "protocol": "one view", "gflops": 1.0,
        "trainable_params": 7,
    }  # fmt: skip
    videos = {"train": 3, "validation": 4, "test": 4, "rejected_test": 0}
    names = ["Shot\nPut", "# <b>Heading</b>", "```"]
    rows = dict.fromkeys(ROWS, row)
    write_model_card(config, names, videos, rows, {"jax": "1"}, tmp_path / "card.md")
    card = ModelCard.load(tmp_path / "card.md")
    assert card.data.license == "other"
    for source in (config.clip.source, config.motion.pretrained, "`ucf101`"):
        assert source in card.text.partition("## Licence")[2]
    assert "therefore optimistic" in card.text
    assert "\n    Shot Put\n    # <b>Heading</b>\n    ```\n" in card.text
    ours = testing.get_config()
    write_model_card(ours, names, videos, rows, {}, tmp_path / "ours.md")
    assert "drawn shapes" in ModelCard.load(tmp_path / "ours.md").text
