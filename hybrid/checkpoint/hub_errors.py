"""What goes wrong between this machine and a hub, told as what to do about it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hybrid.checkpoint.source_name import HubName
from profiler.artifacts import DISK_FULL, UserError, format_size, free_bytes

LOGIN = "hf auth login (or HF_TOKEN=…)"
AGAIN = "the same command goes on where this one stopped"
OFFLINE = "HF_HUB_OFFLINE is set, so nothing is downloaded (unset it to download)"
BAD_KEY, BUSY = 401, 429


class HubUnreachableError(UserError):
    """The hub cannot be asked: no network, offline mode, or it is down. What was downloaded before can still serve."""


@contextlib.contextmanager
def explained(name: HubName, endpoint: str, folder: Path) -> Iterator[None]:
    """Turn what the hub, the network or the disk of `folder` says into a `UserError` that names what mends it.

    Raises:
        HubUnreachableError: the hub could not be asked.
        UserError: it answered no, or the disk is full.
    """
    page = f"{endpoint}/{name.repository}"
    try:
        yield
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError, and so before it
        raise UserError(
            f"{name.repository} is gated: accept its conditions on {page}, then log in with: {LOGIN}"
        ) from error
    except DisabledRepoError as error:
        raise UserError(f"{name.repository} was disabled by the hub; see {page}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{name.repository} has no revision {name.revision}; see {page}/commits/main") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{name.repository} is not on {endpoint}, nor a folder here: look for a slip of the pen; if it is private, "
            f"log in with: {LOGIN}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise HubUnreachableError(_unreachable(endpoint)) from error
    except EntryNotFoundError as error:
        raise UserError(f"{name} lacks a file that it lists; see {page}/tree/main") from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError(OFFLINE) from error
    except HfHubHTTPError as error:
        raise _answered(error, endpoint) from error
    except HFValidationError as error:
        raise UserError(f"{name} is no name on a hub: {error}") from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise UserError(
                f"the disk of {folder} is full ({format_size(free_bytes(folder))} free): make room, or name another "
                f"folder with HF_HOME=FOLDER; {AGAIN}"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{folder} cannot be written; name another folder with HF_HOME=FOLDER") from error
        raise HubUnreachableError(f"{_unreachable(endpoint)} ({error}); {AGAIN}") from error


def connection_lost(name: HubName, endpoint: str, error: Exception) -> HubUnreachableError:
    """What to say where requests fail for no reason that the hub gave."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return HubUnreachableError(f"the connection to {endpoint} was lost while {name} was downloaded ({reason}); {AGAIN}")


def _answered(error: HfHubHTTPError, endpoint: str) -> UserError:
    """What the hub's status says."""
    status = error.response.status_code
    if status == BAD_KEY:
        return UserError(f"{endpoint} does not accept your token; log in again with: {LOGIN}")
    if status == BUSY:
        return HubUnreachableError(
            f"{endpoint} takes no more requests from here for now (429): wait a few minutes, or log in; {AGAIN}"
        )
    if status >= 500:
        return HubUnreachableError(f"{endpoint} is not well ({status}); try again later: {AGAIN}")
    return UserError(f"{endpoint} refuses ({status}): {' '.join(str(error).split())[:200]}")


def _unreachable(endpoint: str) -> str:
    return f"{endpoint} cannot be reached: look at the network, or name a mirror with HF_ENDPOINT=URL"
