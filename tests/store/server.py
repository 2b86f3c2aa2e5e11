"""Servers on loopback that behave like the Hugging Face Hub, an Ollama registry and the network that holds their files.

Files answer with redirects to another origin, ETag, Accept-Ranges and Range; faults are set by path.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secret"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Origin:
    """One origin: `get(path, headers)` gives (status, headers, body) or None for 404."""

    def __init__(self, get):
        origin = self
        self.requests = []  # (path, headers)
        self.cut_after = {}  # path -> list of byte counts, one used up by each request
        self.get = get

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path = unquote(self.path)
                headers = {key.lower(): value for key, value in self.headers.items()}
                origin.requests.append((path, headers))
                answer = origin.get(path, headers)
                status, extra, body = answer if answer is not None else (404, {}, b'{"error": "not found"}')
                cuts = origin.cut_after.get(path)
                cut = cuts.pop(0) if cuts else None
                self.send_response(status)
                for key, value in extra.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                try:
                    self.wfile.write(body[:cut])
                    self.wfile.flush()
                except ConnectionError:  # the client has seen enough
                    self.close_connection = True
                if cut is not None and cut < len(body):
                    self.close_connection = True

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Files:
    """The network that holds the files: Range, ETag, and faults."""

    def __init__(self):
        self.files = {}  # path -> bytes
        self.no_ranges = False
        self.fail = {}  # path -> list of (status, headers), one used up by each request
        self.origin = Origin(self._get)
        self.url = self.origin.url

    def _get(self, path, headers):
        if self.fail.get(path):
            status, extra = self.fail[path].pop(0)
            return status, extra, b"fault"
        data = self.files.get(path)
        if data is None:
            return None
        extra = {"ETag": f'"{sha256(data)}"', "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if match is None or self.no_ranges:
            return 200, extra, data
        start = int(match[1])
        if start >= len(data):
            return 416, {**extra, "Content-Range": f"bytes */{len(data)}"}, b""
        part = data[start : int(match[2]) + 1 if match[2] else None]
        extra["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return 206, extra, part


class Hub:
    """huggingface.co: /api/models/REPO?blobs=true and /REPO/resolve/REVISION/FILE, which redirects."""

    def __init__(self, files):
        self.repos = {}  # "owner/repo" -> {path: bytes}
        self.gated = set()
        self.lies = {}  # path -> sha256 that is told instead of the true one
        self._files = files
        self.origin = Origin(self._get)
        self.url = self.origin.url

    def add(self, repo, files):
        self.repos[repo] = files
        for path, data in files.items():
            self._files.files[f"/cdn/{repo}/{path}"] = data

    def _get(self, path, headers):
        parts = urlsplit(path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", parts.path):
            return self._info(match[1], headers)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", parts.path):
            if match[1] not in self.repos or match[3] not in self.repos[match[1]]:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            return 302, {"Location": f"{self._files.url}/cdn/{match[1]}/{match[3]}"}, b""
        return None

    def _info(self, repo, headers):
        if repo in self.gated and headers.get("authorization") != f"Bearer {TOKEN}":
            return 403, {"X-Error-Code": "GatedRepo"}, b'{"error": "gated"}'
        if repo not in self.repos:
            return 401, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}'
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "blobId": "0" * 40,
                "lfs": {"sha256": self.lies.get(path, sha256(data)), "size": len(data), "pointerSize": 135},
            }
            for path, data in self.repos[repo].items()
        ]
        siblings.append({"rfilename": "README.md", "size": 10, "blobId": "1" * 40})
        body = json.dumps({"id": repo, "modelId": repo, "sha": "c" * 40, "siblings": siblings}).encode()
        return 200, {"Content-Type": "application/json"}, body


class Registry:
    """An Ollama registry that asks for a token anybody gets."""

    def __init__(self, files, *, needs_token=True):
        self.manifests = {}  # "library/name:tag" -> bytes
        self._files = files
        self._needs_token = needs_token
        self.origin = Origin(self._get)
        self.url = self.origin.url

    def add(self, name, layers):
        """`layers`: (kind, bytes)."""
        listed = []
        for kind, data in layers:
            self._files.files[f"/blob/{sha256(data)}"] = data
            listed.append(
                {
                    "mediaType": f"application/vnd.ollama.image.{kind}",
                    "digest": f"sha256:{sha256(data)}",
                    "size": len(data),
                }
            )
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 2},
            "layers": listed,
        }
        self.manifests[name] = json.dumps(manifest).encode()

    def _get(self, path, headers):
        if path.startswith("/token"):
            assert "scope=" in path
            return 200, {}, json.dumps({"token": "anybody"}).encode()
        if self._needs_token and headers.get("authorization") != "Bearer anybody":
            challenge = f'Bearer realm="{self.url}/token",service="registry",scope="repository:x:pull"'
            return 401, {"WWW-Authenticate": challenge}, b"{}"
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", path):
            data = self.manifests.get(f"{match[1]}:{match[2]}")
            return None if data is None else (200, {"Docker-Content-Digest": f"sha256:{sha256(data)}"}, data)
        if match := re.fullmatch(r"/v2/(.+)/blobs/sha256:([0-9a-f]{64})", path):
            return 307, {"Location": f"{self._files.url}/blob/{match[2]}"}, b""
        return None
