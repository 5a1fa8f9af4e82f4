"""Errors of the Hub, with the fix."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

try:  # the client's own transport: httpx until huggingface_hub 2, which renamed it
    import httpx2 as httpx
except ImportError:
    import httpx  # type: ignore[no-redef]

_LOGIN = "log in with `hf auth login` (or set HF_TOKEN)"
NO_CONNECTION = (httpx.TransportError, OfflineModeIsEnabled)
# What `explained` lets out.
Refused = (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError)


@contextmanager
def explained(repo_id: str, revision: str | None = None, pushing: bool = False) -> Iterator[None]:
    """Inside, errors of the Hub say what to do; they stay what they are (`OSError`s, those of `huggingface_hub`).

    Args:
        pushing: the error came while writing.
    """
    try:
        yield
    except HfHubHTTPError as error:
        error.append_to_message(f"\n{_fix(error, repo_id, revision, pushing)}")
        raise
    except (LocalEntryNotFoundError, RevisionResolutionError) as error:
        raise LocalEntryNotFoundError(
            f"{repo_id!r} is not in the local cache, and the Hub was not reached: load it once while online, unset "
            f"HF_HUB_OFFLINE, or give the folder of a saved model ({error})"
        ) from error
    except NO_CONNECTION as error:
        raise ConnectionError(f"the Hub was not reached for {repo_id!r} ({error}): {_again(pushing)}") from error
    except RuntimeError as error:  # of the client's upload threads
        if not pushing or error.__cause__ is None:
            raise
        raise ConnectionError(f"{error} ({error.__cause__}): {_again(pushing)}") from error


def _again(pushing: bool) -> str:
    if pushing:
        return "push again, what was uploaded is not sent twice, and nothing is visible before all of it has arrived"
    return "try again, or set HF_HUB_OFFLINE=1 to use what is in the local cache"


def _fix(error: HfHubHTTPError, repo_id: str, revision: str | None, pushing: bool) -> str:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return f"{repo_id!r} is gated: accept its conditions on its page, then {_LOGIN}."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id!r} has no revision {revision!r}: give a branch, tag or commit that its page lists."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return (
            f"There is no {repo_id!r}, or it is private: check the spelling of user/name, and {_LOGIN} as somebody who "
            "may see it."
        )
    if status == 401:
        return f"The Hub does not know who you are: {_LOGIN}."
    if status == 403:
        need = "write to" if pushing else "read"
        return f"This account may not {need} {repo_id!r}: use a token with that right, or a name of your own."
    if status in (409, 412):
        return f"Somebody else changed {repo_id!r} meanwhile: nothing was written; push again."
    if status == 429:
        return f"Too many requests: wait, then {_again(pushing)}."
    if status >= 500:
        return f"The Hub has trouble: {_again(pushing)}."
    return f"The Hub refused the request for {repo_id!r}."
