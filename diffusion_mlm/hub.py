"""Repositories on the Hub: whether we may write there, and commits that are whole or not there at all."""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import HubUnavailableError, NotAllowedError
from .publication import CARD, is_published, require_nothing_private

logger = logging.getLogger(__name__)

_WAITS = (1.0, 4.0)  # seconds before what failed is tried again
_CARD_SIGNATURE = "<!-- diffusion-mlm card "


class _TransientError(HubUnavailableError):
    """Another try may succeed: the Hub is busy, the connection was cut, or somebody else has just committed."""


@dataclass(frozen=True)
class Published:
    """One commit: where it is, its sha, the files sent, whether a card was kept that was there, and who may read."""

    url: str
    sha: str
    files: tuple[str, ...]
    kept_card: bool
    private: bool


class HubRepository:
    """A repository that is written to.

    Args:
        repo_id (`str`): `name` (of the user who is logged in) or `owner/name`; checked here, without the network.
        repo_type (`str`): `model` or `space`.
        argument (`str`): how the user calls the id, for error messages.
        token (`str`, *optional*): by default that of HF_TOKEN or `hf auth login`.
        api (`huggingface_hub.HfApi`, *optional*): another Hub than that of HF_ENDPOINT.
        wait (`Callable`): called with the seconds before another try.

    Raises:
        ValueError: the id is none.
    """

    def __init__(
        self,
        repo_id: str,
        repo_type: str = "model",
        *,
        argument: str = "repo_id",
        token: str | None = None,
        api: Any = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(
                f"`{argument}` is {repo_id!r}, which is no valid id of a repository: letters, digits, `-`, `_` and "
                f"`.`, as `name` or `owner/name`."
            ) from error
        self.id, self.repo_type, self.argument = repo_id, repo_type, argument
        self.api: Any = api if api is not None else HfApi(token=token)
        self._wait = wait

    def require_writable(self) -> None:
        """Asks who we are and whether that name may write there; nothing is made.

        Raises:
            NotAllowedError: nobody is logged in, the token is wrong or expired or may only read, or the owner of the
                repository is somebody else.
            HubUnavailableError: the Hub does not answer.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise HubUnavailableError(f"`{self.argument}` is {self.id!r}, but HF_HUB_OFFLINE switches the Hub off.")
        with self._errors("asked about"):
            me = self.api.whoami()
        name = str(me.get("name"))
        self.id = self.id if "/" in self.id else f"{name}/{self.id}"
        owner = self.id.split("/")[0]
        roles = {of["name"]: of.get("roleInOrg") for of in me.get("orgs", []) if "name" in of}
        role = (me.get("auth", {}).get("accessToken") or {}).get("role")
        if owner != name and (owner not in roles or roles[owner] == "read"):
            raise NotAllowedError(
                f"`{self.argument}` is {self.id!r}, but {name} may not write there. Choose a repository of {name} or "
                f"log in as somebody else with `hf auth login`."
            )
        if role == "read":
            raise NotAllowedError(
                f"`{self.argument}` is {self.id!r}, but the token may only read. Make one that may write and log in "
                f"with `hf auth login`."
            )

    def create(self, private: bool = True) -> None:
        """Makes the repository; one that is there stays as public or private as it is."""
        kind = {"space_sdk": "gradio"} if self.repo_type == "space" else {}

        def make() -> None:
            made = self.api.create_repo(self.id, private=private, repo_type=self.repo_type, exist_ok=True, **kind)
            self.id = made.repo_id

        self._tries(make, "made")

    def publish(
        self,
        files: Mapping[str, bytes | Path],
        message: str,
        *,
        overwrite_card: bool = False,
        revision: str | None = None,
    ) -> Published:
        """One commit that makes the top of the repository hold exactly `files`, as far as they are ours.

        Weights and tokenizer files of an earlier push that are not among them go. A README.md is written only where
        there is none, or one that a push wrote and nobody has changed since, or with `overwrite_card`. What arrived is
        compared with what was sent.

        Raises:
            ValueError: a file holds a token or a path of this machine.
            NotAllowedError, HubUnavailableError: nothing was committed, or not what was sent.
        """
        places = {of.parent.absolute() for of in files.values() if isinstance(of, Path)}
        where = {str(Path.home()), os.getcwd(), *(str(of) for place in places for of in (place, place.parent))}
        require_nothing_private(files, self._token(), *(path for path in where if path.count(os.sep) > 1))
        return self._tries(lambda: self._commit(files, message, overwrite_card, revision), "written to")

    def _token(self) -> str | None:
        from huggingface_hub import get_token

        return self.api.token if isinstance(self.api.token, str) else get_token()

    def _commit(
        self, files: Mapping[str, bytes | Path], message: str, overwrite_card: bool, revision: str | None
    ) -> Published:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        about: dict[str, Any] = {"repo_id": self.id, "repo_type": self.repo_type}
        before = self.api.repo_info(**about, revision=revision)
        there = {file.rfilename for file in before.siblings or []}
        keeps_card = CARD in files and CARD in there and not overwrite_card and not self._is_our_card(before.sha)
        sent = {name: content for name, content in files.items() if name != CARD or not keeps_card}
        operations: list[Any] = [
            CommitOperationAdd(
                path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content)
            )
            for name, content in sent.items()
        ]
        if self.repo_type == "model":
            gone = sorted(name for name in there - set(sent) if is_published(name))
            operations += [CommitOperationDelete(path_in_repo=name) for name in gone]
        commit = self.api.create_commit(
            operations=operations, commit_message=message, parent_commit=before.sha, revision=revision, **about
        )
        self._require_arrived(operations, commit.oid)
        return Published(self._url, commit.oid, tuple(sent), keeps_card, bool(before.private))

    @property
    def _url(self) -> str:
        return f"{self.api.endpoint}/{'spaces/' if self.repo_type == 'space' else ''}{self.id}"

    def _is_our_card(self, sha: str | None) -> bool:
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = f"{self._url}/resolve/{sha}/{CARD}"
        response = get_session().get(url, headers=build_hf_headers(token=self.api.token), follow_redirects=True)
        hf_raise_for_status(response)
        return is_signed(response.text)

    def _require_arrived(self, operations: list[Any], sha: str) -> None:
        """Compares the files of the commit with what was sent."""
        from huggingface_hub import CommitOperationAdd

        added = {of.path_in_repo: of for of in operations if isinstance(of, CommitOperationAdd)}
        found = self.api.get_paths_info(self.id, list(added), revision=sha, repo_type=self.repo_type)
        arrived = {of.path: of.lfs.sha256 if of.lfs else of.blob_id for of in found if hasattr(of, "blob_id")}
        for name, operation in added.items():
            expected = {operation.upload_info.sha256.hex()}
            if arrived.get(name) not in expected:
                with operation.as_file() as file:  # what is no large file is known by the hash that git gives it
                    data = file.read()
                expected.add(hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())
            if arrived.get(name) not in expected:
                raise _TransientError(f"{self.id} holds something else than was sent for {name} at {sha}.")

    def _tries(self, action: Callable[[], Any], verb: str) -> Any:
        for wait in (*_WAITS, None):
            try:
                with self._errors(verb):
                    return action()
            except _TransientError as error:
                if wait is None:
                    raise HubUnavailableError(str(error)) from error
                logger.warning("%s Trying again.", error)
                self._wait(wait)
        return None

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        """Errors of huggingface_hub as ours."""
        try:
            yield
        except (ValueError, HubUnavailableError, NotAllowedError):
            raise
        except Exception as error:  # its kinds depend on the client that huggingface_hub uses
            subject = f"`{self.argument}` is {self.id!r}, which could not be {verb}"
            ours = _translated(error, subject) or _translated(error.__cause__, subject)
            if ours is None:
                raise
            raise ours from error


def _translated(error: BaseException | None, subject: str) -> HubUnavailableError | NotAllowedError | None:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

    if isinstance(error, LocalTokenNotFoundError):
        return NotAllowedError(f"{subject}: nobody is logged in. Use `hf auth login` or set HF_TOKEN.")
    if isinstance(error, RepositoryNotFoundError):
        return NotAllowedError(
            f"{subject}: the Hub shows no such repository to you. Check the id, or log in with `hf auth login`."
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return NotAllowedError(
                f"{subject}: the Hub refuses you (status {status}); the token is wrong, expired or may not write. Log "
                f"in with `hf auth login`."
            )
        kind = _TransientError if status in (408, 409, 412, 429) or status >= 500 else HubUnavailableError
        return kind(f"{subject}: the Hub answers with status {status}.")
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        return _TransientError(
            f"{subject}: the Hub cannot be reached, or the connection was cut ({type(error).__name__})."
        )
    if isinstance(error, RuntimeError) and error.__cause__ is None:  # what the Hub's storage client raises
        return _TransientError(f"{subject}: {' '.join(str(error).split())[:200].rstrip('.')}.")
    return None


def signed(card: str) -> str:
    """The card with a last line by which a later push knows that nobody has changed it."""
    text = card.rstrip("\n") + "\n"
    return f"{text}\n{_CARD_SIGNATURE}{hashlib.sha256(text.encode()).hexdigest()} -->\n"


def is_signed(card: str) -> bool:
    """Whether this is a card as `signed` made it, to the letter.

    >>> is_signed(signed("# A model")), is_signed(signed("# A model").replace("A", "My")), is_signed("# A model")
    (True, False, False)
    """
    text, found, _ = card.replace("\r\n", "\n").rpartition(f"\n{_CARD_SIGNATURE}")
    return bool(found) and signed(text) == card.replace("\r\n", "\n")
