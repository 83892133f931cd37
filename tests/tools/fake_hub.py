"""A hub of models that runs in a thread of the test: what huggingface_hub requests, answered well or in some bad way.

Used by test_hub.py, where each fault is tried, and by test_publish.py, which uploads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OLD, NEW = "a" * 40, "b" * 40  # two commits
VIT = "timm/test_vit.r160_in1k"


class FakeHub:
    """Repositories by name: {file: bytes} and a commit; `faults` by file change what the transfer does."""

    def __init__(self, server, files=None):
        self.port = server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.repositories = {VIT: {OLD: files or {}}}
        self.head, self.faults, self.requests, self.refusal = OLD, {}, [], None
        self.tokens = {"writer"}  # that may write
        self.stop = threading.Event()

    def asked(self):
        """The requests since the last call of this."""
        found, self.requests = self.requests, []
        return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def reply(self, status, headers, body=b""):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        """Making a repository, and a commit of its files, all of which are small enough to come with it."""
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if hub.refusal:
            return self.reply(*hub.refusal)
        if self.path == "/api/validate-yaml":
            return self.reply_json({"errors": [], "warnings": []})
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in hub.tokens:
            return self.reply(403, {}, b'{"error": "this token may not write"}')
        if self.path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            status = 409 if name in hub.repositories else 200
            hub.repositories.setdefault(name, {hub.head: {}})
            return self.reply_json({"url": f"{hub.url}/{name}", "id": name, "private": asked.get("private")}, status)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if not match:
            return self.reply(404, {})
        name, act = match.groups()
        if act == "preupload":
            each = {"uploadMode": "regular", "shouldIgnore": False}
            return self.reply_json({"files": [{"path": file["path"], **each} for file in json.loads(content)["files"]]})
        for line in map(json.loads, content.splitlines()):
            if line["key"] == "file":
                file = line["value"]
                hub.repositories[name][hub.head][file["path"]] = base64.b64decode(file["content"])
        url = f"{hub.url}/{name}/commit/{hub.head}"
        return self.reply_json({"commitUrl": url, "commitOid": hub.head, "success": True})

    def reply_json(self, content, status=200):
        return self.reply(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def answer(self):
        hub = self.server.hub
        hub.requests.append(f"{self.command} {self.path}")
        if self.path.startswith("/cdn/"):
            return self.transfer(*self.path.split("/")[2:])
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not match:
            return self.reply(404, {})
        name, revision, file = match.groups()
        if hub.refusal:
            return self.reply(*hub.refusal)
        if hub.faults.get(file) == "mute":
            return hub.stop.wait(20)
        if name not in hub.repositories:
            return self.reply(404, {"X-Error-Code": "RepoNotFound"})
        commit = {"main": hub.head}.get(revision, revision)
        if commit not in hub.repositories[name]:
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        if file not in hub.repositories[name][commit]:
            return self.reply(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        body = hub.repositories[name][commit][file]
        if not file.endswith((".safetensors", ".bin")):
            etag = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()  # as git names it
            return self.reply(200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, body)
        digest = hashlib.sha256(body).hexdigest()
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": len(body), "X-Repo-Commit": commit}
        if hub.faults.get(file) == "no hash":
            return self.reply(200, {"ETag": '"v1"', "X-Repo-Commit": commit}, body)
        place = f"http://localhost:{hub.port}/cdn/{name}/{commit}/{file}"  # another host, as at the real hub
        return self.reply(302, {**linked, "Location": place, "ETag": '"of-the-pointer"'})

    def transfer(self, owner, name, commit, file):
        hub = self.server.hub
        body = hub.repositories[f"{owner}/{name}"][commit][file]
        fault = hub.faults.get(file)
        if fault == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault == "silent":
            return hub.stop.wait(20)
        if fault == "branch moves":
            hub.head = NEW
        if fault == "break once":
            del hub.faults[file]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "drip":
            for each in body:
                self.wfile.write(bytes([each]))
                if hub.stop.wait(0.1):
                    break
            return None
        cut = fault in ("break", "break once")
        self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = cut
        return None


@contextmanager
def serving(files=None):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = FakeHub(server, files)
    server.handle_error = lambda *_: None  # a client that has left
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield server.hub
    finally:
        server.hub.stop.set()
        server.shutdown()
        server.server_close()
