"""What an object store's error means: whether to repeat the request, and what a user can do.

Stores raise errors of their libraries, which are recognised by name; none of the libraries is imported.
"""

import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

GIVE_UP_S = 30.0
"""After this time a store that does not answer is given up."""
SILENCE_S = 10.0
"""An attempt fails after this time without a single byte, if the store's library has such a limit."""
CONNECT_S = 5.0
"""The same while a connection is opened."""
SLOWEST_BYTES_PER_S = 256 << 10
"""A transfer may take as long as it would at this rate, in addition to the time above."""
MAX_ATTEMPTS = 5
FIRST_WAIT_S = 0.5

CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Variables that hold the credentials of a store, by the protocol of its URLs."""
ENDPOINTS = {"s3": "FSSPEC_S3_ENDPOINT_URL or AWS_ENDPOINT_URL", "az": "AZURE_STORAGE_CONNECTION_STRING"}
"""Variables that hold a store's address."""
SAME_STORE = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}
"""Other names of these protocols."""

_SILENT = {
    "aiohttp.ClientError",
    "azure.ServiceRequestError",
    "azure.ServiceResponseError",
    "botocore.ConnectionError",
    "botocore.HTTPClientError",
    "botocore.ResponseParserError",
    "fsspec.FSTimeoutError",
    "http.IncompleteRead",
    "requests.ConnectionError",
    "requests.Timeout",
}
_KEYLESS = {
    "botocore.NoCredentialsError",
    "botocore.PartialCredentialsError",
    "botocore.ProfileNotFound",
    "google.DefaultCredentialsError",
}
_GARBLED = {"botocore.FlexibleChecksumError"}
_BUSY = {errno.EAGAIN, errno.EBUSY, errno.ECONNRESET, errno.EPIPE, errno.EREMOTEIO, errno.ETIMEDOUT}
_REFUSED = {401, 403}
_TOO_MANY, _SERVER_FAULTS = 429, 500

Answer = TypeVar("Answer")


def is_silent(error: BaseException) -> bool:
    """Return whether the server did not answer, or stopped in the middle of an answer."""
    return any(_names(one) & _SILENT or isinstance(one, ConnectionError | TimeoutError) for one in _chain(error))


def is_refused(error: BaseException) -> bool:
    """Return whether the server refused access, or there are no credentials."""
    return any(
        isinstance(one, PermissionError) or _names(one) & _KEYLESS or _status(one) in _REFUSED for one in _chain(error)
    )


def may_pass(error: BaseException) -> bool:
    """Return whether the same request may succeed in a moment."""
    if is_refused(error) or isinstance(error, FileNotFoundError | FileExistsError):
        return False
    status = _status(error)
    is_busy = isinstance(error, OSError) and error.errno in _BUSY
    is_garbled = bool(_names(error) & _GARBLED)
    return is_silent(error) or is_busy or is_garbled or status == _TOO_MANY or status >= _SERVER_FAULTS


def explained(error: BaseException, protocol: str) -> str:
    """Return in one line what happened, and which variable or key to check.

    Args:
        error: What the store's library raised.
        protocol: The part of the URL before `://`.
    """
    store = SAME_STORE.get(protocol, protocol)
    variables = CREDENTIALS.get(store)
    if any(_names(one) & _KEYLESS for one in _chain(error)):
        hint = f"set {variables}" if variables else "give fsspec the store's credentials"
        return f"{_said(error)}: no usable credentials: {hint}"
    if is_refused(error):
        hint = f" (see {variables})" if variables else ""
        return f"{_said(error)}: the store refuses access: its key{hint} is wrong, expired, or may not do this here"
    if is_silent(error):
        hint = f", or its address is wrong (see {ENDPOINTS[store]})" if store in ENDPOINTS else ""
        return f"{_said(error)}: the server does not answer{hint}"
    return _said(error)


def persistently(attempt: Callable[[float], Answer], num_bytes: int = 0) -> Answer:
    """Repeat a request a few times while its error may pass; waits are random, so that workers spread out.

    Args:
        attempt: Asks once; takes the number of seconds after which to give up.
        num_bytes: Number of bytes to send or receive.
    """
    start_s = time.monotonic()
    transfer_s = num_bytes / SLOWEST_BYTES_PER_S
    for number in range(MAX_ATTEMPTS):
        try:
            return attempt(max(SILENCE_S, GIVE_UP_S - (time.monotonic() - start_s)) + transfer_s)
        except Exception as error:
            wait_s = random.uniform(0, FIRST_WAIT_S * 2**number)
            is_late = time.monotonic() - start_s + wait_s > GIVE_UP_S - SILENCE_S
            if number + 1 == MAX_ATTEMPTS or is_late or not may_pass(error):
                raise
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def _said(error: BaseException) -> str:
    """Return the store's message on one line; the name of an error without a message."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    speaks_for_itself = text and isinstance(error, OSError) and not _names(error) & _SILENT
    return text if speaks_for_itself else f"{type(error).__name__}: {text}".rstrip(": ")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _names(error: BaseException) -> set[str]:
    """Return `package.Class` of an error and of its bases."""
    return {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}


def _status(error: BaseException) -> int:
    """Return the HTTP status of an error; 0 if it has none."""
    response = getattr(error, "response", None)
    of_boto = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    for found in (of_boto, getattr(error, "status_code", None), getattr(error, "code", None)):
        if isinstance(found, int) or (isinstance(found, str) and found.isdecimal()):
            return int(found)
    return 0
