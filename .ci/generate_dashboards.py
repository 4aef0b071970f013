#!/usr/bin/env python3
"""Write the Grafana dashboards of ``docker/grafana/dashboards``, and Prometheus' rules for Kubernetes.

.ci/generate_dashboards.py [ROOT]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = "docker/grafana/dashboards"
DATA_SOURCE = {"type": "prometheus", "uid": "prometheus"}

_COLUMNS = 24
_HEIGHT = 8
_PICK = '{job="$job", instance=~"$instance"'  # the variables on top of each dashboard


@dataclass(frozen=True)
class Panel:
    """A graph of a dashboard.

    Attributes:
        title: what it shows.
        queries: PromQL and legend of each line; ``PICK`` stands for the selectors of the chosen instances.
        unit: of the values, by Grafana's name.
        kind: timeseries, stat or table.
        width: of 24 columns.
        meaning: shown when the pointer is on the title.
        exemplars: whether traced requests are shown as points.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    meaning: str = ""
    exemplars: bool = False


def _quantiles(metric: str, by: str = "", select: str = "") -> list[tuple[str, str]]:
    names = f"{by}, le" if by else "le"
    legend = f"{{{{{by}}}}} p" if by else "p"
    rate = f"sum by ({names}) (rate({metric}_bucketPICK{select}}}[$__rate_interval]))"
    return [
        (f"histogram_quantile({share}, {rate})", f"{legend}{round(100 * share)}") for share in (0.5, 0.99)
    ]


def _rate(metric: str, by: str, legend: str = "", select: str = "") -> tuple[str, str]:
    total = f"sum by ({by})" if by else "sum"
    return f"{total} (rate({metric}PICK{select}}}[$__rate_interval]))", legend or f"{{{{{by}}}}}"


_STAGE_SECONDS, _ = _rate("bisenet_stage_duration_seconds_sum", "stage")
_STAGE_ANSWERS, _ = _rate("bisenet_stage_duration_seconds_count", "stage")

SERVICE = [
    Panel("Requests", [_rate("bisenet_requests_total", "route")], "reqps"),
    Panel("Answers by code", [_rate("bisenet_requests_total", "code")], "reqps"),
    Panel(
        "Failures",
        [('job:bisenet_request_failures:ratio_rate5m{job="$job"}', "failed")],
        "percentunit",
        meaning="Requests that the service had accepted and could not answer. Alert: BisenetFailing.",
    ),
    Panel(
        "Latency",
        _quantiles("bisenet_request_duration_seconds", "route"),
        "s",
        width=12,
        meaning="From head to answer. The points are traced requests: their trace_id stands in the log line.",
        exemplars=True,
    ),
    Panel(
        "Mean time by stage",
        [
            (f"{_STAGE_SECONDS} / {_STAGE_ANSWERS}", "{{stage}}"),
        ],
        "s",
        width=12,
    ),
    Panel(
        "Queue",
        [
            ("sum by (instance) (bisenet_queue_depthPICK})", "{{instance}} waiting"),
            ("sum by (instance) (bisenet_inflightPICK})", "{{instance}} in flight"),
        ],
    ),
    Panel(
        "Mean wait for the device",
        [('job:bisenet_queue_wait_seconds:mean1m{job="$job"}', "wait")],
        "s",
        meaning="What autoscalers follow. Alert: BisenetQueueSlow.",
    ),
    Panel("Device busy", [("bisenet_worker_busy_ratioPICK}", "{{instance}}")], "percentunit"),
    Panel(
        "Refusals", [_rate("bisenet_rejected_total", "reason")], "reqps", meaning="Alert: BisenetRefusing."
    ),
    Panel(
        "Deadlines passed, clients gone",
        [
            _rate("bisenet_expired_total", "stage", "expired in {{stage}}"),
            _rate("bisenet_cancelled_total", "stage", "left in {{stage}}"),
        ],
        "reqps",
    ),
    Panel("Batch size", _quantiles("bisenet_batch_size")),
    Panel("Memory", [("process_resident_memory_bytesPICK}", "{{instance}}")], "bytes"),
    Panel("Worker restarts", [("increase(bisenet_worker_restarts_totalPICK}[15m])", "{{instance}}")]),
]

