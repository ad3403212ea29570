"""Names of files, whatever their bytes are, go into commands and come out as valid JSON and CSV."""

import csv
import io
import json
import os

import pytest

from moclip_jax.runtime.cli import CommandParser
from moclip_jax.runtime.text_io import csv_row, file_names, json_line, printable

LATIN_1 = os.fsdecode(b"caf\xe9.mp4")


def test_names_of_standard_input_keep_their_spaces(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (" a.mp4", "b.mp4 ", "c.mp4", LATIN_1):
        (tmp_path / name).touch()
    lines = [b" a.mp4\n", b"b.mp4 \r\n", b"  c.mp4  \n", b"\n", b" \n", b"caf\xe9.mp4\n", b"gone "]
    expected = [" a.mp4", "b.mp4 ", "c.mp4", LATIN_1, "gone"]
    assert list(file_names(lines)) == expected
    text = io.TextIOWrapper(io.BytesIO(b"".join(lines)), "utf-8", "surrogateescape")
    assert list(file_names(text)) == expected


def test_json_is_valid_utf_8_whatever_a_file_is_called():
    value = {"video": LATIN_1, "parts": [{"label": "ünï \\ \u2028", "score": 0.5}], "error": None}
    line = json_line(value)
    assert json.loads(line.encode("utf-8")) == value | {"video": r"caf\xe9.mp4"}
    assert not any(0xD800 <= ord(letter) <= 0xDFFF for letter in json.loads(line)["video"])
    assert "\n" not in line


def test_a_name_of_whole_utf_8_is_printed_as_it_is():
    assert printable("ünï 日本 \\x.mp4") == "ünï 日本 \\x.mp4"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula(start):
    formula = f'{start}HYPERLINK("http://x")'
    output = io.StringIO()
    table = csv.DictWriter(output, ("video", "start", "label"))
    table.writerow(csv_row({"video": formula, "start": -1.5, "label": "a=b, c"}))
    ((video, number, label),) = csv.reader(io.StringIO(output.getvalue(), newline=""))
    assert (video, number, label) == ("'" + formula, "-1.5", "a=b, c")
    assert csv_row({"video": LATIN_1}) == {"video": r"caf\xe9.mp4"}


def test_a_file_whose_name_begins_with_a_dash_is_a_file(tmp_path, monkeypatch, capsys):
    """As a shell's pattern gives it: `command *.mp4`."""
    monkeypatch.chdir(tmp_path)
    names = ["-x.mp4", "--json.mp4", "-h.mp4", "a.mp4"]
    for name in names:
        (tmp_path / name).touch()
    parser = CommandParser("test", "Test.")
    parser.add_argument("videos", nargs="*")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse([*names, "--json", "-"])
    assert arguments.videos == ["./-x.mp4", "./--json.mp4", "./-h.mp4", "a.mp4", "-"]
    assert arguments.json
    after = ["a.mp4", "--", "-x.mp4", "-gone.mp4", "b.mp4", "-"]
    assert parser.parse(after).videos == ["a.mp4", "./-x.mp4", "./-gone.mp4", "b.mp4", "-"]
    with pytest.raises(SystemExit):
        parser.parse(["-absent.mp4"])
    assert "error: " in capsys.readouterr().err
