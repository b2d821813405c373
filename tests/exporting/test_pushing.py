"""Uploading, against a local server that speaks the hub's protocol."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CODE = """
import sys
from pathlib import Path
from frostline.errors import FrostlineError
from frostline.exporting import push
try:
    print(push(Path(sys.argv[1]), sys.argv[2], private=True))
except FrostlineError as error:
    print(f"{type(error).__name__}: {error}")
"""


class Hub(BaseHTTPRequestHandler):
    """Makes repositories and takes commits of small files."""

    server: Any

    def do_POST(self) -> None:  # the name that the base class calls
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer good":
            self._answer({"error": "Invalid user token."}, 401)
        elif self.path == "/api/repos/create":
            self.server.said["repository"] = json.loads(body)
            self._answer({"url": f"http://{self.headers['Host']}/org/{json.loads(body)['name']}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            self.server.said["commit"] = [json.loads(line) for line in body.splitlines()]
            self._answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/org/name/commit/1",
                    "commitOid": "0" * 40,
                    "pullRequestUrl": None,
                }
            )
        else:
            self._answer({"error": self.path}, 404)

    def do_GET(self) -> None:
        self._answer({"sha": "0" * 40, "id": "org/name", "siblings": []})

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.said = {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def pushed(folder: Path, repository: str, address: str, token: str, home: Path) -> str:
    settings = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder), repository],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), **settings},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_folder_is_pushed_in_one_commit(hub: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("# card")
    (folder / "config.json").write_text("{}")
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    assert pushed(folder, "org/name", address, "good", tmp_path).endswith("/org/name")
    assert hub.said["repository"]["name"] == "name"
    assert "private" in (hub.said["repository"].get("visibility"), *hub.said["repository"])
    files = {line["value"]["path"]: line["value"]["content"] for line in hub.said["commit"] if line["key"] == "file"}
    assert set(files) == {"README.md", "config.json"}
    assert base64.b64decode(files["README.md"]) == b"# card"


def test_a_refusal_and_a_wrong_name_say_what_mends_them(hub: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("# card")
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    refused = pushed(folder, "org/name", address, "bad", tmp_path)
    assert refused.startswith("StorageError: push=org/name:")
    assert "HF_TOKEN" in refused
    assert pushed(folder, "a/b/c", address, "good", tmp_path).startswith("ConfigError: push=a/b/c")
