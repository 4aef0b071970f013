"""Prometheus' rules, Grafana's dashboards, the collector: what they name exists, and the rules are tested."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry import Metrics

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "docker/prometheus"
DASHBOARDS = ROOT / "docker/grafana/dashboards"
PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")

_spec = importlib.util.spec_from_file_location("generate_dashboards", ROOT / ".ci/generate_dashboards.py")
assert _spec is not None
assert _spec.loader is not None
generate_dashboards = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = generate_dashboards  # its dataclasses look there
_spec.loader.exec_module(generate_dashboards)

_OF_SCRAPES = {"job", "instance", "le"}


def rules() -> Iterator[dict[str, Any]]:
    for file in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def queries() -> dict[str, tuple[str, str]]:
    """Return expression and text that names labels of it, by a name for messages."""
    found = {}
    for rule in rules():
        told = " ".join(rule.get("annotations", {}).values())
        found[rule.get("alert") or rule["record"]] = (rule["expr"], told)
    for file in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(file.read_text())["panels"]:
            for target in panel["targets"]:
                name = f"{file.stem}: {panel['title']} {target['refId']}"
                found[name] = (target["expr"], target["legendFormat"])
    return found


def labels_of_metrics() -> dict[str, set[str]]:
    """Return the labels of every series that exists, the recorded ones too."""
    known: dict[str, set[str]] = {"up": set()}
    for metric in Metrics().descriptions():
        suffixes = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        known |= {metric.name + suffix: set(metric.labels) for suffix in suffixes}
    exposition = Metrics().exposition()[0].decode()
    known |= {name: set() for name in re.findall(r"^# TYPE (process_\w+) ", exposition, re.MULTILINE)}
    for rule in rules():
        if "record" in rule:
            known[rule["record"]] = set(rule["record"].partition(":")[0].split("_"))
    return known


def flaws(expression: str, told: str) -> list[str]:
    """Return the metrics and labels of a query that do not exist."""
    known = labels_of_metrics()
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\b(?:bisenet_|process_|up\b|job\w*:)[\w:]*", bare))
    flawed = [f"there is no metric {name}" for name in names - set(known)]
    allowed = _OF_SCRAPES.union(*(known.get(name, set()) for name in names))
    used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", bare))
    for listed in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", bare):
        used |= {label.strip() for label in listed.split(",")}
    used |= set(re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", told))
    return flawed + [f"there is no label {label}" for label in used - allowed]


@pytest.mark.parametrize("name", queries())
def test_every_metric_and_label_that_a_query_names_exists(name: str) -> None:
    assert not flaws(*queries()[name])


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("rate(bisenet_requests[5m])", ""),
        ('bisenet_queue_depth{stage="queue"}', ""),
        ("sum by (route) (rate(bisenet_rejected_total[5m]))", ""),
        ("bisenet_queue_depth", "{{route}}"),
        ("job:bisenet_unknown:rate5m", ""),
    ],
)
def test_a_query_of_what_does_not_exist_is_found(expression: str, told: str) -> None:
    assert flaws(expression, told)


@needs_promtool
def test_every_query_parses_and_every_rule_is_valid(tmp_path: Path) -> None:
    records = []
    for number, (expression, _) in enumerate(queries().values()):
        plain = (
            expression.replace("$__rate_interval", "1m").replace("$job", "bisenet").replace("$instance", ".*")
        )
        records.append({"record": f"query:{number}", "expr": plain})
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": records}]}))
    assert promtool("check", "rules", str(file)).returncode == 0
    file.write_text(
        yaml.safe_dump({"groups": [{"name": "bad", "rules": [{"record": "a", "expr": "rate(b)"}]}]})
    )
    assert promtool("check", "rules", str(file)).returncode != 0


@needs_promtool
def test_the_rules_do_what_their_own_tests_say() -> None:
    files = sorted(map(str, (PROMETHEUS / "tests").glob("*.yml")))
    ran = promtool("test", "rules", *files)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
def test_the_configuration_of_prometheus_is_valid(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS / "rules", tmp_path / "rules")
    token = tmp_path / "scrape-token"
    token.write_text("token")
    config = (PROMETHEUS / "prometheus.yml").read_text().replace("/run/bisenet/scrape-token", str(token))
    (tmp_path / "prometheus.yml").write_text(config)
    ran = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert ran.returncode == 0, ran.stdout + ran.stderr


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_every_alert_is_seen_quiet_and_firing_in_a_test() -> None:
    quiet, firing = set(), set()
    for case in yaml.safe_load((PROMETHEUS / "tests/alerts.yml").read_text())["tests"]:
        for look in case["alert_rule_test"]:
            (firing if look["exp_alerts"] else quiet).add(look["alertname"])
    assert quiet == firing == set(alerts())


def test_every_alert_has_a_paragraph_that_says_what_to_do() -> None:
    page = (ROOT / "docs/operate/alerts.md").read_text()
    sections = dict(re.findall(r"^## (Bisenet\w+)\n\n(.+?)(?=\n## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(alerts())
    assert all("**What to do.**" in text and "**Meaning.**" in text for text in sections.values())


def test_every_alert_says_how_bad_it_is_and_what_happened() -> None:
    for alert in alerts().values():
        assert alert["labels"]["severity"] in {"critical", "warning"}
        assert alert["annotations"]["summary"]


def test_alerts_that_dashboards_name_exist() -> None:
    named = set(re.findall(r"\bBisenet\w+", "".join(file.read_text() for file in DASHBOARDS.glob("*.json"))))
    assert named
    assert named <= set(alerts())


@pytest.mark.parametrize("name", sorted(generate_dashboards.files()))
def test_a_dashboard_is_what_its_program_writes(name: str) -> None:
    assert (DASHBOARDS / name).read_text() == generate_dashboards.files()[name], "run `make dashboards`"


def test_there_is_no_dashboard_that_no_program_writes() -> None:
    assert {file.name for file in DASHBOARDS.iterdir()} == set(generate_dashboards.files())


@pytest.mark.parametrize("name", sorted(generate_dashboards.files()))
def test_panels_of_a_dashboard_do_not_overlap_and_use_the_provisioned_data_source(name: str) -> None:
    dashboard = json.loads((DASHBOARDS / name).read_text())
    source = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())
    (provisioned,) = source["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
        assert panel["datasource"] == {"type": provisioned["type"], "uid": provisioned["uid"]}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_the_collector_uses_only_parts_that_it_defines() -> None:
    config = yaml.safe_load((ROOT / "docker/otel/collector.yml").read_text())
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            assert set(names) <= set(config[kind])
    assert set(config["service"]["extensions"]) <= set(config["extensions"])
