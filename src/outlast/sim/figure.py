"""What a picture is drawn on, and how it becomes a file. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from outlast._errors import ConfigError


def blank(width: float, height: float) -> Any:
    """A figure to draw on, in inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        msg = "--plot needs matplotlib, which is not installed: pip install 'outlast[plot]'"
        raise ConfigError(msg) from None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write it into `path`, whose ending says the format.

    Raises:
        ConfigError: the file cannot be written, or no format has that ending.
    """
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        msg = f"--plot {path} cannot be written: {error}; expected a name that ends in .png, .svg or .pdf"
        raise ConfigError(msg) from None
