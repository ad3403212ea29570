"""The documentation holds what it should: every setting, every link, pages for every module."""

import re
from pathlib import Path

import pytest

import moclip_jax
from moclip_jax.config import default_config
from tests.config_fields import config_fields

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = sorted(
    [*DOCS.glob("*.md"), *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md"))]
)


def test_every_setting_is_named_in_the_page_about_configs_with_its_default():
    page = (DOCS / "configs.md").read_text()
    config = default_config()
    stated = dict(
        re.findall(r"^\| `([a-z_.]+)` \| (see there|empty|`.+?`) \|", page, flags=re.MULTILINE)
    )
    assert sorted(stated) == sorted(config_fields(config))
    for field, default in stated.items():
        value = config
        for part in field.split("."):
            value = value[part]
        if default != "see there":
            assert default == (f"`{value}`" if value != "" else "empty"), field


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_of_the_repository_leads_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_linked_in_the_index():
    index = (DOCS / "README.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


def test_every_long_test_that_is_listed_exists():
    for line in (REPOSITORY / "tests" / "long_tests.txt").read_text().splitlines():
        file, _, name = line.partition("::")
        assert line.startswith("#") or f"def {name}" in (REPOSITORY / file).read_text(), line


def test_the_api_pages_are_built_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PDOC_ALLOW_EXEC", "1")
    monkeypatch.syspath_prepend(str(DOCS))
    import build_api

    pages = build_api.build(tmp_path)
    assert pages == tmp_path / moclip_jax.__version__
    modules = build_api.modules()
    assert {
        "moclip_jax",
        "moclip_jax.main",
        "moclip_jax.input_pipeline.datasets.definition",
    } <= set(modules)
    for module in modules:
        assert (pages / f"{module.replace('.', '/')}.html").is_file(), module
    # Docstrings are read as such, not shown as they are typed.
    page = (pages / "moclip_jax/input_pipeline/video/motion_vectors.html").read_text()
    assert "<h6" in page and "VideoError" in page
    assert f"moclip_jax {moclip_jax.__version__}" in page
