"""The HTTP API: what it answers, what it rejects, and many requests at once."""

import dataclasses
import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from benchmarks.serve import HUNG, LOST, load
from moclip_jax import serve
from moclip_jax.inference import recognizer as recognition
from moclip_jax.predict import to_json
from tests.input_pipeline.misbehaving import end_by_a_crash, never_end
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

MAX_MEGABYTES = 0.2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What clients may name, beside what they may not."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "root" / "sub").mkdir(parents=True)
    write_video(folder / "outside.avi", drifting_frames(8, 48, 64))
    write_video(folder / "root" / "sub" / "a b.avi", drifting_frames(8, 48, 64))
    (folder / "root" / "link.avi").symlink_to(folder / "outside.avi")
    (folder / "root" / "loop.avi").symlink_to("loop.avi")
    return folder


@pytest.fixture(scope="module")
def model(finished_run):
    return recognition.load(finished_run)


@pytest.fixture(scope="module")
def service(model, folder) -> Iterator[serve.Service]:
    options = {"root": folder / "root", "max_megabytes": MAX_MEGABYTES, "queue": 2}
    with serve.Service(model, **options) as opened:
        yield opened


@pytest.fixture(scope="module")
def client(service) -> Iterator[TestClient]:
    with TestClient(service.make_app("127.0.0.1"), base_url="http://127.0.0.1") as opened:
        yield opened


@pytest.mark.parametrize("words", [(), ("a star", "a ring")])
def test_the_answer_is_what_predict_prints_whether_uploaded_or_named(client, model, folder, words):
    name = "sub/a b.avi"
    path = folder / "root" / name
    expected = model.predict(path, top_k=2, labels=words)
    files = {"file": (name, path.read_bytes())}
    fields = {"top_k": "2", "labels": ", ".join(words)}
    for answer in (
        client.post("/predict", files=files, data=fields),
        client.post("/predict", json={"path": name, "top_k": 2, "labels": words}),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"] == "application/json"
        wanted = to_json(dataclasses.replace(expected, video=name), with_timeline=False)
        assert answer.json() == wanted


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        ({"files": {"file": ("my.mp4", b"text")}}, 422, "my.mp4: not a video"),
        ({"files": {"file": ("my.mp4", b"")}}, 422, "my.mp4: the file is empty"),
        ({"files": {"file": ("a", bytes(300_000))}}, 413, "more than 0.2 MB"),
        ({"files": {"other": ("a", b"text")}}, 400, "the form has no file"),
        ({"files": {"file": ("a", b"b")}, "data": {"topk": "3"}}, 400, "unknown field topk"),
        ({"files": {"file": ("a", b"b")}, "data": {"top_k": "0"}}, 400, "must be at least 1"),
        ({"files": {"file": ("a", b"b")}, "data": {"labels": "a"}}, 400, "One label is no"),
        ({"data": {"file": "a"}}, 415, "send multipart/form-data with a file, or JSON"),
        ({"json": ["a"]}, 400, "the body is not a JSON object"),
        ({"json": {"path": "absent.avi"}}, 404, "no file absent.avi below --root"),
        ({"json": {"path": "sub"}}, 404, "no file sub below --root"),
        ({"json": {"path": "../outside.avi"}}, 404, "no file ../outside.avi below --root"),
        ({"json": {"path": "link.avi"}}, 404, "no file link.avi below --root"),
        ({"json": {"path": "loop.avi"}}, 404, "no file loop.avi below --root"),
        ({"json": {"path": "a\0b"}}, 404, "below --root"),
        ({"json": {}}, 404, "no file None below --root"),
    ],
)
def test_a_mistake_is_a_status_and_a_sentence(client, request_, status, error):
    answer = client.post("/predict", **request_)
    assert answer.status_code == status
    assert error in answer.json()["error"]


def test_the_service_answers_to_no_other_name_and_names_no_files_without_a_root(
    client, service, monkeypatch
):
    assert client.get("/health").json() == {"status": "ok", "classes": 36, "requests": 0}
    assert client.get("/health", headers={"Host": "elsewhere.example"}).status_code == 400
    monkeypatch.setattr(service, "_root", None)
    assert client.post("/predict", json={"path": "sub/a b.avi"}).status_code == 403


