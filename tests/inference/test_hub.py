"""Exports go to a hub and come back; a local server speaks its protocol."""

import base64
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import moclip_jax
from tests.input_pipeline import real_clips


class StandIn(http.server.ThreadingHTTPServer):
    """Keeps repositories in memory, each a list of commits from file names to content."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.downloads: list[str] = []

    def tree(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return the commit and files of a revision: a branch, or a commit's name."""
        commits = self.repositories.get(repository)
        if commits is None:
            return None
        number = len(commits) - 1 if revision == "main" else int(revision, 16)
        return f"{number:040x}", commits[number]


class Handler(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *_):
        pass

    def answer(self, content: bytes | dict | list, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url, repositories = f"http://{self.headers['Host']}", self.server.repositories
        parts = self.path.partition("?")[0].strip("/").split("/")
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            repositories.setdefault(name, [{}])
            return self.answer({"url": f"{url}/{name}", "name": name})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for file in json.loads(body)["files"]]  # fmt: skip
            return self.answer({"files": files})
        assert parts[4] == "commit", self.path
        files = dict(repositories[name][-1])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        repositories[name].append(files)
        commit = f"{len(repositories[name]) - 1:040x}"
        self.answer({"commitUrl": f"{url}/{name}/commit/{commit}", "commitOid": commit,
                     "hookOutput": "", "pullRequestUrl": None})  # fmt: skip

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            revision = parts[5] if len(parts) > 5 else "main"
            found = self.server.tree("/".join(parts[2:4]), revision)
        else:
            found = self.server.tree("/".join(parts[:2]), parts[3])
        if found is None:
            return self.answer({"error": "Repository not found"}, 404,
                               X_Error_Code="RepoNotFound")  # fmt: skip
        commit, files = found
        if parts[0] == "api" and len(parts) > 4 and parts[4] == "tree":
            entries = [{"type": "file", "path": name, "size": len(content),
                        "oid": hashlib.sha1(content).hexdigest()}
                       for name, content in files.items()]  # fmt: skip
            return self.answer(entries)
        if parts[0] == "api":
            siblings = [{"rfilename": name, "size": len(files[name])} for name in files]
            return self.answer({"id": "/".join(parts[2:4]), "sha": commit, "siblings": siblings,
                                "private": False, "tags": [], "downloads": 0,
                                "likes": 0})  # fmt: skip
        content = files["/".join(parts[4:])]
        if self.command == "GET":
            self.server.downloads.append("/".join(parts[4:]))
        self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub_cache")


def python(
    code: str, server: StandIn | None, cache: Path, *arguments: str
) -> subprocess.CompletedProcess:
    """Run code in a process that takes the server for the hub, or none."""
    variables = {**os.environ, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    variables["HF_HUB_OFFLINE"] = "0" if server else "1"
    if server:
        variables |= {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_TOKEN": "hf_test",
        }
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


PUSH = """
import sys, moclip_jax
print(moclip_jax.load(sys.argv[1]).push_to_hub("people/actions", message="First model"))
"""
PREDICT = """
import sys, moclip_jax
print(*moclip_jax.load(sys.argv[1]).predict(sys.argv[2]).scores, sep="\\n")
"""
CLIP = str(real_clips.path("bikes"))


@pytest.fixture(scope="module")
def commit(server, cache, finished_run) -> str:
    """Push the finished run's export; return the name of the commit."""
    done = python(PUSH, server, cache, str(finished_run))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("/")[2]


def test_what_opens_a_model_is_uploaded_with_the_card_and_no_pickle(server, commit, finished_run):
    _, files = server.tree("people/actions", commit)
    export = finished_run / "export"
    assert {"metadata.json", "parameters.safetensors", "README.md"} < set(files)
    assert all(name.startswith("tokenizer/") for name in set(files) - {
        "metadata.json", "parameters.safetensors", "README.md"})  # fmt: skip
    assert all(content == (export / name).read_bytes() for name, content in files.items())
    assert b"| fusion |" in files["README.md"]
    assert not any(b"pickle" in content[:200] for content in files.values())


def test_a_model_from_the_hub_predicts_the_same_also_offline(server, commit, cache, finished_run):
    expected = python(PREDICT, None, cache, str(finished_run), CLIP)
    assert expected.returncode == 0 and expected.stdout
    for name in ("people/actions", f"people/actions@{commit}"):
        done = python(PREDICT, server, cache, name, CLIP)
        assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr
    assert server.downloads.count("parameters.safetensors") == 1
    done = python(PREDICT, None, cache, "people/actions", CLIP)
    assert (done.returncode, done.stdout) == (0, expected.stdout), done.stderr


def test_a_file_that_was_changed_on_the_hub_is_rejected(
    server, commit, cache, tmp_path, monkeypatch
):
    files = dict(server.tree("people/actions", commit)[1])
    changed = bytearray(files["parameters.safetensors"])
    changed[-1] ^= 1
    files["parameters.safetensors"] = bytes(changed)
    server.repositories["people/changed"] = [files]
    # A folder without compiled programs, which hold the parameters of an earlier start.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    done = python(PREDICT, server, cache, "people/changed", CLIP)
    assert "is not the file that was exported: it was damaged or replaced" in done.stderr


def test_mistakes_are_named(server, commit, cache, finished_run):
    done = python(PREDICT, server, cache, "people/nothing", CLIP)
    assert "OSError: there is no folder people/nothing, and the Hugging Face hub" in done.stderr
    done = python(PREDICT, None, cache, "people/other", CLIP)
    assert "hf download people/other --local-dir DIR" in done.stderr
    wrong = PUSH.replace("people/actions", "actions")
    done = python(wrong, server, cache, str(finished_run))
    assert "'actions' is not of the form owner/name" in done.stderr


def test_what_cannot_be_uploaded_is_told(cache, finished_run, tmp_path):
    done = python(PUSH, None, cache, str(finished_run))
    assert "cannot upload to people/actions" in done.stderr
    assert "stores a token that may write, and HF_ENDPOINT" in done.stderr
    recognizer = moclip_jax.load(finished_run)
    recognizer._folder = shutil.copytree(finished_run / "export", tmp_path / "export")
    (tmp_path / "export" / "parameters.safetensors").unlink()
    with pytest.raises(ValueError, match=r"as exports of version 0.1 on have; write it again"):
        recognizer.push_to_hub("people/actions")
    recognizer._folder = None
    with pytest.raises(ValueError, match="this model was not opened from an export"):
        recognizer.push_to_hub("people/actions")
