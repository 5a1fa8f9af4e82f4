"""From a name on the Hub to a folder: only files that are read, with names and sizes that were looked at before."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, is_offline_mode, snapshot_download

from polyrec.core.manifest import MANIFEST_NAME
from polyrec.core.swap import recover
from polyrec.hub.errors import NO_CONNECTION, explained
from polyrec.hub.files import matches
from polyrec.hub.push import hub_api
from polyrec.hub.safety import check_sizes

# What `from_pretrained` of transformers takes that is about finding files.
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only", "proxies", "user_agent")
_UNREAD = ("proxies", "user_agent")  # of earlier versions of transformers


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options out that are about finding files."""
    found = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    return {name: value for name, value in found.items() if name not in _UNREAD and value is not None}


def fetch(name: str | Path, patterns: Sequence[str], **options: Any) -> Path:
    """A local folder as it is; anything else is fetched from the Hub, of one commit.

    Args:
        name: a folder, or user/name.
        patterns: of the files that are read, see `polyrec.hub.files`; nothing else but the manifest is downloaded.
        options: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only`.

    Raises:
        ValueError: a file's name or size is not one that polyrec writes.
        OSError: what the Hub refused, with what mends it.
    """
    if recover(name).is_dir():
        return Path(name)
    repo_id, revision = str(name), options.pop("revision", None)
    if repo_id.count("/") > 1 or repo_id.startswith((".", "/", "~")):
        raise ValueError(f"no such folder: {repo_id}; a name on the Hub is user/name")
    patterns = [*patterns, MANIFEST_NAME]
    api, wanted = hub_api(), list(patterns)
    if is_offline_mode():
        options["local_files_only"] = True
    where = {name: value for name, value in options.items() if name in ("cache_dir", "local_files_only", "token")}
    with explained(repo_id, revision):
        # One commit for all files, the one known from before where there is no connection.
        commit = api.resolve_revision(repo_id, revision=revision, **where)
        if not options.get("local_files_only"):
            try:
                sizes = _listed(api, repo_id, commit.resolved, patterns, options.get("token"))
                wanted = [_literal(path) for path in sizes]  # a tree that is listed differently brings nothing else
            except NO_CONNECTION:
                options = {**options, "local_files_only": True}
        return Path(snapshot_download(repo_id, revision=commit, allow_patterns=wanted, **options))


def _listed(api: HfApi, repo_id: str, commit: str, patterns: Sequence[str], token: Any) -> dict[str, int]:
    there = api.model_info(repo_id, revision=commit, files_metadata=True, token=token)
    if there.id != repo_id:
        warnings.warn(f"{repo_id!r} has been renamed to {there.id!r}: use the new name", stacklevel=4)
    sizes = {file.rfilename: file.size or 0 for file in there.siblings or [] if matches(file.rfilename, patterns)}
    if not set(sizes) - {MANIFEST_NAME}:
        raise ValueError(f"{repo_id!r} has no file that polyrec reads: it is not a polyrec model")
    check_sizes(sizes, repo_id)
    return sizes


def _literal(path: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)
