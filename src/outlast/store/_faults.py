"""What the errors of the object-store clients mean, said without the clients' internals and without our secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from outlast._errors import ObjectMissing, StoreDenied, StoreError, StoreFull, StoreUnavailable

_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = re.compile(
    r"NoSuchBucket|ContainerNotFound|specified (?:bucket|container) does not exist", re.IGNORECASE
)
_FULL = re.compile(
    r"QuotaExceeded|InsufficientStorage|StorageFull|AccountLimitExceeded|quota exceeded|no space left",
    re.IGNORECASE,
)
_CREDENTIAL_SOURCES = re.compile(
    r"169\.254\.|/latest/api/token|security-credentials|/oauth2|sts\.|metadata\.google|computeMetadata|login\.microsoft"
    r"|credential provider"
)
_SHOWN_CHARACTERS = 400
"""How much of a server's answer an error shows: the status and the code come first."""
_TOO_MANY = 429

_CREDENTIALS = {
    "s3": (
        "Unless AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set, the profile in ~/.aws or the machine's own role is asked. "
        "Set them, or give the machine a role"
    ),
    "gs": (
        "Unless GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT is set, the machine's own account is asked. "
        "Set one to the key file of a service account, or give the machine an account"
    ),
    "az": (
        "Unless AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN is set, the machine's own identity is asked. "
        "Set one of them, or give the machine an identity"
    ),
}
"""By the scheme of the store's URL: where credentials come from."""

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID",
    "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY", "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_TOKEN", "AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET",
    "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BEARER_TOKEN",
)  # fmt: skip
"""Environment variables whose values no error repeats."""
_SIGNATURES = re.compile(r"((?:\bsig|X-Amz-Signature|X-Amz-Security-Token)=)[^&\s\"']+|(Bearer )[\w.~+/=-]+")
"""Secrets of a request itself: a shared access signature is part of the address."""


def translated(error: Exception, name: str) -> StoreError:
    """Return the store's error for a client's; `name` begins with the store's URL. Only `StoreUnavailable` is worth another try."""
    text = str(error)
    status = status_of(error)
    said = f"{name}: {brief(error)}"
    if _CREDENTIAL_SOURCES.search(text.partition("\n")[0]):
        refused = "PermissionError" in text or (status is not None and 400 <= status < 500)
        kind = StoreDenied if refused else StoreUnavailable
        return kind(f"{said}. {_CREDENTIALS[name.partition(':')[0]]}")
    if _NO_BUCKET.search(text):
        what = "container" if name.startswith("az:") else "bucket"
        return StoreDenied(
            f"{said}. The {what} does not exist: create it, or correct the URL or the endpoint"
        )
    if status == 507 or (status != _TOO_MANY and _FULL.search(text)):
        return StoreFull(f"{said}. Free space there, or raise its quota")
    if isinstance(error, FileNotFoundError) and not _transient(status, text):
        return ObjectMissing(f"{name} does not exist")
    if "without LOCATION" in text or status in (301, 307, 308):
        return StoreDenied(f"{said}. Set AWS_REGION to the region of the bucket")
    if status is not None and 400 <= status < 500 and not _transient(status, text):
        return StoreDenied(f"{said}. Check the credentials, and what they may do there")
    return StoreUnavailable(said)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that a client's error tells of; None for time-outs and lost connections."""
    found = _STATUS.search(str(error))
    return int(found.group(1)) if found else None


def brief(error: Exception) -> str:
    """Return the start of an error in one line, without the client's internals and without our secrets."""
    text = " ".join(str(error).partition("\n\nDebug source")[0].split())
    return _without_secrets(text, os.environ)[:_SHOWN_CHARACTERS]


def _transient(status: int | None, text: str) -> bool:
    """Whether the store asks to repeat: 408, 409 OperationAborted, 425, 429, and a 400 for a body that came too slowly."""
    return status in (408, 409, 425, _TOO_MANY) or "RequestTimeout" in text or "NoSuchUpload" in text


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    for variable in SECRET_VARIABLES:
        if value := environment.get(variable):
            text = text.replace(value, f"${variable}")
    return _SIGNATURES.sub(r"\1\2...", text)
