"""A small Hub: an HTTP server on a free port of this machine that speaks what the Hub's client needs.

It keeps repos as lists of commits in memory, and does wrong what a test asks it to.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_" + "t" * 34


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # sha: {path: content}, the last one is main

    def commit(self, files: dict[str, bytes]):
        self.commits[hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()] = files

    @property
    def sha(self) -> str:
        return list(self.commits)[-1]


@dataclass
class Fault:
    """What goes wrong with requests whose path contains `path`, so many times."""

    path: str
    status: int | None = None  # answer with this,
    code: str = ""  # and the Hub's word for what it means
    drop_after: int | None = None  # break off a file after so many bytes
    corrupt: bool = False  # send a file with its last bit flipped
    times: float = float("inf")


def is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def etag_of(path: str, content: bytes) -> str:
    if is_lfs(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def describe(files: dict[str, bytes]) -> list[dict]:
    entries = []
    for path, content in files.items():
        entry = {"type": "file", "path": path, "size": len(content), "oid": etag_of(path, content)}
        if is_lfs(path):
            entry["lfs"] = {"oid": etag_of(path, content), "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return entries


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        # models and datasets are one kind of repo here
        path = path.replace("/api/datasets/", "/api/models/").removeprefix("/datasets")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        hub.requests.append((self.command, path, self.headers.get("Range")))
        faults = (f for f in hub.faults if f.path in path and f.times > 0)
        self.fault = next((f for f in faults if f.status or self.command == "GET"), None)
        if self.fault:
            self.fault.times -= 1
            if self.fault.status:
                return self.answer({"error": "asked for"}, self.fault.status, X_Error_Code=self.fault.code)
        for pattern, method in self.ROUTES.items():
            if match := re.fullmatch(pattern, path):
                return method(self, *match.groups(), body=body)
        self.answer({"error": "Not here"}, 404)

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self, content: dict | list | bytes, status: int = 200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.drop_after is not None:
            self.wfile.write(content[: self.fault.drop_after])
            self.close_connection = True
        else:
            self.wfile.write(content)

    # Reading

    def find(self, name: str, revision: str = "main"):
        """The repo and the files of a revision, or nothing, once the client has been told so."""
        repo = self.server.hub.repos.get(name)
        if self.headers.get("Authorization") and not self.is_known():
            self.answer({}, 401, X_Error_Message="Invalid credentials in Authorization header")
            return None, None, None
        if repo is None or (repo.private and not self.is_known()):
            self.answer({}, 404 if self.is_known() else 401, X_Error_Code="RepoNotFound")
            return None, None, None
        sha = repo.sha if revision == "main" else revision
        if sha not in repo.commits:
            self.answer({}, 404, X_Error_Code="RevisionNotFound")
            return None, None, None
        return repo, sha, repo.commits[sha]

    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def info(self, name, revision, body):
        repo, sha, files = self.find(name, revision or "main")
        if repo:
            siblings = [{"rfilename": path} for path in files]
            self.answer({"id": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def tree(self, name, revision, folder, body):
        repo, _, files = self.find(name, revision)
        if repo:
            prefix, inside, folders = f"{folder}/" if folder else "", {}, set()
            for path, content in files.items():
                if not path.startswith(prefix):
                    continue
                if "recursive=false" in self.path and "/" in (rest := path.removeprefix(prefix)):
                    folders.add(prefix + rest.partition("/")[0])
                    continue
                inside[path] = content
            self.answer(describe(inside) + [{"type": "directory", "path": path, "oid": ""} for path in folders])

    def paths_info(self, name, revision, body):
        repo, _, files = self.find(name, revision)
        if repo:
            paths = parse_qs(body.decode())["paths"]
            folders = [path for path in paths if any(file.startswith(f"{path}/") for file in files)]
            entries = describe({path: files[path] for path in paths if path in files})
            self.answer(entries + [{"type": "directory", "path": path, "oid": ""} for path in folders])

    def resolve(self, name, revision, path, body):
        repo, sha, files = self.find(name, revision)
        if not repo:
            return
        headers = {"X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if path not in files:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound", **headers)
        content = files[path]
        headers["ETag"] = f'"{etag_of(path, content)}"'
        if self.fault and self.fault.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part:
            first, size = int(part[1]), len(content)
            last = int(part[2] or size - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{size}"
            return self.answer(content[first : last + 1], 206, **headers)
        self.answer(content, **headers)

    # Writing

    def create(self, body):
        request, repos = json.loads(body), self.server.hub.repos
        name = f"{request['organization']}/{request['name']}"
        if not self.is_known():
            return self.answer({"error": "Invalid username or password."}, 401)
        exists = name in repos
        if not exists:
            private = request.get("private") or request.get("visibility") == "private"
            repos[name] = Repo(private)
            repos[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer({"url": f"{self.server.hub.url}/{name}"}, 409 if exists else 200)

    def whoami(self, body):
        self.answer({"type": "user", "name": "me"} if self.is_known() else {}, 200 if self.is_known() else 401)

    def validate_yaml(self, body):
        self.answer({"errors": [], "warnings": []})

    def preupload(self, name, revision, body):
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = [{"path": p, "uploadMode": "lfs" if is_lfs(p) else "regular", "shouldIgnore": False} for p in files]
        self.answer({"files": modes})

    def lfs_batch(self, name, body):
        href = f"{self.server.hub.url}/lfs/"
        objects = json.loads(body)["objects"]
        self.answer({"objects": [o | {"actions": {"upload": {"href": href + o["oid"]}}} for o in objects]})

    def lfs_put(self, oid, body):
        sound = hashlib.sha256(body).hexdigest() == oid
        if sound:
            self.server.hub.lfs[oid] = body
        self.answer({}, 200 if sound else 400)

    def commit(self, name, revision, body):
        repo, sha, files = self.find(name, revision)
        if not repo:
            return
        if not self.is_known():
            return self.answer({"error": "You may not write here"}, 403)
        files = dict(files)
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    if value.get("parentCommit", repo.sha) != repo.sha:
                        return self.answer({"error": "The repo has changed meanwhile"}, 412)
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.hub.lfs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        repo.commit(files)
        self.answer({"commitUrl": f"{self.server.hub.url}/{name}/commit/{repo.sha}", "commitOid": repo.sha})

    NAME = r"([^/]+/[^/]+?)"
    ROUTES = {
        r"/api/repos/create": create,
        r"/api/validate-yaml": validate_yaml,
        r"/api/whoami-v2": whoami,
        rf"/api/models/{NAME}/preupload/(.+)": preupload,
        rf"/api/models/{NAME}/commit/(.+)": commit,
        rf"/api/models/{NAME}/tree/([^/]+)(?:/(.+))?": tree,
        rf"/api/models/{NAME}/paths-info/([^/]+)": paths_info,
        rf"/api/models/{NAME}(?:/revision/(.+))?": info,
        rf"/{NAME}/resolve/([^/]+)/(.+)": resolve,
        rf"/{NAME}\.git/info/lfs/objects/batch": lfs_batch,
        r"/lfs/(\w+)": lfs_put,
    }


class Hub:
    """`with Hub() as hub:` runs one at `hub.url`."""

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, range

    def __enter__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
