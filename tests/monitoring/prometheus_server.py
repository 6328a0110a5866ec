"""The real Prometheus, scraping servers of a test.

Owns its configuration, its start and its end, and how it is asked. Never a rule: those of docker/monitoring are loaded.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.child_processes import tied
from tests.monitoring.expressions import RULES
from tests.ports import free_ports
from tests.programs import find

LIMIT_S = 60.0
#: The label that Prometheus' operator gives to every series.
NAMESPACE = "trident"


class QueryError(Exception):
    """Prometheus refused a query, or failed at it."""


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    port: int

    def query(self, promql: str) -> list[dict[str, Any]]:
        """Return the series that an expression has now: `metric` has the labels of each, `value` a time and a number.

        Raises:
            QueryError: the expression cannot be evaluated, or only with a warning.
        """
        answer = self._ask("query", query=promql)
        data = answer["data"]
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        result: list[dict[str, Any]] = data["result"]
        return result

    def number(self, promql: str) -> float:
        """Return the number of an expression that has one series."""
        (series,) = self.query(promql)
        return float(series["value"][1])

    def rules(self) -> list[dict[str, Any]]:
        """Return all rules with their health, and with the alerts that they have."""
        return [rule for group in self._ask("rules")["data"]["groups"] for rule in group["rules"]]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that has to come about."""
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {LIMIT_S} s: {what}"
            time.sleep(0.1)

    def _ask(self, path: str, **fields: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(fields)}"
        try:
            with urllib.request.urlopen(url, timeout=LIMIT_S) as reply:
                answer: dict[str, Any] = json.load(reply)
        except urllib.error.HTTPError as error:
            raise QueryError(f"{fields}: {error.read().decode()}") from None
        if answer["status"] != "success" or answer.get("warnings"):
            raise QueryError(f"{fields}: {answer}")
        return answer


@contextmanager
def prometheus(folder: Path, jobs: Mapping[str, str]) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes each second and has all rules, once it has scraped every job with success.

    Args:
        folder: for its configuration and data.
        jobs: name -> host and port of the page `/metrics`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "prometheus.yml"
    scrapes = [
        {"job_name": name, "static_configs": [{"targets": [target], "labels": {"namespace": NAMESPACE}}]}
        for name, target in jobs.items()
    ]
    configuration.write_text(
        yaml.safe_dump({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(file) for file in RULES],
            "scrape_configs": scrapes,
        })
    )  # fmt: skip
    (port,) = free_ports(1)
    program = find("prometheus")
    assert program is not None
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            tied([
                program, f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
            ]),
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    running = Prometheus(port)

    def has_scraped_all() -> bool:
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            return len(running.query("up == 1")) == len(jobs)
        except (QueryError, OSError):
            return False

    try:
        running.until(has_scraped_all, f"Prometheus has scraped {sorted(jobs.values())}; see {log}")
        yield running
    finally:
        process.terminate()
        try:
            process.wait(LIMIT_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
