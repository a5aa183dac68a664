"""A hub on this machine: the few endpoints that downloads and uploads use, for repositories that are folders.

It answers as the real one does: commits, branches, large files with their SHA-256, and refusals with the hub's own
`X-Error-Code`. It notes which files were asked for, and takes uploads from whoever has one of its tokens.
"""

import base64
import hashlib
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from helpers import fresh

LARGE = (".safetensors", ".gguf", ".parquet")
_API = re.compile(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?/?")
_WRITE = re.compile(
    r"/(?:api/)?(models/|datasets/)?([\w-]+/[\w.-]+?)(?:\.git)?/(auth-check/write|preupload/.+|commit/.+|info/lfs/.+)"
)
_FILE = re.compile(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)")


def commit_of(name: str, branch: str) -> str:
    """The commit of a branch: 40 hex digits."""
    return hashlib.sha1(f"{name}@{branch}".encode()).hexdigest()


DRIVER = """
import contextlib, io, json, sys, time
from typer.testing import CliRunner
import torch, transformers, datasets
from tide_cache_cli.main import app
answers = []
for arguments in json.load(sys.stdin):
    started = time.monotonic()
    result = CliRunner().invoke(app, arguments)
    fault = result.exception
    assert fault is None or isinstance(fault, SystemExit), (arguments, repr(fault))
    answers.append([result.exit_code, result.stdout, result.stderr, time.monotonic() - started])
json.dump(answers, sys.stdout)
"""


@dataclass
class Repository:
    """One repository: a folder of files for each branch; whoever has no token may not have those of a gated one."""

    branches: dict[str, Path]
    is_gated: bool = False
    states_sha256: bool = True
    is_private: bool = False


@dataclass
class LocalHub:
    """The server; `with LocalHub() as hub`."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    served: list[str] = field(default_factory=list)
    uploads: Path | None = None
    """Folder of the repositories that are created; none are where it is None."""
    writers: dict[str, str] = field(default_factory=dict)
    """Tokens and the owner whose repositories each may write."""
    commits: list[list[str]] = field(default_factory=list)
    """Paths of each commit that was taken."""
    refuses_commits: bool = False
    """Whether uploads fail, as on a hub that has trouble."""

    port: int = 0
    home: Path = Path()

    def __enter__(self) -> "LocalHub":
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"hub": self}))
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def away(self, is_silent: bool = False) -> Iterator[None]:
        """Let nothing listen at its address for a while, or what takes every question and answers none."""
        self.__exit__()
        with ExitStack() as stack:
            if is_silent:
                silent = stack.enter_context(socket.socket())
                silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                silent.bind(("127.0.0.1", self.port))
                silent.listen()
            yield
        self.__enter__()

    @property
    def url(self) -> str:
        """For `HF_ENDPOINT`."""
        return f"http://127.0.0.1:{self.port}"

    def find(self, name: str, revision: str) -> tuple[str, Path] | None:
        """Commit and folder of a branch or commit."""
        for branch, folder in self.repositories[name].branches.items():
            if revision in (branch, commit_of(name, branch)):
                return commit_of(name, branch), folder
        return None


def run_commands(
    hub: LocalHub, commands: Iterable[Sequence[object]], cwd: Path, **environment: str
) -> list[tuple[int, str, str, float]]:
    """Run commands one after the other in one fresh process; gives exit code, stdout, stderr and seconds of each."""
    hub.served.clear()
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cwd / "home"), "NO_PROXY": "*", "HF_TOKEN": "",
                "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    done = fresh.run(
        [sys.executable, "-c", DRIVER], imports="hub",
        input=json.dumps([[str(part) for part in command] for command in commands]),
        env={**os.environ, **settings, **environment}, cwd=cwd, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(code, out, " ".join(err.split()), seconds) for code, out, err, seconds in json.loads(done.stdout)]


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        assert self.hub.uploads is not None
        (self.hub.uploads / f"lfs-{hashlib.sha256(data).hexdigest()}").write_bytes(data)
        self._send_json({})

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(self._body))
        elif match := _WRITE.fullmatch(path):
            self._answer_write((match[1] or "") + match[2], match[3])
        elif match := _API.fullmatch(path):
            kind, name, what, revision, below = match.groups()
            self._answer_api(("datasets/" if kind == "datasets" else "") + name, what, revision or "main", below or "")
        elif match := _FILE.fullmatch(path):
            kind, name, revision, file = match.groups()
            self._answer_file((kind or "") + name, revision, file)
        else:
            self._refuse(404, None, "no such page")

    def _may_write(self, name: str) -> bool:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return self.hub.writers.get(token) == name.removeprefix("datasets/").partition("/")[0]

    def _create(self, wanted: dict[str, Any]) -> None:
        assert self.hub.uploads is not None
        name = f"{wanted['organization']}/{wanted['name']}"
        kind = "datasets/" if wanted.get("type") == "dataset" else ""
        if not self._may_write(name):
            return self._refuse(403, None, f"You don't have the rights to create a repository under {name}")
        if kind + name in self.hub.repositories:
            return self._refuse(409, None, "You already created this repository")
        folder = self.hub.uploads / (kind + name)
        folder.mkdir(parents=True)
        is_private = wanted.get("visibility") == "private"
        self.hub.repositories[kind + name] = Repository({"main": folder}, is_private=is_private)
        return self._send_json({"url": f"{self.hub.url}/{kind}{name}"})

    def _answer_write(self, name: str, what: str) -> None:
        name = name.removeprefix("models/")
        if not self._may_write(name):
            return self._refuse(403, None, "Forbidden")
        if self.hub.refuses_commits and what != "auth-check/write":
            return self._refuse(507, None, "no room")
        if what == "auth-check/write":
            return self._send_json({})
        if what.startswith("preupload/"):
            files = json.loads(self._body)["files"]
            return self._send_json({"files": [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if Path(file["path"]).suffix in LARGE else "regular"} for file in files
            ]})  # fmt: skip
        if what == "info/lfs/objects/batch":
            objects = json.loads(self._body)["objects"]
            upload = {"upload": {"href": f"{self.hub.url}/lfs"}}
            return self._send_json({"transfer": "basic", "objects": [{**one, "actions": upload} for one in objects]})
        return self._commit(name, [json.loads(line) for line in self._body.splitlines()])

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        folder, changed = self.hub.repositories[name].branches["main"], []
        assert self.hub.uploads is not None
        for line in lines[1:]:
            value, target = line["value"], folder / line["value"]["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            changed.append(value["path"])
            if line["key"] == "file":
                target.write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                target.write_bytes((self.hub.uploads / f"lfs-{value['oid']}").read_bytes())
            else:
                target.unlink()
                changed[-1] = f"-{value['path']}"
        self.hub.commits.append(changed)
        commit = commit_of(name, "main")
        self._send_json({"commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _answer_api(self, name: str, what: str | None, revision: str, below: str) -> None:
        if name not in self.hub.repositories:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if (found := self.hub.find(name, revision)) is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, folder = found
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if what in (None, "revision"):
            siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
            return self._send_json({"id": name.removeprefix("datasets/"), "sha": commit, "siblings": siblings,
                                    "private": self.hub.repositories[name].is_private,
                                    "tags": [], "downloads": 0, "likes": 0})  # fmt: skip
        paths = sorted(folder.rglob("*"))
        entries = [self._entry(name, folder, path) for path in paths]
        if what == "paths-info":
            wanted = json.loads(self._body)["paths"] if self._body.startswith(b"{") else []
            form = unquote(self._body.decode().replace("+", " "))
            wanted = wanted or [part.partition("=")[2] for part in form.split("&") if part.startswith("paths")]
            entries = [entry for entry in entries if entry["path"] in wanted]
        else:
            is_deep = "recursive=true" in urlsplit(self.path).query.lower()
            start = f"{below}/" if below else ""
            entries = [
                e for e in entries if e["path"].startswith(start) and (is_deep or "/" not in e["path"][len(start) :])
            ]
        return self._send_json(entries)

    def _entry(self, name: str, folder: Path, path: Path) -> dict[str, Any]:
        if path.is_dir():
            return {"type": "directory", "path": path.relative_to(folder).as_posix(), "size": 0, "oid": "0" * 40}
        data = path.read_bytes()
        entry = {"type": "file", "path": path.relative_to(folder).as_posix(), "size": len(data),
                 "oid": hashlib.sha1(data).hexdigest()}  # fmt: skip
        if path.suffix in LARGE and self.hub.repositories[name].states_sha256:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _answer_file(self, name: str, revision: str, file: str) -> None:
        if name not in self.hub.repositories:
            return self._refuse(401, "RepoNotFound", "Repository not found")
        if self.hub.repositories[name].is_gated:
            has_token = "Authorization" in self.headers
            return self._refuse(403 if has_token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        if (found := self.hub.find(name, revision)) is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        commit, folder = found
        if not (folder / file).is_file():
            return self._refuse(404, "EntryNotFound", f"{file} does not exist", commit)
        if self.command == "GET":
            self.hub.served.append(f"{name}/{file}")
        data = (folder / file).read_bytes()
        digest = hashlib.sha256(data) if Path(file).suffix in LARGE else hashlib.sha1(data)
        self.send_response(200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{digest.hexdigest()}"')
        self._send_data(data)

    def _refuse(self, status: int, code: str | None, message: str, commit: str | None = None) -> None:
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Error-Message", message), ("X-Repo-Commit", commit)):
            if value is not None:
                self.send_header(header, value)
        self._send_data(json.dumps({"error": message}).encode())

    def _send_json(self, content: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._send_data(json.dumps(content).encode())

    def _send_data(self, data: bytes) -> None:
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
