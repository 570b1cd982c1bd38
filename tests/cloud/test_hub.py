"""A base named by its hub id: fetched by huggingface_hub from a hub that runs in this test."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssd_diffusion.models.tiny import write_tiny

SHA, VOCAB = "a" * 40, 256
FETCH = """
import sys
from pathlib import Path
from ssd_cloud.adapt import base_folder, open_base
from ssd_diffusion.errors import InvalidModel
try:
    found = base_folder(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[2]) / "out")
    model = open_base(found)
    print("vocab", model.vocab, "files", sorted(p.name for p in found.iterdir()))
except InvalidModel as error:
    print("refused:", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as snapshot_download asks for."""

    folder: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path, headers = self.path.split("?")[0], {"X-Repo-Commit": SHA}
        names = sorted(p.name for p in self.folder.iterdir() if p.is_file())
        resolved = path.rsplit("/", 1)[-1]
        if path.startswith("/api/models/org/tiny"):
            tree = [{"type": "file", "path": n, "size": 1, "oid": "0"} for n in names]
            info = {"id": "org/tiny", "sha": SHA, "siblings": [{"rfilename": n} for n in names]}
            data = json.dumps(tree if "/tree/" in path else info).encode()
            headers["Content-Type"] = "application/json"
        elif path.startswith(f"/org/tiny/resolve/{SHA}/") and resolved in names:
            data = (self.folder / resolved).read_bytes()
            headers["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tiny = write_tiny(tmp_path_factory.mktemp("hub") / "tiny", seed=2, vocab=VOCAB)
    handler = type("TinyHub", (Hub,), {"folder": tiny})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def fetch(name: str, hub: str, home: Path) -> str:
    env = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home / "hf"), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
           "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", FETCH, name, str(home)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_hub_id_is_fetched_and_opened(hub: str, tmp_path: Path) -> None:
    out = fetch("org/tiny", hub, tmp_path)
    assert out.startswith(f"vocab {VOCAB} files")
    assert "tokenizer.json" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["org/missing", "not a name at all", "../no/such"])
def test_what_the_hub_does_not_have_is_one_sentence(hub: str, tmp_path: Path, name: str) -> None:
    out = fetch(name, hub, tmp_path)
    assert out.startswith("refused: there is no folder")
    assert out.count("\n") == 1
