"""Credentials of an AWS profile (`~/.aws`, SSO, an assumed role), which the S3 client itself does not read."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from outlast._errors import ConfigError

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from obstore.store import S3Credential

_ASKED_AGAIN = timedelta(minutes=6)
"""The S3 client asks again when less than 5 minutes are left (object_store's TokenCache): so once a minute."""
_OTHER_SOURCES = (
    "AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE",
)  # fmt: skip
"""Where one of these is set, the S3 client finds credentials by itself."""


def profile_credentials(environment: Mapping[str, str]) -> Callable[[], S3Credential] | None:
    """Return a provider of the profile's credentials; None where the S3 client finds some by itself.

    A profile is used where `AWS_PROFILE` names one or a credentials file exists. botocore reads it, since it knows
    every kind of profile; a file that is changed is read again, so that renewed credentials count within a minute.

    Raises:
        ConfigError: `AWS_PROFILE` is set, and botocore is not installed.
    """
    if any(environment.get(name) for name in _OTHER_SOURCES):
        return None
    profile = environment.get("AWS_PROFILE")
    file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials").expanduser()
    if not profile and not file.is_file():
        return None
    try:
        import botocore.session  # noqa: F401 - whether it is there
    except ImportError as error:
        if not profile:
            return None
        msg = f"AWS_PROFILE={profile!r}: profiles are read by botocore: pip install botocore, or set AWS_ACCESS_KEY_ID"
        raise ConfigError(msg) from error
    return _Profile(file)


class _Profile:
    """A credential provider as obstore calls it, from several threads."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._changed_ns = -1
        self._found: Credentials | None = None

    def __call__(self) -> S3Credential:
        with self._lock:
            changed_ns = self._file.stat().st_mtime_ns if self._file.is_file() else 0
            if self._found is None or changed_ns != self._changed_ns:
                self._found, self._changed_ns = _look_up(), changed_ns
            now = self._found.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _ASKED_AGAIN,
        }


def _look_up() -> Credentials:
    import botocore.session
    from botocore.exceptions import BotoCoreError, HTTPClientError

    try:
        credentials = botocore.session.Session().get_credentials()
    except HTTPClientError:
        raise
    except BotoCoreError as error:
        raise PermissionError(str(error)) from error
    if credentials is None:
        msg = "botocore found no credentials in the AWS profile"
        raise PermissionError(msg)
    return credentials
