"""One commit for all of it: model, processor and card appear together or not at all."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

from polyrec.core.manifest import MANIFEST_NAME, excerpt
from polyrec.core.offers import offered
from polyrec.core.version import __version__
from polyrec.hub.card import minimal_card, tagged
from polyrec.hub.errors import explained
from polyrec.hub.files import CARD_NAME, KINDS, MODEL_CONFIG, NEVER, USERS_FILES, kind_of, matches
from polyrec.hub.scan import Scan, scan


class Saved(Protocol):
    """What can be written to a folder: a model, a processor."""

    @property
    def save_pretrained(self) -> Callable[..., Any]:
        """Writes it."""


def push(
    repo_id: str,
    *parts: Saved,
    include_users: bool = False,
    max_shard_size: int | str | None = None,
    **options: Any,
) -> CommitInfo:
    """Save models and processors and share them in one commit.

    Args:
        repo_id: user/name; without user, that of the token.
        parts: what is written side by side, e.g. a model and its processor.
        include_users: share rows about users, too, where a processor knows them.
        max_shard_size: of one file of weights, e.g. "5GB"; default: that of transformers.
        options: those of [`push_folder`].
    """
    sharded = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            part.save_pretrained(folder, **sharded, **({"include_users": True} if include_users else {}))
        return push_folder(folder, repo_id, include_users=include_users, **{"load": False, **options})


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    tags: Sequence[str] = (),
    include_users: bool = False,
    allow_columns: Sequence[str] = (),
    checkpoint: str | None = None,
    load: bool = True,
) -> CommitInfo:
    """Share a folder of a model, a processor or a whole run in one commit.

    The commit is the last request: before it, nothing is visible but an empty repository. Uploaded files stay on the
    Hub, so a push that was interrupted sends the rest only when it is repeated, and one that changes nothing makes no
    commit. Files of an earlier push that this one does not have (shards, statistics) go in the same commit; files that
    are not polyrec's stay.

    Args:
        repo_id: user/name; it is made if it is not there.
        private: whether a new repository is; None: as the account's settings say.
        token: of the account; None: that of `hf auth login` or HF_TOKEN.
        revision: branch, made if it is not there; None: main.
        create_pr: propose the commit instead, for repositories of others.
        commit_message, commit_description: of the commit.
        tags: further ones of the card.
        include_users: let rows about users leave, too; warns with their columns.
        allow_columns: columns that may leave although they look like e-mail addresses or phone numbers.
        checkpoint: of a checkpoint of a training: also share what continues it (states of optimizer, schedule and
            random numbers), in this folder of the repository, which [`from_pretrained`] does not read.
        load: load what is to be shared first, and recommend once, so that no broken folder is published.

    Raises:
        ValueError: something must not leave, see [`~polyrec.hub.scan.Scan.check`], there is nothing to share, or it
            cannot be loaded.
        OSError: what the Hub refused, with what mends it; `ConnectionError` if it was not reached.
    """
    folder = Path(folder)
    found = scan(folder, include_users, allow_columns)
    found.check()
    if not any(file.kind in ("model", "processor") for file in found.leaving):
        raise ValueError(f"{folder} holds no model: give a folder with {MODEL_CONFIG}, as save_pretrained writes it")
    if include_users:
        _warn_of_user_data(found)
    _warn_of_local_bases(folder)
    if load:
        offered("check_loads")(folder)
    api = hub_api()
    with explained(repo_id, revision, pushing=True):
        repo_id = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
        there = api.model_info(repo_id, revision=revision, token=token)
        held = {file.rfilename for file in there.siblings or []}
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(file.path, folder / file.path)
            for file in found.leaving
            if file.path not in (CARD_NAME, MANIFEST_NAME)
        ]
        recorded = excerpt(folder, (file.path for file in found.leaving))  # not of what stays here
        operations.append(CommitOperationAdd(MANIFEST_NAME, recorded.encode()))
        card = _card(folder, repo_id, tags, held)
        if card is not None:
            operations.append(CommitOperationAdd(CARD_NAME, card.encode()))
        if checkpoint is not None:
            names = _checkpointed(found)
            further = {f"{checkpoint}/{path}": folder / path for path in names}
            operations += [CommitOperationAdd(path, local) for path, local in further.items()]
            operations.append(CommitOperationAdd(f"{checkpoint}/{MANIFEST_NAME}", excerpt(folder, names).encode()))
            further[f"{checkpoint}/{MANIFEST_NAME}"] = folder / MANIFEST_NAME
            old = sorted(path for path in held if path.startswith(f"{checkpoint}/") and path not in further)
            operations += [CommitOperationDelete(path) for path in old]
        operations += [CommitOperationDelete(path) for path in _stale(held, found)]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or "Upload polyrec model",
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
            # Two pushes at a time: the later one is refused instead of mixing with the other's files.
            parent_commit=None if create_pr else there.sha,
        )


def hub_api() -> HfApi:
    """The client, which reads HF_ENDPOINT, HF_TOKEN and so on, and names polyrec as its user."""
    return HfApi(library_name="polyrec", library_version=__version__)


def _card(folder: Path, repo_id: str, tags: Sequence[str], held: set[str]) -> str | None:
    """The folder's own card with polyrec's metadata; else that of the Hub stays; else the least that one says."""
    path = folder / CARD_NAME
    if path.exists():
        return tagged(path.read_text(encoding="utf-8"), tags)
    return None if CARD_NAME in held else minimal_card(folder, repo_id, tags)


def _checkpointed(found: Scan) -> list[str]:
    """Files that continue a training: all of its checkpoint but what never leaves and rows about users."""
    users = {file.path for file in found.users}
    kept = [path for path in found.staying if path not in users and not matches(path.split("/")[-1], NEVER)]
    return [*(file.path for file in found.leaving if file.path not in (CARD_NAME, MANIFEST_NAME)), *kept]


def _stale(held: set[str], found: Scan) -> list[str]:
    """Files of an earlier push of the same parts that would not fit to those of this one, and those of users."""
    sent = {file.path for file in found.leaving}
    parts = {file.kind for file in found.leaving}
    if "processor" in parts:
        parts |= {"catalog of items", "statistics of items", "tokenizer"}
    return sorted(
        path
        for path in held - sent
        if (kind_of(path) in parts - {"card"} and kind_of(path) in KINDS)
        or ("processor" in parts and matches(path, USERS_FILES))
        or matches(path.split("/")[-1], NEVER)
    )


def _warn_of_local_bases(folder: Path) -> None:
    """A backbone that is left out of the weights is looked for by its name, which must mean something to others."""
    path = folder / MODEL_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key in ("text", "history_backbone"):
        base = config.get(key) or {}
        if base.get("tuning") in ("frozen", "lora") and Path(base["model"]).exists():
            warnings.warn(
                f"{key}.model is {base['model']!r}, a folder of this machine, and its weights are not among those that "
                "leave: push it and name it as user/name, or save the model with merge_and_save",
                stacklevel=3,
            )


def _warn_of_user_data(found: Scan) -> None:
    columns = "; ".join(f"{file.path}: {', '.join(file.columns)}" for file in found.users)
    if columns:
        warnings.warn(f"rows about users leave, because of include_users=True: {columns}", stacklevel=3)
    else:
        warnings.warn(
            "include_users=True, but there are no rows about users here: save the processor with "
            "save_pretrained(folder, include_users=True) first",
            stacklevel=3,
        )
