"""Packages that an integration needs."""

from __future__ import annotations

from importlib.util import find_spec

from outlast._errors import ConfigError


def need(package: str, extra: str, what: str) -> None:
    """Find a package, without importing it.

    Raises:
        ConfigError: it is not installed; says how to get it.
    """
    if find_spec(package) is None:
        msg = f"{what} needs the package {package}, which is not installed: pip install 'outlast[{extra}]'"
        raise ConfigError(msg)
