"""Build the API pages of this version from the docstrings; warnings are errors.

    python docs/build_api.py OUT

They go to `OUT/VERSION`, so that those of several versions can be published side by side.
"""

import os
import sys
import warnings
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# Folder of the repository -> the name that it is installed under.
PACKAGES = {
    "moclip_jax": "moclip_jax",
    "input_pipeline": "moclip_jax.input_pipeline",
    "configs": "moclip_jax.configs",
}


def modules() -> list[str]:
    """Return the names of all modules; pdoc by itself leaves out those beside an `__all__`."""
    names = []
    for folder, package in PACKAGES.items():
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            parts = path.relative_to(REPOSITORY / folder).with_suffix("").parts
            names.append(".".join((package, *(part for part in parts if part != "__init__"))))
    return names


def build(out: Path) -> Path:
    """Write a page for every module of the packages, and a search over them, to a folder in `out`.

    Returns:
      The folder, which is named after the version.

    Raises:
      UserWarning: a docstring or a type cannot be shown.
    """
    # Some packages ask the system what it is when they are imported.
    os.environ["PDOC_ALLOW_EXEC"] = "1"
    import pdoc

    from moclip_jax import __version__

    pages = out / __version__
    pdoc.render.configure(
        docformat="google", show_source=True, footer_text=f"moclip_jax {__version__}"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        # Types inside optax and TFDS that refer to names which only their own modules know.
        warnings.filterwarnings(
            "ignore", r"Error parsing type annotation .*(ArrayTree|utils\.VersionOrStr)"
        )
        # A package is named before its modules and brings most of them.
        warnings.filterwarnings("ignore", "The module specification .* has already been added")
        pdoc.pdoc(*modules(), output_directory=pages)
    return pages


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/build_api.py OUT")
    sys.path.insert(0, str(REPOSITORY))
    print(f"API pages: {build(Path(sys.argv[1])) / 'index.html'}")
