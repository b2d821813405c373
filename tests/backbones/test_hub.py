"""The hub path for real: a server on this machine that speaks the hub's protocol, and a process that loads from it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from frostline.backbones.hub import weight_names

from .conftest import jitter

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Loads each `name|weights` of the command line and prints one line for it; HF_* are read at the import of the client.
LOADER = """
import sys, torch
torch.set_num_threads(1)
from frostline.backbones import create_backbone
from frostline.errors import FrostlineError
from frostline.specs import BackboneSpec
for argument in sys.argv[1:]:
    name, _, weights = argument.partition("|")
    try:
        backbone = create_backbone(BackboneSpec(name=name, weights=weights or "pretrained"), num_classes=3)
    except FrostlineError as fault:
        print("FAULT", fault.exit_code, " ".join(str(fault).split()))
    else:
        body = sum(t.double().sum().item() for n, t in backbone.model.state_dict().items() if not n.startswith("fc."))
        print("LOADED", backbone.report.loaded, backbone.report.sha256, round(body, 3), backbone.preprocessing.mean[0])
"""


class Hub:
    """Repositories in memory, and the requests that came for them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.requests.append(("HEAD", self.path))
                self.answer(body=False)

            def do_GET(self) -> None:
                hub.requests.append(("GET", self.path))
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                repository, _, rest = self.path.lstrip("/").partition("/resolve/")
                name = rest.partition("/")[2]
                content = hub.files.get(f"{repository}/{name}")
                if content is None:
                    known = any(key.startswith(f"{repository}/") for key in hub.files)
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def put(self, repository: str, folder: Path) -> None:
        for file in folder.iterdir():
            self.files[f"{repository}/{file.name}"] = file.read_bytes()


@dataclass
class Visits:
    """What three processes printed by spec: beside the hub, without it, and told to stay offline."""

    online: dict[str, str]
    closed: dict[str, str]
    offline: dict[str, str]
    requests: list[tuple[str, str]]
    home: Path
    named: Path
    pickled: Path


CLOSED = "http://127.0.0.1:9"
CACHED = ("hf-hub:org/name", "test_resnet", f"hf-hub:org/name@{COMMIT}")
REFUSED = ("hf-hub:org/absent", "hf-hub:org/empty", "hf-hub:org/bert", "hf-hub:a/b/c")


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Visits:
    folder = tmp_path_factory.mktemp("hub")
    hub = Hub()
    fill(hub, folder)
    thread = Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    home = folder / "home"
    try:
        online = load(home, hub.address, *CACHED, "hf-hub:org/name|none", *REFUSED)
        asked = list(hub.requests)
        offline = load(home, hub.address, *CACHED, "test_vit", HF_HUB_OFFLINE="1")
        assert hub.requests == asked
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
    closed = load(home, CLOSED, *CACHED, "test_vit")
    return Visits(online, closed, offline, asked, home, folder / "name", folder / "plain")


def fill(hub: Hub, folder: Path) -> None:
    """Repositories with safetensors, with pickled weights alone as older ones have them, and two that are of no use."""
    for name, classes in (("name", 5), ("plain", 1000)):
        model = timm.create_model("test_resnet", num_classes=classes)
        jitter(model)
        timm.models.save_for_hf(model, str(folder / name), safe_serialization=name == "name")
    (folder / "empty").mkdir()
    (folder / "empty" / "config.json").write_text((folder / "name" / "config.json").read_text())
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text('{"model_type": "bert"}')
    for name in ("name", "empty", "bert"):
        hub.put(f"org/{name}", folder / name)
    hub.put("timm/test_resnet.r160_in1k", folder / "plain")


def load(home: Path, endpoint: str, *specs: str, **environment: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    kept["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *specs],
        check=False,
        capture_output=True,
        text=True,
        env={**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    # neither a traceback nor the client's own retries, which go on for half a minute and more
    assert done.stderr == ""
    return dict(zip(specs, done.stdout.splitlines(), strict=True))


def body_of(tensors: dict[str, torch.Tensor]) -> str:
    return str(round(sum(t.double().sum().item() for name, t in tensors.items() if not name.startswith("fc.")), 3))


@pytest.mark.slow
def test_a_hub_name_loads_its_weights(visits: Visits) -> None:
    file = visits.named / "model.safetensors"
    _, loaded, digest, body, _ = visits.online["hf-hub:org/name"].split()
    assert (loaded, digest, body) == ("90", hashlib.sha256(file.read_bytes()).hexdigest(), body_of(load_file(file)))
    assert visits.online[f"hf-hub:org/name@{COMMIT}"] == visits.online["hf-hub:org/name"]


def test_a_plain_name_loads_the_weights_of_its_pretrained_config(visits: Visits) -> None:
    file = visits.pickled / "pytorch_model.bin"
    _, loaded, digest, body, _ = visits.online["test_resnet"].split()
    tensors = torch.load(file, weights_only=True)
    assert (loaded, digest, body) == ("90", hashlib.sha256(file.read_bytes()).hexdigest(), body_of(tensors))


def test_without_weights_the_hub_gives_the_config_alone(visits: Visits) -> None:
    assert visits.online["hf-hub:org/name|none"].startswith("LOADED 0 None")


def test_a_file_is_downloaded_once(visits: Visits) -> None:
    downloads = [path for method, path in visits.requests if method == "GET" and path.endswith("/model.safetensors")]
    assert downloads == ["/org/name/resolve/main/model.safetensors"]


@pytest.mark.parametrize("spec", CACHED)
def test_a_second_load_comes_from_the_cache(visits: Visits, spec: str) -> None:
    assert visits.online[spec].startswith("LOADED 90")
    assert visits.closed[spec] == visits.offline[spec] == visits.online[spec]


def test_what_the_hub_lacks_is_named(visits: Visits) -> None:
    absent, empty, bert, malformed = (visits.online[spec] for spec in REFUSED)
    assert absent.startswith("FAULT 5 The hub has no 'org/absent' that may be read here")
    assert "HF_TOKEN" in absent
    assert empty.startswith("FAULT 5 The hub's 'org/empty' has none of model.safetensors, pytorch_model.bin")
    assert bert.startswith("FAULT 2 'hf-hub:org/bert' holds no timm model")
    assert malformed.startswith("FAULT 2 'hf-hub:a/b/c' is no hub name")


def test_no_network_and_nothing_cached_says_which_model_which_cache_and_what_to_do(visits: Visits) -> None:
    closed, offline = visits.closed["test_vit"], visits.offline["test_vit"]
    for message in (closed, offline):
        assert message.startswith("FAULT 5 'test_vit' needs model.safetensors")
        assert "'timm/test_vit.r160_in1k'" in message
        assert str(visits.home / "hub") in message
        assert "Run once with a network" in message
        assert "HF_HUB_CACHE" in message
        assert "backbone.weights=none" in message
    assert CLOSED in closed
    assert "refused" in closed
    assert "HF_HUB_OFFLINE is set" in offline


@pytest.mark.parametrize(
    ("stated", "names"),
    [
        (None, ("model.safetensors", "pytorch_model.bin")),
        ("pytorch_model.bin", ("model.safetensors", "pytorch_model.bin")),
        ("open_clip_pytorch_model.bin", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
        ("variant.safetensors", ("variant.safetensors",)),
        ("variant.bin", ("variant.safetensors", "variant.bin")),
    ],
)
def test_safetensors_are_looked_for_first(stated: str | None, names: tuple[str, ...]) -> None:
    assert weight_names(stated) == names
