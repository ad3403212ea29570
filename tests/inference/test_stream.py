"""`predict --stream`: JSON lines of a local HTTP server, of a growing file, of standard input."""

import argparse
import json
import subprocess
import sys

import pytest

from moclip_jax import predict
from moclip_jax.inference import stream
from moclip_jax.input_pipeline.video.clip import VideoSpec
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(width=64, height=48, clip_frames=1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "a.ts"
    return write_video(path, drifting_frames(80), codec="mpeg2video", rate=25)


def arguments(*argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("videos", nargs="*")
    stream.add_arguments(parser)
    parsed = parser.parse_args(argv)
    stream.check_arguments(parser, parsed)
    return parsed


def lines(address, *flags):
    waits = []
    parsed = arguments(f"--stream={address}", "--window=1", "--hop=0.4", "--timeout=5", *flags)
    found = stream.stream_lines(
        parsed, SPEC, lambda video: [{"label": str(video.num_frames)}], waits.append
    )
    return list(found), waits


def test_an_address_is_read_to_its_end(server, clip):
    address, answers = server
    answers.append((clip.read_bytes(), True))
    found, waits = lines(address)
    assert [line["start_s"] for line in found] == [0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4]
    # 80 frames are 3.2 s: the last window ends with them.
    last = found.pop()
    assert (last["end_s"], last["num_frames"]) == (pytest.approx(3.2), 20)
    assert all(line["end_s"] - line["start_s"] == pytest.approx(1) for line in found)
    assert {line["connection"] for line in found} == {1}
    assert all(line["predictions"] == [{"label": "25"}] for line in found)
    assert waits == []


def test_a_lost_connection_is_made_again(server, clip):
    address, answers = server
    answers.append((clip.read_bytes(), False))
    answers.append((clip.read_bytes(), True))
    found, waits = lines(address)
    (lost,) = [number for number, line in enumerate(found) if "reconnect" in line]
    assert 0 < lost < 4
    assert "broke off (" in found[lost]["reconnect"]
    assert found[lost]["wait_s"] == 1 and waits == [1]
    assert [line["connection"] for line in found] == [1] * (lost + 1) + [2] * 7
    assert found[lost + 1]["start_s"] == 0


def test_pauses_double_and_end(server):
    address, _ = server
    found, waits = lines(address, "--retries=4")
    assert waits == [1, 2, 4, 8]
    assert ["reconnect" in line for line in found] == [True] * 4 + [False]
    assert address in found[-1]["error"] and "gave up" in found[-1]["error"]


def test_an_endless_stream_is_taken_up_again(server, clip):
    address, answers = server
    answers.extend([(clip.read_bytes(), True)] * 2)
    found, _ = lines(address, "--endless", "--retries=1")
    assert max(line["connection"] for line in found) == 3
    assert sum("predictions" in line for line in found) == 14


def test_a_file_that_is_none_is_not_tried_again(tmp_path):
    found, waits = lines(tmp_path / "absent.ts")
    assert "no such file" in found[0]["error"]
    assert (len(found), waits) == (1, [])


@pytest.mark.parametrize(
    "flags",
    [[], ["--stream=a.ts", "b.mp4"], ["--stream=a.ts", "--hop=0"], ["--stream=a", "--retries=-1"]],
)
def test_flags_that_do_not_go_together(flags, capsys):
    with pytest.raises(SystemExit) as error:
        arguments(*flags)
    assert error.value.code == 2
    assert "error" in capsys.readouterr().err


def test_predict_labels_a_stream(finished_run, clip, capsys):
    flags = ["--window=1", "--hop=1", "--timeout=0.5", "--topk=2"]
    assert predict.main(["--workdir", str(finished_run), f"--stream={clip}", *flags]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["start_s"] for line in found] == [0, 1, 2, 3]
    for line in found:
        assert line["stream"] == str(clip)
        assert line["time"].endswith("+00:00")
        assert len(line["predictions"]) == 2
        assert 0 < line["predictions"][0]["probability"] <= 1


def test_a_window_gets_the_label_of_a_file_of_its_frames(finished_run, tmp_path):
    """Of the canonical form, where a file of the first window's frames has the same motion."""
    from moclip_jax.inference.recognizer import load
    from moclip_jax.input_pipeline.video.clip import read_clip
    from moclip_jax.input_pipeline.video.stream import read_stream

    recognizer = load(finished_run)
    frames = drifting_frames(60, step=(1, 0))
    whole = write_video(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    part = write_video(tmp_path / "b.mkv", frames[:25], codec="ffv1", pix_fmt="bgr0")

    def classify(video):
        return recognizer.probabilities(recognizer.view(video))

    window = next(read_stream(str(whole), recognizer.video, length_s=1.0, hop_s=1.0))
    expected = classify(read_clip(part, recognizer.video))
    assert classify(window.video).tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_standard_input(clip):
    code = (
        "import sys\n"
        "from moclip_jax.input_pipeline.video.stream import read_stream\n"
        "from moclip_jax.input_pipeline.video.clip import VideoSpec\n"
        "for window in read_stream('-', VideoSpec(), length_s=1, hop_s=1, timeout_s=30):\n"
        "    print(window.start_s, window.video.num_frames)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=clip.read_bytes(), capture_output=True, check=True
    )
    assert done.stdout.decode().split() == ["0.0", "25", "1.0", "25", "2.0", "25", "3.0", "5"]
