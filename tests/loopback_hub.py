"""A Hub on the loopback address: repositories in memory, behind what a push and a load use of the HTTP interface.

Faults are put in beforehand: a status, a cut connection, somebody else's commit in between. Every request is noted.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_" + "CanaryTokenOfTheTestsNeverPublished"[:34]
LARGE = (".safetensors", ".pt", ".pth", ".png")


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]
    large: set[str]  # names whose content went through the large-file store


@dataclass
class Repository:
    private: bool
    commits: list[Commit]
    tags: dict[str, Commit] = field(default_factory=dict)

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.head
        named = (commit for commit in self.commits if commit.sha == revision)
        return self.tags.get(revision) or next(named, None)

    def add(self, message: str, changes: dict[str, bytes | None], large: frozenset[str] = frozenset()) -> Commit:
        files = {**self.head.files, **changes}
        files = {name: data for name, data in files.items() if data is not None}
        sha = hashlib.sha1(
            f"{self.head.sha}{message}{sorted(map(hash, files))}{len(self.commits)}".encode()
        ).hexdigest()
        self.commits.append(Commit(sha, message, files, (self.head.large | large) & files.keys()))
        return self.head


@dataclass
class Fault:
    """What happens to the next `times` requests of this method whose path matches."""

    method: str
    path: str
    status: int | None = None  # None: the connection is cut after half of the body has been read
    times: int = 1
    before: Callable[[], None] | None = None  # called, and then the request is answered as usual


@dataclass
class LoopbackHub:
    """The state; `serving()` gives it an address. `me` may write to its own name and that of `organisation`."""

    me: str = "me"
    role: str = "write"
    token: str = TOKEN
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    endpoint: str = ""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def files(self, name: str, kind: str = "model") -> dict[str, bytes]:
        return self.repository(name, kind).head.files

    def make(self, kind: str, name: str, private: bool) -> Repository:
        first = Commit(hashlib.sha1(name.encode()).hexdigest(), "initial commit", {".gitattributes": b""}, set())
        return self.repositories.setdefault((kind, name), Repository(private, [first]))

    @contextmanager
    def serving(self) -> Iterator["LoopbackHub"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
        server.daemon_threads = True
        server.hub = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.hub: LoopbackHub = self.server.hub
        url = urlsplit(self.path)
        self.query, path = parse_qs(url.query), unquote(url.path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            fault = next(
                (of for of in self.hub.faults if of.times and of.method == self.command and re.search(of.path, path)),
                None,
            )
            if fault is not None:
                fault.times -= 1
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.before is None and fault.status is None:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        self.body = self.rfile.read(length)
        if fault is not None and fault.before is None:
            self.refuse(fault.status, "", "put in by the test")
            return
        with self.hub.lock:
            if fault is not None:
                fault.before()
            for pattern, answer in ROUTES:
                if found := re.fullmatch(pattern, path):
                    answer(self, **found.groupdict())
                    return
            self.refuse(404, "", f"the loopback Hub has no {path}")

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, code, message, **headers):
        self.answer({"error": message}, status, X_Error_Code=code, X_Error_Message=message, **headers)

    def is_me(self):
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def repository_of(self, kind, name, writes=False):
        """The repository, or None once it has been refused."""
        found = self.hub.repositories.get((kind, name))
        if writes and not self.is_me():
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif found is None or (found.private and not self.is_me()):
            self.refuse(401 if found else 404, "RepoNotFound", "Repository not found")
        else:
            return found
        return None

    def whoami(self):
        if not self.is_me():
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        orgs = [{"name": "organisation", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
        token = {"accessToken": {"role": self.hub.role, "displayName": "test"}}
        return self.answer({"type": "user", "name": self.hub.me, "orgs": orgs, "auth": token})

    def create(self):
        if not self.is_me():
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        wish = json.loads(self.body)
        kind, name = wish.get("type") or "model", f"{wish.get('organization') or self.hub.me}/{wish['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repositories:
            return self.answer({"error": "You already created this repo", "url": url}, 409)
        private = wish.get("private") or wish.get("visibility") == "private"
        self.hub.make(kind, name, bool(private))
        return self.answer({"url": url, "name": name, "id": "0" * 24})

    def validate(self):
        text = json.loads(self.body)["content"]
        errors = [] if text.startswith("---\n") else [{"message": "no metadata"}]
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def info(self, kind, name, revision="main"):
        if (found := self.repository_of(kind, name)) is None:
            return None
        if (commit := found.at(revision or "main")) is None:
            return self.refuse(404, "RevisionNotFound", "Revision not found")
        facts = {"id": name, "sha": commit.sha, "private": found.private, "tags": [], "downloads": 0, "likes": 0}
        return self.answer({**facts, "siblings": [{"rfilename": of} for of in sorted(commit.files)]})

    def preupload(self, kind, name, revision):
        if (found := self.repository_of(kind, name, writes=True)) is None:
            return None
        commit, files = found.at(revision), []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            known = [entry(commit, path)] if path in commit.files else []
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": next((of.get("lfs", of)["oid"] for of in known), None),
                }
            )
        return self.answer({"files": files})

    def batch(self, name):
        objects = []
        for of in json.loads(self.body)["objects"]:
            href = f"{self.hub.endpoint}/store/{of['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append({**of, **({} if of["oid"] in self.hub.store else {"actions": actions})})
        self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.refuse(400, "", "another content than announced")
        self.hub.store[oid] = self.body
        return self.answer({})

    def verify(self, oid):
        self.answer({}, 200 if oid in self.hub.store else 404)

    def commit(self, kind, name, revision):
        if (found := self.repository_of(kind, name, writes=True)) is None:
            return None
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, found.head.sha):
            return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
        changes, large = {}, set()
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                changes[value["path"]] = self.hub.store[value["oid"]]
                large.add(value["path"])
            elif line["key"] == "deletedFile":
                changes[value["path"]] = None
        made = found.add(header["summary"], changes, frozenset(large))
        url = f"{self.hub.endpoint}/{name}/commit/{made.sha}"
        return self.answer({"success": True, "commitOid": made.sha, "commitUrl": url})

    def paths(self, kind, name, revision):
        if (found := self.repository_of(kind, name)) is None:
            return None
        commit, form = found.at(revision), self.body.decode()
        names = json.loads(form)["paths"] if form.startswith("{") else parse_qs(form).get("paths", [])
        return self.answer([entry(commit, of) for of in names if of in commit.files])

    def tree(self, kind, name, revision):
        if (found := self.repository_of(kind, name)) is None:
            return None
        commit = found.at(revision)
        return self.answer([entry(commit, of) for of in sorted(commit.files)])

    def resolve(self, space, name, revision, path):
        if (found := self.repository_of("space" if space else "model", name)) is None:
            return None
        if (commit := found.at(revision)) is None:
            return self.refuse(404, "RevisionNotFound", "Revision not found")
        if path not in commit.files:
            return self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit.sha)
        facts = entry(commit, path)
        tag = facts.get("lfs", facts)["oid"]
        return self.answer(commit.files[path], ETag=f'"{tag}"', X_Repo_Commit=commit.sha)


def entry(commit: Commit, path: str) -> dict:
    data = commit.files[path]
    facts: dict = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    if path in commit.large:
        facts["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return facts


_NAME = r"(?P<name>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>model|space)s/{_NAME}"
ROUTES = [
    (r"/api/whoami-v2", _Answers.whoami),
    (r"/api/repos/create", _Answers.create),
    (r"/api/validate-yaml", _Answers.validate),
    (_API, _Answers.info),
    (rf"{_API}/revision/(?P<revision>[^/]+)", _Answers.info),
    (rf"{_API}/preupload/(?P<revision>[^/]+)", _Answers.preupload),
    (rf"{_API}/commit/(?P<revision>[^/]+)", _Answers.commit),
    (rf"{_API}/paths-info/(?P<revision>[^/]+)", _Answers.paths),
    (rf"{_API}/tree/(?P<revision>[^/]+).*", _Answers.tree),
    (rf"(?:/spaces)?/{_NAME}\.git/info/lfs/objects/batch", _Answers.batch),
    (r"/store/(?P<oid>[0-9a-f]{64})/verify", _Answers.verify),
    (r"/store/(?P<oid>[0-9a-f]{64})", _Answers.put),
    (rf"/(?P<space>spaces/)?{_NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Answers.resolve),
]
