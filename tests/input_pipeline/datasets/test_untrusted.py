"""What comes from others can do no harm: archives, and nothing of theirs is unpickled."""

import ast
import io
import pathlib
import tarfile
import zipfile

import pytest
import tensorflow_datasets as tfds

ROOT = pathlib.Path(__file__).parents[3]


def hostile_zip(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("good/a.txt", "../evil.txt", "good/../../evil.txt", "/tmp/evil_of_a_test.txt"):
            archive.writestr(name, "content")
        link = zipfile.ZipInfo("good/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
        archive.writestr("good/link/evil.txt", "content")


def hostile_tar(path: pathlib.Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name in ("good/a.txt", "../evil.txt", "good/../../evil.txt", "/tmp/evil_of_a_test.txt"):
            member = tarfile.TarInfo(name)
            member.size = 7
            archive.addfile(member, io.BytesIO(b"content"))
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "../.."
        archive.addfile(link)
        member = tarfile.TarInfo("out/evil.txt")
        member.size = 7
        archive.addfile(member, io.BytesIO(b"content"))


@pytest.mark.parametrize(("name", "write"), [("a.zip", hostile_zip), ("a.tar.gz", hostile_tar)])
def test_archives_cannot_write_outside_their_folder(tmp_path, name, write):
    write(tmp_path / name)
    manager = tfds.download.DownloadManager(
        download_dir=tmp_path / "downloads", extract_dir=tmp_path / "extracted"
    )
    try:
        folder = pathlib.Path(manager.extract(tmp_path / name))
    except Exception as error:
        assert "extract" in str(error).lower()  # Refused as a whole; nothing may lie outside.
    else:
        assert (folder / "good" / "a.txt").read_text() == "content"
        assert not any(path.is_symlink() for path in folder.rglob("*"))
    evil = [*tmp_path.rglob("evil.txt"), pathlib.Path("/tmp/evil_of_a_test.txt")]
    inside = tmp_path / "extracted"
    assert not [path for path in evil if path.exists() and inside not in path.parents]


def test_nothing_but_what_this_program_sends_itself_is_unpickled():
    readers = {("pickle", "load"), ("pickle", "loads"), ("torch", "load"), ("joblib", "load")}
    found = set()
    for package in ("input_pipeline", "moclip_jax", "configs"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    if (node.value.id, node.attr) in readers:
                        found.add(path.relative_to(ROOT).as_posix())
                elif isinstance(node, ast.keyword):
                    assert node.arg != "allow_pickle", path
    # Messages between our own processes; and compiled programs in the user's own cache, which are
    # machine code whatever they are wrapped in.
    assert found == {"input_pipeline/video/subprocess_pool.py", "moclip_jax/inference/program.py"}
