"""Render the Jinja templates in this folder."""

import functools
from typing import Any

import jinja2


def render(template: str, **values: Any) -> str:
    """Return the text of a template in this folder with its values filled in.

    A missing value is an error. In `*.html.jinja` all values are escaped, because names of files
    and classes may contain markup.
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
