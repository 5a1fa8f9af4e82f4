"""A Hub on this machine that speaks enough of its API for the real client, and fails when it is told to.

Repositories are lists of commits, each a whole tree {path: (oid, content, stored large?)}; a commit appears in one
assignment, as on the Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".npy")
TOKENS = {"token-of-ann": "ann", "token-of-bob": "bob"}


@dataclass
class Entry:
    content: bytes
    large: bool

    @property
    def oid(self) -> str:
        """As the client compares it: git's hash of small files, sha256 of large ones."""
        if self.large:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass
class Commit:
    sha: str
    message: str
    tree: dict[str, Entry]


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = [c for branch in self.branches.values() for c in branch]
        return next((c for c in commits if c.sha == revision), None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        commit = self.find(revision)
        return {} if commit is None else {path: entry.content for path, entry in commit.tree.items()}

    def history(self, branch: str = "main") -> list[str]:
        return [c.message for c in self.branches[branch]]


class Refusal(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, headers


class HubServer:
    """Start with `with HubServer() as hub:`; its address is `hub.url`.

    Args:
        fault: called with (number of the request from 0, method, path) before each; may return "lost" (the connection
            is cut before anything happens), "unanswered" (it happens, and the answer is cut), a `Refusal` to answer
            with, or None.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.renamed: dict[str, str] = {}
        self.log: list[str] = []
        self.fault: Callable[[int, str, str], Any] = lambda number, method, path: None
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        self.repos, self.large, self.renamed, self.log = {}, {}, {}, []
        self.fault = lambda number, method, path: None

    def put(self, repo_id: str, files: dict[str, bytes], **options: Any) -> Repo:
        """A repository with these files, as if it had been pushed."""
        repo = self.repos.setdefault(repo_id, Repo(**options))
        self.commit(repo, "main", "put", {p: Entry(c, p.endswith(LARGE)) for p, c in files.items()})
        return repo

    def commit(self, repo: Repo, branch: str, message: str, tree: dict[str, Entry]) -> Commit:
        commits = repo.branches.get(branch, [])
        told = "".join(f"{p}{e.oid}" for p, e in sorted(tree.items())) + (commits[-1].sha if commits else "")
        commit = Commit(hashlib.sha1((told + message).encode()).hexdigest(), message, tree)
        repo.branches[branch] = [*commits, commit]
        return commit


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: the second would wait 40 ms until the first is acknowledged

    def log_message(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _handle(self) -> None:
        hub = self.server_hub
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            raw = b"".join(self._chunks())
        url = urlsplit(self.path)
        with hub.lock:
            number = len(hub.log)
            hub.log.append(f"{self.command} {url.path}")
        fault = hub.fault(number, self.command, url.path)
        if fault == "lost":
            return self._cut()
        try:
            if isinstance(fault, Refusal):
                raise fault
            with hub.lock:
                status, headers, body = self._route(unquote(url.path), parse_qs(url.query), raw)
        except Refusal as refusal:
            status = refusal.status
            headers = {n.replace("_", "-"): v for n, v in refusal.headers.items()}
            headers |= {"X-Error-Code": refusal.code} if refusal.code else {}
            headers |= {"X-Error-Message": refusal.message} if refusal.message else {}
            body = json.dumps({"error": refusal.message}).encode()
        if fault == "unanswered":
            return self._cut()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            if fault == "half":
                self.wfile.write(body[: len(body) // 2])
                return self._cut()
            self.wfile.write(body)

    def _chunks(self) -> Any:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()

    # ------------------------------------------------------------------ API
    def _route(self, path: str, query: dict[str, list[str]], raw: bytes) -> tuple[int, dict[str, str], bytes]:
        who = TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        for method, pattern, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method in (self.command, "GET" if self.command == "HEAD" else self.command):
                return answer(self, who, query, raw, *found.groups())
        raise Refusal(404, message=f"no such page {path}")

    def _json(self, values: Any, status: int = 200, **headers: str) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json", **headers}, json.dumps(values).encode()

    def _repo(self, who: str | None, repo_id: str, write: bool = False) -> Repo:
        hub = self.server_hub
        repo = hub.repos.get(repo_id)
        if repo_id in hub.renamed:
            to = self.path.replace(repo_id, hub.renamed[repo_id], 1)
            raise Refusal(307, Location=to)
        owner = repo_id.split("/")[0]
        if repo is None or (repo.private and who != owner):
            raise Refusal(401 if who is None else 404, "RepoNotFound", "Repository not found")
        if write and who is None:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        if write and who != owner:
            raise Refusal(403, message="You don't have the required permissions")
        return repo

    def _at(self, repo: Repo, revision: str) -> Commit:
        commit = repo.find(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def whoami(self, who: str | None, query: Any, raw: bytes) -> Any:
        if who is None:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        return self._json({"type": "user", "name": who, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, who: str | None, query: Any, raw: bytes) -> Any:
        asked, hub = json.loads(raw), self.server_hub
        if who is None:
            raise Refusal(401, message="Invalid credentials in Authorization header")
        if (asked["organization"] or who) != who:
            raise Refusal(403, message="You don't have the rights to create a model under this namespace")
        repo_id = f"{who}/{asked['name']}"
        if repo_id in hub.repos:
            return self._json({"error": "You already created this model repo", "url": f"{hub.url}/{repo_id}"}, 409)
        repo = hub.repos[repo_id] = Repo(private=asked.get("visibility") == "private" or bool(asked.get("private")))
        hub.commit(repo, "main", "initial commit", {".gitattributes": Entry(b"*.safetensors filter=lfs\n", False)})
        return self._json({"url": f"{hub.url}/{repo_id}", "id": repo_id, "name": repo_id})

    def validate(self, who: str | None, query: Any, raw: bytes) -> Any:
        return self._json({"warnings": [], "errors": []})

    def branch(self, who: str | None, query: Any, raw: bytes, repo_id: str, branch: str) -> Any:
        repo = self._repo(who, repo_id, write=True)
        if branch in repo.branches:
            raise Refusal(409, message="Reference already exists")
        repo.branches[branch] = list(repo.branches["main"])
        return self._json({})

    def preupload(self, who: str | None, query: Any, raw: bytes, repo_id: str, revision: str) -> Any:
        repo = self._repo(who, repo_id, write="create_pr" not in query)
        tree = self._at(repo, revision).tree
        files = []
        for file in json.loads(raw)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LARGE) else "regular"
            oid = tree[path].oid if path in tree else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._json({"files": files})

    def batch(self, who: str | None, query: Any, raw: bytes, repo_id: str) -> Any:
        self._repo(who, repo_id, write="ref" in json.loads(raw))  # a proposal names no branch that it would write to
        hub, objects = self.server_hub, []
        for o in json.loads(raw)["objects"]:
            known = o["oid"] in hub.large
            actions = {"upload": {"href": f"{hub.url}/lfs/{o['oid']}"}, "verify": {"href": f"{hub.url}/lfs/verify"}}
            objects.append({"oid": o["oid"], "size": o["size"]} | ({} if known else {"actions": actions}))
        return self._json({"transfer": "basic", "objects": objects})

    def upload(self, who: str | None, query: Any, raw: bytes, oid: str) -> Any:
        if hashlib.sha256(raw).hexdigest() != oid:
            raise Refusal(400, message="content does not match its hash")
        self.server_hub.large[oid] = raw
        return self._json({})

    def verify(self, who: str | None, query: Any, raw: bytes) -> Any:
        if json.loads(raw)["oid"] not in self.server_hub.large:
            raise Refusal(404, message="not uploaded")
        return self._json({})

    def write(self, who: str | None, query: Any, raw: bytes, repo_id: str, revision: str) -> Any:
        repo, hub = self._repo(who, repo_id, write="create_pr" not in query), self.server_hub
        head = self._at(repo, revision)
        tree, message = dict(head.tree), ""
        for line in raw.splitlines():
            key, value = (entry := json.loads(line))["key"], entry["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head.sha):
                    raise Refusal(412, message="A commit has happened since. Please refresh and try again.")
            elif key == "file":
                tree[value["path"]] = Entry(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in hub.large:
                    raise Refusal(400, message=f"LFS pointer to a file that was not uploaded: {value['path']}")
                tree[value["path"]] = Entry(hub.large[value["oid"]], True)
            elif key == "deletedFile":
                del tree[value["path"]]
        branch = "refs/pr/1" if "create_pr" in query else revision
        if branch == "refs/pr/1":
            repo.branches[branch] = list(repo.branches["main"])
        commit = hub.commit(repo, branch, message, tree)
        return self._json(
            {
                "commitUrl": f"{hub.url}/{repo_id}/commit/{commit.sha}",
                "commitOid": commit.sha,
                "pullRequestUrl": f"{hub.url}/{repo_id}/discussions/1",
            }
        )

    def info(self, who: str | None, query: Any, raw: bytes, repo_id: str, revision: str | None = None) -> Any:
        repo = self._repo(who, repo_id)
        commit = self._at(repo, revision or "main")
        files = [
            {"rfilename": path} | ({"size": len(e.content)} if "blobs" in query else {})
            for path, e in commit.tree.items()
        ]
        about = {"id": repo_id, "modelId": repo_id, "sha": commit.sha, "private": repo.private, "gated": repo.gated}
        return self._json({**about, "siblings": files, "tags": []})

    def tree(self, who: str | None, query: Any, raw: bytes, repo_id: str, revision: str) -> Any:
        commit = self._at(self._repo(who, repo_id), revision)
        files = []
        for path, e in commit.tree.items():
            files.append({"type": "file", "path": path, "size": len(e.content), "oid": e.oid})
            if e.large:
                files[-1]["lfs"] = {"oid": e.oid, "size": len(e.content), "pointerSize": 134}
        return self._json(files)

    def resolve(self, who: str | None, query: Any, raw: bytes, repo_id: str, revision: str, path: str) -> Any:
        repo, hub = self._repo(who, repo_id), self.server_hub
        commit = self._at(repo, revision)
        if repo.gated and who != repo_id.split("/")[0]:
            raise Refusal(403, "GatedRepo", "Access to this model is restricted", X_Repo_Commit=commit.sha)
        if path not in commit.tree:
            raise Refusal(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit.sha)
        entry = commit.tree[path]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{entry.oid}"', "Accept-Ranges": "bytes"}
        if entry.large:
            hub.large[entry.oid] = entry.content
            linked = {"X-Linked-Etag": f'"{entry.oid}"', "X-Linked-Size": str(len(entry.content))}
            elsewhere = hub.url.replace("127.0.0.1", "localhost")  # clients see whether large files lie on another host
            return 302, {**headers, **linked, "Location": f"{elsewhere}/cdn/{entry.oid}"}, b""
        return self._content(entry.content, headers)

    def cdn(self, who: str | None, query: Any, raw: bytes, oid: str) -> Any:
        return self._content(self.server_hub.large[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, content: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            return 206, headers, content[first : last + 1]
        return 200, {**headers, "Content-Length": str(len(content))}, content


_REPO, _REV = r"([\w.-]+/[\w.-]+)", r"([^/]+|refs/pr/\d+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create),
    ("POST", r"/api/validate-yaml", _Handler.validate),
    ("POST", rf"/api/models/{_REPO}/branch/{_REV}", _Handler.branch),
    ("POST", rf"/api/models/{_REPO}/preupload/{_REV}", _Handler.preupload),
    ("POST", rf"/api/models/{_REPO}/commit/{_REV}", _Handler.write),
    ("GET", rf"/api/models/{_REPO}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/revision/{_REV}", _Handler.info),
    ("GET", rf"/api/models/{_REPO}/tree/{_REV}/?", _Handler.tree),
    ("POST", r"/lfs/verify", _Handler.verify),
    ("PUT", r"/lfs/(\w+)", _Handler.upload),
    ("GET", r"/cdn/(\w+)", _Handler.cdn),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("GET", rf"/{_REPO}/resolve/{_REV}/(.+)", _Handler.resolve),
]
