"""The tree of errors. Every one says what was found, what was expected and what to do.

OutlastError
├── ConfigError               exit 78: the configuration is wrong, starting again would not help
│   ├── NotYetAvailable       an option that is reserved for later work was used
│   ├── UnsupportedValue      a state holds a value that cannot be stored exactly
│   ├── StateMismatch         the state handed in does not fit what is saved
│   ├── DataChanged           data set or loader differ from those of the save
│   ├── RunAlive              another live attempt owns this run
│   ├── NothingToResume       resume="must", and the store holds no checkpoint
│   ├── NotAStore             the place exists, and is not an Outlast run
│   ├── FormatTooNew          written by a newer format version
│   └── NoWholeCheckpoint     there are commits, and every one is damaged
├── StoreError                a store did not do what was asked
│   ├── StoreUnavailable      exit 74: out of reach, timed out or answering 5xx, after all retries
│   ├── StoreDenied           exit 74: no permission, or credentials that are refused
│   ├── StoreFull             exit 74: no space left (disk, quota or bucket)
│   ├── ObjectMissing         an object that should be there is not
│   └── ObjectDamaged         an object is shorter than recorded, or its digest is wrong
└── AgentLost                 the agent is gone and a new one cannot be started

Two more end a training script and are `SystemExit`s, so that no `except Exception` swallows them:

SystemExit
├── Preempted                 exit 75: this machine goes away, the state is durable (or the deadline passed)
└── Superseded                exit 76: a newer attempt has taken over
"""

from __future__ import annotations

EXIT_PREEMPTED = 75
EXIT_SUPERSEDED = 76
EXIT_STORE = 74
EXIT_CONFIG = 78
EXIT_INTERRUPTED = 130


class OutlastError(Exception):
    """Anything that Outlast raises, but for the two exits."""

    exit_code: int = 1


class ConfigError(OutlastError):
    """The configuration is wrong: starting again would not help."""

    exit_code = EXIT_CONFIG


class NotYetAvailable(ConfigError):
    """An option that is reserved for later work was used."""


class UnsupportedValue(ConfigError):
    """A state holds a value that cannot be stored exactly; the message names its path."""


class StateMismatch(ConfigError):
    """The state handed in does not fit what is saved; the message names every entry."""


class DataChanged(ConfigError):
    """Data set or loader differ from those of the save; the message names both values and the override."""


class RunAlive(ConfigError):
    """Another live attempt owns this run; the message names both hosts."""


class NothingToResume(ConfigError):
    """`resume="must"`, and the store holds no checkpoint of this run."""


class NotAStore(ConfigError):
    """The place exists, and is not an Outlast run."""


class FormatTooNew(ConfigError):
    """The run was written by a newer format version than this Outlast reads."""


class NoWholeCheckpoint(ConfigError):
    """There are commits, and every one is damaged; each is named with its fault and none is deleted."""


class StoreError(OutlastError):
    """A store did not do what was asked."""

    exit_code = EXIT_STORE


class StoreUnavailable(StoreError):
    """The store is out of reach, times out or answers 5xx, after all retries."""


class StoreDenied(StoreError):
    """The store refuses: no permission, or credentials that are missing, wrong or expired."""


class StoreFull(StoreError):
    """No space left on the disk, in the quota or in the bucket."""


class ObjectMissing(StoreError):
    """An object that should be there is not."""


class ObjectDamaged(StoreError):
    """An object is shorter than recorded, or its digest is wrong."""


class AgentLost(OutlastError):
    """The agent is gone and a new one cannot be started."""


class Preempted(SystemExit):
    """Ends the script: this machine goes away. The state is durable, or the deadline says it cannot be."""

    def __init__(self, message: str = "", code: int = EXIT_PREEMPTED) -> None:
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Superseded(SystemExit):
    """Ends the script: a newer attempt of this run has taken over."""

    def __init__(self, message: str = "") -> None:
        super().__init__(EXIT_SUPERSEDED)
        self.message = message

    def __str__(self) -> str:
        return self.message
