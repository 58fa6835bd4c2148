"""One short question to the Hub before anything heavy: is this repository there, and may we read it?"""

import os
from typing import Any, TypedDict

from .errors import HubUnavailableError, NotAllowedError

_TIMEOUT_SECONDS = 5.0


class HubSource(TypedDict, total=False):
    """Which files of a repository are read, as whom, and where they are kept: by the names of transformers."""

    revision: str | None  # a branch, a tag or a commit
    token: str | bool | None
    cache_dir: str | os.PathLike[str] | None


def looks_like_path(name: str) -> bool:
    """Whether `name` can only be meant as a path: it starts like one, or has too many parts for a Hub id."""
    return not name or name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)


def require_repository(
    name: str, repo_type: str, argument: str, probe_file: str = "config.json", source: HubSource | None = None
) -> None:
    """Returns if `name` is a directory, is in the local cache, or is a repository that the Hub lets us read.

    Args:
        name (`str`): a directory or a Hub id.
        repo_type (`str`): `"model"` or `"dataset"`.
        argument (`str`): how the user calls it, for the message, for example `--model-name`.
        probe_file (`str`): a file whose presence in the cache is enough.
        source (`HubSource`, *optional*): of the Hub; the newest files and the user who is logged in by default.

    Raises:
        ValueError: `name` looks like a path and no such directory exists, or is no valid Hub id.
        HubUnavailableError: the network or the Hub does not answer, or knows no such repository or revision.
        NotAllowedError: the repository is there but closed to this user.
    """
    if os.path.isdir(name):  # `Path.is_dir` raises where a name is too long
        return
    if looks_like_path(name):
        raise ValueError(f"`{argument}` is {name!r}, and there is no such directory.")
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of whichever client this release of huggingface_hub uses
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    source = source or {}
    revision, token = source.get("revision"), source.get("token")

    def unavailable(why: str) -> HubUnavailableError:
        return HubUnavailableError(
            f"`{argument}` is {name!r}, which is no local directory, and {why}. Check the name and the network, or "
            f"pass a directory."
        )

    try:
        where: Any = {"cache_dir": source.get("cache_dir"), "revision": revision}
        if isinstance(try_to_load_from_cache(name, probe_file, repo_type=repo_type, **where), str):
            return
        if constants.HF_HUB_OFFLINE:
            raise unavailable("the Hub is switched off by HF_HUB_OFFLINE")
        api: Any = HfApi(token=token)
        info = api.repo_info(name, repo_type=repo_type, revision=revision, timeout=_TIMEOUT_SECONDS)
        if getattr(info, "gated", False):  # everybody may see it; whether its files may be read is another question
            api.auth_check(name, repo_type=repo_type)
    except HFValidationError as error:
        raise ValueError(f"`{argument}` is {name!r}, which is neither a directory nor a valid Hub id.") from error
    except GatedRepoError as error:
        raise NotAllowedError(
            f"`{argument}` is {name!r}, which is gated: ask for access on its page and log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise unavailable("the Hub knows no such repository (or it is private and you are not logged in)") from error
    except RevisionNotFoundError as error:
        raise unavailable(f"the Hub knows it, but no revision {revision!r} of it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise NotAllowedError(
                f"`{argument}` is {name!r}, which the Hub refuses to you (status {status}): log in with "
                f"`hf auth login`."
            ) from error
        raise unavailable(f"the Hub answers with status {status}") from error
    except (HTTPError, OSError) as error:
        if isinstance(error, HubUnavailableError):
            raise
        raise unavailable("the Hub cannot be reached") from error
