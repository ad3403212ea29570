"""Texts with gaps, beside this file, and filling the gaps."""

import functools
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Returns a template's text with its gaps filled.

    Args:
      template: name of a file beside this one; in `*.html.jinja` every value is escaped, because
        names of files and classes are the user's and none of them is markup.
      **values: what its gaps name; one that is missing is an error.
    """
    return _environment().get_template(template).render(**values)


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("moclip_jax.reporting"),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
