"""Triton's image with Trident in it: a model answers in a container that may do nothing, and a signal drains it."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from tests.containers.daemon import Docker
from tests.containers.images import Images
from tests.containers.running import LOCKED_DOWN, container, wait_healthy

#: Triton maps its backends from /tmp.
TMPFS = ("--tmpfs", "/tmp:exec")  # noqa: S108
OPTIONS = (*LOCKED_DOWN, *TMPFS, "--network", "none", "--shm-size", "1g", "--stop-timeout", "90")
ASK = """
import json, sys, time, urllib.request
fields = json.loads(sys.argv[1])
data = json.dumps({"model": "trident-demo", "prompt": "Once", "ignore_eos": True, **fields}).encode()
request = urllib.request.Request("http://127.0.0.1:8080/v1/completions", data, {"content-type": "application/json"})
for line in urllib.request.urlopen(request, timeout=60):
    if line.strip():
        print(time.time(), line.decode().strip(), flush=True)
"""


def test_serve_image_answers_locked_down_and_drains_with_a_stream_going_on(
    docker: Docker, images: Images, models: Path
) -> None:
    """Without network, capabilities, a root or a file system to write to; the HEALTHCHECK is the image's own."""
    options = (*OPTIONS, "--volume", f"{models}:/models:ro")
    with container(docker, images.serve, options=options) as name:
        wait_healthy(docker, name)
        assert (
            docker("exec", name, "id") == "uid=1000(triton-server) gid=1000(triton-server) groups=1000(triton-server)"
        )
        plain = docker("exec", name, "python3", "-c", ASK, json.dumps({"max_tokens": 8}))
        assert json.loads(plain.partition(" ")[2])["usage"]["completion_tokens"] == 8

        stream = {"max_tokens": 900, "stream": True, "stream_options": {"include_usage": True}}
        command = [docker.client, "exec", name, "python3", "-c", ASK, json.dumps(stream)]
        with subprocess.Popen(command, env=docker.environment, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            lines = [reader.stdout.readline()]
            stopped_at = time.time()
            docker("kill", "--signal", "TERM", name)
            lines += reader.stdout.readlines()
        assert float(lines[-1].split()[0]) > stopped_at, "the stream had ended before the signal"
        assert lines[-1].endswith("data: [DONE]\n")
        assert json.loads(lines[-2].partition("data: ")[2])["usage"]["completion_tokens"] == 900
        assert docker("wait", name, timeout_s=90) == "0"
        assert "Stopped." in docker("logs", name)


def test_serve_image_says_why_it_cannot_start(docker: Docker, images: Images, tmp_path: Path) -> None:
    options = (*OPTIONS, "--volume", f"{tmp_path}:/models:ro")
    with container(docker, images.serve, options=options) as name:
        assert docker("wait", name) == "1"
        assert "trident serve: --repository /models" in docker("logs", name)
