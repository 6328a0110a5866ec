"""What docker/compose.yaml holds, as far as it can be told without a daemon."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.programs import find, needs

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DELAY_S, TIMEOUT_S, SPARE_S = 15, 120, 15
SERVICES: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
EVERY_SERVICE = pytest.mark.parametrize("name", SERVICES)


def seconds(text: str) -> int:
    """Seconds of a duration like `150s`."""
    return int(text.removesuffix("s"))


def default(value: str) -> str:
    """What a value is where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


@EVERY_SERVICE
def test_compose_file_every_service_is_locked_down_and_bounded(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:\d+", default(service["user"])), "a user that is not root"
    assert {"max-size", "max-file"} == {*service["logging"]["options"]}
    assert re.fullmatch(r"\d+[mg]", default(service["mem_limit"]))
    assert all("size=" in mount for mount in service["tmpfs"])


@EVERY_SERVICE
def test_compose_file_every_image_has_a_version(name: str) -> None:
    image, _, tag = default(SERVICES[name]["image"]).rpartition(":")
    assert image
    assert re.match(r"v?\d+\.\d+\.\d+", tag), tag
    if image.startswith("trident-"):
        (version,) = re.findall(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
        assert tag == version
        assert SERVICES[name]["build"]["target"] == image.removeprefix("trident-")


def test_compose_file_publishes_the_gateway_alone_unless_a_profile_is_on() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service and "profiles" not in service] == [
        "gateway"
    ]
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["grafana"]["ports"])
    networks = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["networks"]
    assert {name for name, network in networks.items() if not network.get("internal")} == {"clients"}
    assert not {"clients"} & {*SERVICES["triton"]["networks"], *SERVICES["redis"]["networks"]}


@pytest.mark.parametrize("name", ["triton", "gateway", "triton-2", "gateway-2", "haproxy"])
def test_compose_file_gives_a_drain_the_time_it_may_take(name: str) -> None:
    assert seconds(SERVICES[name]["stop_grace_period"]) >= DELAY_S + TIMEOUT_S + SPARE_S
    if "triton" in name:
        options = SERVICES[name]["command"]
        assert options[options.index("--drain-timeout") + 1] == str(TIMEOUT_S)
        assert "exec" in SERVICES[name]["tmpfs"][0].partition(":")[2].split(",")


def test_compose_file_a_gateway_waits_for_its_server() -> None:
    for pair in ("", "-2"):
        service = SERVICES[f"gateway{pair}"]
        assert service["depends_on"][f"triton{pair}"] == {"condition": "service_healthy"}
        assert f"--server=http://triton{pair}:8000" in service["command"]


def test_compose_file_holds_no_secret_and_git_takes_none() -> None:
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    assert not re.search(r"(?i)password: |sk-trident", text)
    result = subprocess.run(
        ["git", "check-ignore", "--quiet", "docker/compose/secrets/keys.json"], cwd=ROOT, check=False
    )
    assert result.returncode == 0
    assert (DOCKER / "compose" / "secrets" / ".gitignore").is_file()  # the folder is there before the first key


def mounted() -> Iterator[str]:
    """Every file and folder of docker/ that a service mounts."""
    for service in SERVICES.values():
        yield from (default(mount).split(":")[0] for mount in service.get("volumes", []) if default(mount)[0] == ".")


def test_compose_file_mounts_what_exists() -> None:
    assert {"./compose/prometheus.yml", "./monitoring/rules", "./compose/haproxy.cfg"} <= {*mounted()}
    assert all((DOCKER / place).exists() for place in mounted())
    rules = yaml.safe_load((DOCKER / "compose" / "prometheus.yml").read_text(encoding="utf-8"))["rule_files"]
    assert rules == ["/etc/prometheus/rules/*.yml"]
    assert list((DOCKER / "monitoring" / "rules").glob("*.yml"))


@needs("docker-compose", "Debian's docker-compose")
@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose/gpu.yaml"]], ids=["cpu", "gpu"])
def test_compose_file_is_taken_by_the_oldest_supported_compose(files: list[str]) -> None:
    program = find("docker-compose")
    assert program is not None
    words = [word for file in files for word in ("--file", str(DOCKER / file))]
    for profiles in ([], ["--profile", "grafana", "--profile", "haproxy"]):
        result = subprocess.run(
            [program, *words, *profiles, "config"], capture_output=True, text=True, check=False, env={**os.environ}
        )
        assert result.returncode == 0, result.stderr
        assert "WARNING" not in result.stderr
    rendered = yaml.safe_load(result.stdout)["services"]
    assert ("deploy" in rendered["triton"]) == (len(files) == 2)


@needs("haproxy", "Debian's haproxy")
def test_compose_file_haproxy_takes_its_configuration() -> None:
    program = find("haproxy")
    assert program is not None
    path = DOCKER / "compose" / "haproxy.cfg"
    result = subprocess.run([program, "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@needs("promtool", "Debian's prometheus")
def test_compose_file_prometheus_takes_its_configuration() -> None:
    program = find("promtool")
    assert program is not None
    path = DOCKER / "compose" / "prometheus.yml"
    result = subprocess.run(
        [program, "check", "config", "--syntax-only", str(path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
