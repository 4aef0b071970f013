"""Objects as kustomize and helm render them, and what a strict API server would say of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
SUPPORTED = ("1.30", "1.37")
"""Kubernetes versions: the oldest and the newest."""

HELM = shutil.which("helm") or shutil.which("helm", path=str(ROOT / "build/tools"))
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed here")
needs_helm = pytest.mark.skipif(HELM is None, reason="helm is not installed: .ci/fetch_helm.py build/tools")

Object = dict[str, Any]
Objects = dict[tuple[str, str], Object]
"""By kind and name."""


def kustomized(folder: str) -> Objects:
    """Return the objects of a kustomization below ``k8s``."""
    command = ["kubectl", "kustomize", str(K8S / folder)]
    return _objects(subprocess.run(command, capture_output=True, check=True, text=True, timeout=60).stdout)


def templated(*switched_on: str, **values: str) -> Objects:
    """Return the objects of the chart with its own values, some of them changed."""
    return _objects(
        helm("template", "bisenet", str(K8S / "chart"), "-n", "bisenet", *_flags(switched_on, values))
    )


def helm(*arguments: str) -> str:
    assert HELM is not None
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    ran = subprocess.run(
        [HELM, *arguments], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    if ran.returncode:
        raise ValueError(ran.stderr)
    return ran.stdout


def _flags(switched_on: tuple[str, ...], values: dict[str, str]) -> list[str]:
    pairs = [f"{name}.enabled=true" for name in switched_on] + [
        f"{key}={value}" for key, value in values.items()
    ]
    return [word for pair in pairs for word in ("--set", pair)]


def _objects(text: str) -> Objects:
    found = [document for document in yaml.safe_load_all(text) if document]
    objects = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(objects) == len(found)
    return objects


def comparable(objects: Objects) -> Objects:
    """Return objects without what kustomize and helm do each in its own way."""
    text = yaml.safe_dump([one for (kind, _), one in sorted(objects.items()) if kind != "Namespace"])
    text = re.sub(r"\bbisenet-config-[a-z0-9]{10}\b", "bisenet-config", text)  # the digest of its content
    compared = {}
    for one in yaml.safe_load(text):
        one["metadata"].pop("namespace", None)
        for labels in _maps(one, "labels"):
            for own in ("helm.sh/chart", "app.kubernetes.io/managed-by"):
                labels.pop(own, None)
        template = one.get("spec", {}).get("template", {})
        template.get("metadata", {}).pop("annotations", None)  # the digest again
        for container in template.get("spec", {}).get("containers", ()):
            container.pop("imagePullPolicy", None)
            container.get("env", []).sort(key=lambda variable: variable["name"])
        compared[one["kind"], one["metadata"]["name"]] = one
    return compared


def _maps(one: Object, key: str) -> list[Object]:
    return [one["metadata"][key]] if key in one["metadata"] else []


def validate(one: Object, version: str = SUPPORTED[-1]) -> None:
    """Check an object strictly: an unknown field is an error."""
    if (kind := one["kind"]) in CUSTOM:
        jsonschema.validate(one, _closed(CUSTOM[kind]), jsonschema.Draft202012Validator)
    else:
        kubernetes_validate.validate(one, version, strict=True)


def _closed(fields: Any) -> Object:
    """Return the schema of a tree of fields: of maps the keys, of lists the one form of their items."""
    if isinstance(fields, dict):
        return {
            "type": "object",
            "properties": {name: _closed(field) for name, field in fields.items()},
            "additionalProperties": False,
        }
    if isinstance(fields, list):
        return {"type": "array", "minItems": 1, "items": _closed(fields[0])}
    if isinstance(fields, tuple):
        return {"enum": list(fields)}
    return {} if fields is object else {"type": fields}


_HEAD = {"apiVersion": "string", "kind": "string", "metadata": object}
_CONTAINER = {
    **dict.fromkeys(("env", "ports", "resources", "securityContext", "volumeMounts"), object),
    **dict.fromkeys(("startupProbe", "readinessProbe", "livenessProbe"), object),
    "name": ("kserve-container",),
    "image": "string",
    "args": ["string"],
}

_TRIGGER = (
    *("serverAddress", "query", "threshold", "ignoreNullValues"),
    *("targetQueryValue", "activationTargetQueryValue"),
)

CUSTOM: dict[str, Any] = {
    "ServiceMonitor": _HEAD
    | {
        "spec": {
            "jobLabel": "string",
            "selector": {"matchLabels": object},
            "endpoints": [
                {
                    "port": "string",
                    "path": "string",
                    "interval": "string",
                    "authorization": {"credentials": {"name": "string", "key": "string"}},
                }
            ],
        }
    },
    "PrometheusRule": _HEAD
    | {
        "spec": {
            "groups": [
                {
                    "name": "string",
                    "rules": [
                        {
                            "alert": "string",
                            "record": "string",
                            "expr": "string",
                            "for": "string",
                            "labels": object,
                            "annotations": object,
                        }
                    ],
                }
            ]
        }
    },
    "ScaledObject": _HEAD
    | {
        "spec": {
            "scaleTargetRef": {"name": "string"},
            "minReplicaCount": "integer",
            "maxReplicaCount": "integer",
            "pollingInterval": "integer",
            "cooldownPeriod": "integer",
            "fallback": {"failureThreshold": "integer", "replicas": "integer"},
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": object}},
            "triggers": [
                {
                    "type": ("prometheus", "postgresql"),
                    "name": "string",
                    "metricType": ("Value", "AverageValue"),
                    "metadata": dict.fromkeys(_TRIGGER, "string"),
                    "authenticationRef": {"name": "string"},
                }
            ],
        }
    },
    "TriggerAuthentication": _HEAD
    | {"spec": {"secretTargetRef": [{"parameter": ("connection",), "name": "string", "key": "string"}]}},
    "ClusterServingRuntime": _HEAD
    | {
        "spec": {
            "supportedModelFormats": [
                {"name": "string", "version": "string", "autoSelect": "boolean", "priority": "integer"}
            ],
            "protocolVersions": [("v2", "grpc-v2")],
            "containers": [_CONTAINER],
            "volumes": [object],
        }
    },
    "InferenceService": _HEAD
    | {
        "spec": {
            "predictor": {
                "minReplicas": "integer",
                "terminationGracePeriodSeconds": "integer",
                "model": {
                    "modelFormat": {"name": "string", "version": "string"},
                    "protocolVersion": ("v2", "grpc-v2"),
                    "runtime": "string",
                    "storageUri": "string",
                },
            }
        }
    },
}
"""Fields of kinds that Kubernetes itself does not know: those used here, as their projects document them."""