def test_a_file_that_crashes_or_holds_up_its_process_costs_only_its_own_answer(
    client, service, folder, monkeypatch
):
    named = {"path": "sub/a b.avi"}
    expected = client.post("/predict", json=named).json()
    with monkeypatch.context() as patch:
        patch.setattr(serve, "read_clip", end_by_a_crash)
        answer = client.post("/predict", json=named)
        assert answer.status_code == 422
        assert answer.json()["error"].startswith("sub/a b.avi: reading it crashed (signal 11")
    with monkeypatch.context() as patch:
        patch.setattr(serve, "read_clip", never_end)
        patch.setattr(service._isolated, "timeout_s", 0.5)
        answer = client.post("/predict", json=named)
        assert answer.status_code == 504
        assert answer.json()["error"].endswith("reading it made no progress for 0.5 seconds")
    assert client.post("/predict", json=named).json() == expected


def test_more_requests_than_the_queue_takes_are_rejected_and_the_others_answered(
    client, service, folder, monkeypatch
):
    named, statuses = {"path": "sub/a b.avi"}, []
    view, release = service._view, threading.Event()

    def wait(path):
        release.wait()
        return view(path)

    monkeypatch.setattr(service, "_view", wait)
    senders = [
        threading.Thread(
            target=lambda: statuses.append(client.post("/predict", json=named).status_code)
        )
        for _ in range(2)
    ]
    for sender in senders:
        sender.start()
    while client.get("/health").json()["requests"] < 2:
        pass
    rejected = client.post("/predict", json=named)
    assert (rejected.status_code, rejected.headers["Retry-After"]) == (503, "1")
    release.set()
    for sender in senders:
        sender.join()
    assert statuses == [200, 200]


def test_requests_that_come_together_go_through_the_network_together(
    client, service, model, monkeypatch
):
    """Ten views, each another; the first keeps the network busy until the others wait."""
    rng = np.random.default_rng(0)
    shapes = model.input_shapes
    views = [
        {name: rng.integers(0, 256, (1, *shapes[name]), np.uint8) for name in shapes}
        for _ in range(10)
    ]
    compute, sizes, busy = model.programs.outputs, [], threading.Event()

    def counted(together):
        busy.set()
        while not sizes and len(service._decoded) < 9:
            time.sleep(0.01)
        sizes.append(len(together))
        return compute(together)

    remaining = itertools.count()

    def view(path):
        number = next(remaining)
        # Else a second view might be there before the network has taken the first.
        assert number == 0 or busy.wait(60)
        return views[number], ""

    monkeypatch.setattr(model.programs, "outputs", counted)
    monkeypatch.setattr(service, "_view", view)
    monkeypatch.setattr(service, "_queue", 10)
    with ThreadPoolExecutor(10) as pool:
        named = {"path": "sub/a b.avi"}
        sent = [pool.submit(client.post, "/predict", json=named) for _ in views]
        answers = [each.result().json()["predictions"] for each in sent]
    assert sizes == [1, 8, 1]
    # A batch that is not full.
    for view, outputs in zip(views[:3], compute(views[:3]), strict=True):
        for got, expected in zip(outputs, compute([view])[0], strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    got = sorted((best["label"], best["probability"]) for best, *_ in answers)
    expected = sorted(
        (score.label, score.probability)
        for score in (model.prediction(compute([view])[0], 1, ()).scores[0] for view in views)
    )
    assert [label for label, _ in got] == [label for label, _ in expected]
    np.testing.assert_allclose(*([p for _, p in each] for each in (got, expected)), atol=1e-5)


def test_a_network_that_fails_costs_those_answers_alone(client, model, monkeypatch):
    named = {"path": "sub/a b.avi"}
    expected = client.post("/predict", json=named).json()
    with monkeypatch.context() as patch:

        def fail(together):
            raise ValueError("no memory")

        patch.setattr(model.programs, "outputs", fail)
        assert client.post("/predict", json=named).json() == {"error": "no memory"}
    assert client.post("/predict", json=named).json() == expected


def test_of_many_requests_none_is_lost_none_hangs_and_no_upload_is_left(finished_run):
    measured = load(str(finished_run), requests=60, clients=8)
    told = {kind.name: dict(statuses) for kind, statuses in measured.statuses.items()}
    assert measured.unexpected == 0, told
    assert sum(map(len, measured.seconds.values())) == 60
    assert not {LOST, HUNG} & {status for statuses in told.values() for status in statuses}
    assert measured.different == 0, measured.answers
    assert measured.files_left == 0


def test_mistakes_are_reported_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    arguments = ["--workdir", str(tmp_path), "--port=0"]
    assert serve.main([*arguments, f"--root={tmp_path / 'absent'}"]) == 1
    assert "is not a folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    assert serve.main(arguments) == 1
    error = capsys.readouterr().err
    assert "error: the service needs python_multipart, which is not installed" in error
    assert "pip install -r requirements-serve.txt" in error
    with pytest.raises(SystemExit, match="2"):
        serve.main([*arguments, "--queue=0"])