CAMERAS = [
    Panel("Open streams", [("sum by (instance) (bisenet_stream_activePICK})", "{{instance}}")], kind="stat"),
    Panel(
        "Frames with a mask",
        [('sum (rate(bisenet_stream_frames_totalPICK, outcome="answered"}[$__rate_interval]))', "frames/s")],
        kind="stat",
    ),
    Panel(
        "Frames lost",
        [('job:bisenet_stream_frames_lost:ratio_rate5m{job="$job"}', "lost")],
        "percentunit",
        kind="stat",
        meaning="Superseded, too old or failed. Alert: BisenetFramesLost.",
    ),
    Panel("Frames by outcome", [_rate("bisenet_stream_frames_total", "outcome")], "cps", width=12),
    Panel(
        "Age of a frame when its mask is ready",
        _quantiles("bisenet_stream_frame_age_seconds"),
        "s",
        width=12,
        meaning="Alert: BisenetFramesOld.",
    ),
    Panel(
        "Processor time on decoding and encoding",
        [_rate("bisenet_picture_cpu_seconds_total", "stage")],
        "percentunit",
        width=12,
        meaning="Cores that are busy with it.",
    ),
    Panel("Device busy", [("bisenet_worker_busy_ratioPICK}", "{{instance}}")], "percentunit", width=12),
]

MODELS = [
    Panel(
        "Served versions",
        [
            (
                "bisenet_model_infoPICK}",
                "{{model}}@{{version}} {{engine}} {{device}} {{precision}} on {{instance}}",
            )
        ],
        kind="table",
        width=12,
    ),
    Panel(
        "mIoU",
        [
            (
                "max by (model, version, dataset, protocol) (bisenet_eval_miouPICK})",
                "{{model}}@{{version}} {{dataset}} {{protocol}}",
            )
        ],
        "percentunit",
        width=12,
        meaning="Newest score of each version. Alert: BisenetScoreLower.",
    ),
    Panel(
        "Answers by version",
        [
            (
                'sum by (model, version) (rate(bisenet_requests_totalPICK, version!=""}[$__rate_interval]))',
                "{{model}}@{{version}}",
            )
        ],
        "reqps",
        width=12,
    ),
    Panel("Time to load a version", _quantiles("bisenet_model_load_seconds"), "s", width=12),
    Panel(
        "Jobs",
        [
            ("max by (state) (bisenet_eval_jobsPICK})", "evaluations {{state}}"),
            ("max by (state) (bisenet_predict_jobsPICK})", "bulk predictions {{state}}"),
        ],
        width=12,
        meaning="Alerts: BisenetJobsStuck, BisenetJobFailed.",
    ),
    Panel("Padding in batches", _quantiles("bisenet_batch_padding_ratio"), "percentunit", width=12),
]

DASHBOARDS = {
    "service": ("BiSeNet service", SERVICE),
    "cameras": ("BiSeNet cameras", CAMERAS),
    "models-and-jobs": ("BiSeNet models and jobs", MODELS),
}


def rule_files() -> dict[str, str]:
    """Return the rules of ``docker/prometheus/rules`` by path: for Prometheus' operator, for the chart."""
    groups: list[str] = []
    for file in sorted((ROOT / "docker/prometheus/rules").glob("*.yml")):
        head, _, body = file.read_text("utf-8").partition("groups:\n")
        groups += [*head.splitlines(), *body.rstrip("\n").splitlines()]
    text = "\n".join(["groups:", *groups]) + "\n"
    spec = "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))
    return {"k8s/chart/files/rules.yaml": text, "k8s/components/monitoring/prometheusrule.yaml": _RULE + spec}


_RULE = """# Written by .ci/generate_dashboards.py from docker/prometheus/rules; do not edit.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: bisenet
  labels:
    app.kubernetes.io/name: bisenet
spec:
"""


def files() -> dict[str, str]:
    """Return the text of each dashboard under its file name."""
    return {
        f"{uid}.json": json.dumps(_dashboard(uid, title, panels), indent=2) + "\n"
        for uid, (title, panels) in DASHBOARDS.items()
    }


def _dashboard(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    return {
        "uid": f"bisenet-{uid}",
        "title": title,
        "tags": ["bisenet"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "tags": ["bisenet"],
                "title": "BiSeNet",
                "asDropdown": True,
                "keepTime": True,
            }
        ],
        "templating": {"list": [_variable("job", "up"), _variable("instance", 'up{job="$job"}', multi=True)]},
        "panels": list(_laid_out(panels)),
    }


def _variable(name: str, series: str, *, multi: bool = False) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": DATA_SOURCE,
        "query": f"label_values({series}, {name})",
        "regex": "/bisenet/" if name == "job" else "",
        "refresh": 2,
        "multi": multi,
        "includeAll": multi,
    }


def _laid_out(panels: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    x = y = 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        yield _panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": _HEIGHT})
        x += panel.width


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    is_table = panel.kind == "table"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATA_SOURCE,
            "expr": query.replace("PICK", _PICK),
            "legendFormat": legend,
            "instant": is_table,
            "format": "table" if is_table else "time_series",
            "exemplar": panel.exemplars,
        }
        for index, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": DATA_SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


def main() -> None:
    """Write the files."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    written = {f"{FOLDER}/{name}": text for name, text in files().items()} | rule_files()
    for path, text in written.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
