"""Names of all settings of a configuration."""

from collections.abc import Iterator

from ml_collections import ConfigDict


def config_fields(section: ConfigDict, prefix: str = "") -> Iterator[str]:
    """Yields dotted names; a data set's own options count as one setting."""
    for name, value in section.items():
        if hasattr(value, "items") and name != "options":
            yield from config_fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name
