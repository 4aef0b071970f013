"""What lies beside ``k8s/base``: overlays, components, KServe, training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import pytest
import yaml
from dbos._schemas.system_database import SystemSchema
from kubernetes_objects import K8S, ROOT, SUPPORTED, Object, Objects, kustomized, needs_kubectl, validate

from service.durable_jobs.database import SCHEMA
from service.http_api.edge import PROBE_PATHS
from service.settings import load_settings
from service.telemetry import Metrics

pytestmark = needs_kubectl

FOLDERS = ("base", "overlays/cpu", "overlays/gpu", "overlays/scale", "kserve", "train")
WITH_THE_SERVICE = FOLDERS[:4]


@cache
def objects(folder: str) -> Objects:
    return kustomized(folder)


def pods(folder: str) -> Iterator[tuple[Object, Object]]:
    """Yield the spec of each pod, and its one container."""
    for (kind, _), one in objects(folder).items():
        if kind in {"Deployment", "Job"}:
            pod = one["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            yield pod, container


def environment(container: Object) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("folder", FOLDERS)
def test_each_object_matches_its_strict_schema(folder: str, version: str) -> None:
    for one in objects(folder).values():
        validate(one, version)


@pytest.mark.parametrize(("kind", "name"), [("ScaledObject", "bisenet"), ("ServiceMonitor", "bisenet")])
def test_a_misspelt_field_of_a_foreign_kind_would_be_found(kind: str, name: str) -> None:
    one = objects("overlays/scale")[kind, name]
    with pytest.raises(jsonschema.ValidationError, match="endpionts"):
        validate(one | {"spec": one["spec"] | {"endpionts": []}})


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_is_admitted_where_the_restricted_standard_is_enforced(folder: str) -> None:
    """Source: kubernetes.io/docs/concepts/security/pod-security-standards, level restricted."""
    contexts = [
        (pod.get("securityContext", {}), container["securityContext"]) for pod, container in pods(folder)
    ]
    if folder == "kserve":
        runtime = objects(folder)["ClusterServingRuntime", "bisenet"]["spec"]["containers"][0]
        contexts = [({}, runtime["securityContext"])]
    assert contexts
    for of_pod, of_container in contexts:
        either = of_pod | of_container
        assert either["runAsNonRoot"] is True
        assert either["seccompProfile"] == {"type": "RuntimeDefault"}
        assert of_container["allowPrivilegeEscalation"] is False
        assert of_container["capabilities"] == {"drop": ["ALL"]}
        assert of_container["readOnlyRootFilesystem"] is True


@pytest.mark.parametrize("folder", [*WITH_THE_SERVICE, "train"])
def test_every_pod_asks_the_cluster_nothing_and_is_bounded(folder: str) -> None:
    for pod, container in pods(folder):
        assert pod["automountServiceAccountToken"] is False
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("folder", WITH_THE_SERVICE)
def test_what_selects_pods_selects_some(folder: str) -> None:
    labels = [
        one["spec"]["template"]["metadata"]["labels"]
        for (kind, _), one in objects(folder).items()
        if kind == "Deployment"
    ]
    selectors = [
        one["spec"].get("podSelector", one["spec"].get("selector", {}))
        for (kind, _), one in objects(folder).items()
        if kind in {"Service", "NetworkPolicy", "PodDisruptionBudget"}
    ]
    for selector in selectors:
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= of_pod.items() for of_pod in labels)


@pytest.mark.parametrize("folder", WITH_THE_SERVICE)
def test_a_drain_leaves_a_replica_and_replicas_lie_on_different_nodes(folder: str) -> None:
    found = objects(folder)
    assert found["PodDisruptionBudget", "bisenet"]["spec"]["maxUnavailable"] == 1
    spec = found["Deployment", "bisenet"]["spec"]
    keys = {one["topologyKey"] for one in spec["template"]["spec"]["topologySpreadConstraints"]}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    smallest = spec.get("replicas") or found["ScaledObject", "bisenet"]["spec"]["minReplicaCount"]
    assert smallest >= 2


@pytest.mark.parametrize("folder", WITH_THE_SERVICE)
def test_requests_may_finish_before_a_pod_is_killed(folder: str) -> None:
    config = next(one for (kind, name), one in objects(folder).items() if name.startswith("bisenet-config"))
    server = load_settings(_written(config), environment={}).server
    pod = objects(folder)["Deployment", "bisenet"]["spec"]["template"]["spec"]
    _, seconds = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > int(seconds) + server.grace_s


def _written(config: Object) -> Any:
    assert config["data"]["bisenet.toml"] == (K8S / "base/bisenet.toml").read_text()
    return K8S / "base/bisenet.toml"


@pytest.mark.parametrize("folder", [*WITH_THE_SERVICE, "kserve"])
def test_every_variable_is_a_setting(folder: str) -> None:
    containers = [container for _, container in pods(folder)]
    if folder == "kserve":
        containers = objects(folder)["ClusterServingRuntime", "bisenet"]["spec"]["containers"]
    for container in containers:
        load_settings(environment=environment(container) | {"BISENET_AUTH__ALLOW_ANONYMOUS": "true"})


def test_replicas_on_cpus_all_answer_alike() -> None:
    for _, container in (*pods("overlays/cpu"), *pods("overlays/scale")):
        assert load_settings(environment=environment(container)).models.precision == "f32"


def test_a_gpu_is_asked_for_and_none_is_needed_for_an_update() -> None:
    spec = objects("overlays/gpu")["Deployment", "bisenet"]["spec"]
    ((pod, container),) = pods("overlays/gpu")
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"] == "bisenet:gpu"
    assert spec["strategy"]["rollingUpdate"]["maxSurge"] == 0
    assert load_settings(environment=environment(container)).models.device == "cuda:0"
    assert {toleration["key"] for toleration in pod["tolerations"]} == {"nvidia.com/gpu"}


def test_prometheus_scrapes_each_pod_with_the_token_that_the_pod_asks_for() -> None:
    found = objects("overlays/scale")
    monitor, service = found["ServiceMonitor", "bisenet"], found["Service", "bisenet-metrics"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [port["name"] for port in service["spec"]["ports"]] == [endpoint["port"]]
    others = [one for (kind, name), one in found.items() if kind == "Service" and name != "bisenet-metrics"]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    assert not any(wanted.items() <= one["metadata"]["labels"].items() for one in others)
    assert (
        service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "bisenet"
    )  # what the rules call the job
    pod = found["Deployment", "bisenet"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    settings = load_settings(environment=environment(container))
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volume = next(
        volume
        for volume in pod["volumes"]
        if volume["name"] == mounts[str(settings.auth.scrape_token_file.parent)]
    )
    credentials = endpoint["authorization"]["credentials"]
    assert volume["secret"]["secretName"] == credentials["name"]
    assert settings.auth.scrape_token_file.name == credentials["key"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["admin"] == settings.server.admin_port
    assert settings.server.admin_host == "0.0.0.0"


def test_replicas_follow_metrics_that_exist() -> None:
    recorded = (ROOT / "docker/prometheus/rules/recording.yml").read_text()
    known = {metric.name for metric in Metrics().descriptions()}
    scaled = objects("overlays/scale")["ScaledObject", "bisenet"]["spec"]
    for trigger in scaled["triggers"]:
        for name in re.findall(r"(?:job:)?\bbisenet_[\w:]+", trigger["metadata"]["query"]):
            assert name in known or f"record: {name}\n" in recorded
    assert [trigger["metricType"] for trigger in scaled["triggers"]] == ["Value", "AverageValue"]
    assert scaled["minReplicaCount"] < scaled["maxReplicaCount"]


def test_the_autoscaler_without_keda_follows_the_same_metrics_within_the_same_bounds() -> None:
    hpa = yaml.safe_load((K8S / "components/hpa/hpa.yaml").read_text())
    validate(hpa)
    scaled = objects("overlays/scale")["ScaledObject", "bisenet"]["spec"]
    assert hpa["spec"]["minReplicas"] == scaled["minReplicaCount"]
    assert hpa["spec"]["maxReplicas"] == scaled["maxReplicaCount"]
    assert hpa["spec"]["behavior"] == scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    targets = [metric["external"]["target"] for metric in hpa["spec"]["metrics"]]
    assert [target["type"] for target in targets] == [trigger["metricType"] for trigger in scaled["triggers"]]
    adapter = (K8S / "components/hpa/kustomization.yaml").read_text()
    for trigger in scaled["triggers"]:
        assert trigger["metadata"]["query"] in adapter


def test_workers_follow_a_table_that_the_jobs_database_has() -> None:
    (trigger,) = objects("overlays/scale")["ScaledObject", "bisenet-worker"]["spec"]["triggers"]
    found = re.fullmatch(
        r"SELECT count\(\*\) FROM (\w+)\.(\w+) WHERE (\w+) IN \('ENQUEUED', 'PENDING'\)",
        trigger["metadata"]["query"],
    )
    assert found is not None
    table = SystemSchema.workflow_status
    assert (found[1], found[2]) == (SCHEMA, table.name)
    assert found[3] in table.c


def test_what_is_scaled_has_no_number_of_replicas_of_its_own() -> None:
    found = objects("overlays/scale")
    for kind, name in found:
        if kind == "ScaledObject":
            assert "replicas" not in found["Deployment", name]["spec"]


def test_service_and_workers_share_registry_and_database() -> None:
    found = objects("overlays/scale")
    containers = [
        found["Deployment", name]["spec"]["template"]["spec"]["containers"][0]
        for name in ("bisenet", "bisenet-worker")
    ]
    databases = [
        next(one["valueFrom"] for one in container["env"] if one["name"] == "BISENET_JOBS__DATABASE")
        for container in containers
    ]
    assert databases[0] == databases[1]
    assert (
        containers[0]["envFrom"] == containers[1]["envFrom"] == [{"configMapRef": {"name": "bisenet-shared"}}]
    )
    shared = found["ConfigMap", "bisenet-shared"]["data"]
    assert load_settings(environment=shared).jobs.mode == "external"


def test_kserve_finds_the_ports_probes_and_protocols_of_the_runtime() -> None:
    found = objects("kserve")
    runtime = found["ClusterServingRuntime", "bisenet"]["spec"]
    (container,) = runtime["containers"]
    arguments = dict(one.removeprefix("--").split("=") for one in container["args"][1:])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http1": int(arguments["http-port"]), "h2c": int(arguments["grpc-port"])}
    assert ports["http1"] == 8080  # where KServe asks for REST unless it is told otherwise
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} <= PROBE_PATHS
    assert {probe["port"] for probe in probes} == {ports["http1"]}
    assert environment(container)["BISENET_REGISTRY"] == "/mnt/models"
    service = found["InferenceService", "camvid"]["spec"]["predictor"]["model"]
    assert service["protocolVersion"] in runtime["protocolVersions"]
    formats = [(one["name"], one["version"]) for one in runtime["supportedModelFormats"]]
    assert (service["modelFormat"]["name"], service["modelFormat"]["version"]) in formats


def test_the_processes_of_a_training_run_find_each_other() -> None:
    found = objects("train")
    job, service = found["Job", "bisenet-train"]["spec"], found["Service", "bisenet-train"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(
        one.removeprefix("--").split("=", 1) for one in container["args"] if re.match(r"--[\w-]+=", one)
    )
    host, _, port = options["rdzv-endpoint"].partition(":")
    assert host == f"{found['Job', 'bisenet-train']['metadata']['name']}-0.{pod['subdomain']}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert [one["port"] for one in service["spec"]["ports"]] == [int(port)]
    assert int(options["nnodes"]) == job["completions"] == job["parallelism"]
    assert job["completionMode"] == "Indexed"
    assert int(options["nproc-per-node"]) == int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert container["args"][-1] == "--resume"
