"""Whole numbers on the command line: `--keep-last 2.9` is a mistake, not a 2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from outlast._errors import ConfigError

if TYPE_CHECKING:
    from cyclopts import Token


def _whole(_type: Any, tokens: Sequence[Token]) -> int:
    (token,) = tokens
    if re.fullmatch(r"[+-]?\d{1,18}", token.value) is None:
        msg = f"{token.keyword or 'the number'} is {token.value!r}; expected a whole number"
        raise ConfigError(msg)
    return int(token.value)


Whole = Annotated[int, Parameter(converter=_whole)]
MaybeWhole = Annotated[int | None, Parameter(converter=_whole)]
