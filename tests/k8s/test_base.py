"""``k8s/base``: what the API server would refuse, and what it would accept although it cannot work."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.http_api.access import LOOPBACK_HOSTS
from service.http_api.edge import PROBE_PATHS
from service.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
BASE = ROOT / "k8s/base"
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
SUPPORTED = ("1.30", "1.37")
"""Kubernetes versions: the oldest and the newest."""

Object = dict[str, Any]


def read_all(name: str) -> list[Object]:
    return list(yaml.safe_load_all((BASE / name).read_text()))


def read(name: str) -> Object:
    return read_all(name)[0]


KUSTOMIZATION = read("kustomization.yaml")
DEPLOYMENT = read("deployment.yaml")
SERVICE = read("service.yaml")
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]


def settings() -> Settings:
    (config,) = (argument for argument in CONTAINER["args"] if argument.endswith(".toml"))
    return load_settings(BASE / Path(config).name, environment={})


def from_the_dockerfile(pattern: str) -> str:
    found = re.search(pattern, DOCKERFILE, re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("name", KUSTOMIZATION["resources"])
def test_each_object_matches_its_strict_schema(name: str, version: str) -> None:
    for one in read_all(name):
        kubernetes_validate.validate(one, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    misspelt = DEPLOYMENT | {"spec": DEPLOYMENT["spec"] | {"replicsa": 3}}
    with pytest.raises(kubernetes_validate.ValidationError, match="replicsa"):
        kubernetes_validate.validate(misspelt, SUPPORTED[0], strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed here")
def test_kustomize_renders_objects_that_match_their_schemas() -> None:
    command = ["kubectl", "kustomize", str(BASE)]
    rendered = list(yaml.safe_load_all(subprocess.run(command, capture_output=True, check=True).stdout))
    written = [one for name in KUSTOMIZATION["resources"] for one in read_all(name)]
    assert len(rendered) == len(written) + len(KUSTOMIZATION["configMapGenerator"])
    for rendered_object in rendered:
        kubernetes_validate.validate(rendered_object, SUPPORTED[-1], strict=True)


def test_no_file_is_forgotten_in_the_kustomization() -> None:
    generated = [file for generator in KUSTOMIZATION["configMapGenerator"] for file in generator["files"]]
    listed = {"kustomization.yaml", *KUSTOMIZATION["resources"], *generated}
    assert listed == {path.name for path in BASE.iterdir()}


def test_the_deployment_and_the_service_select_the_pods() -> None:
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert SERVICE["spec"]["selector"].items() <= labels.items()


def test_the_service_and_the_probes_reach_the_ports_that_are_listened_on() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    server = settings().server
    assert ports == {"http": server.http_port, "grpc": server.grpc_port}
    assert {port["targetPort"] for port in SERVICE["spec"]["ports"]} == ports.keys()
    assert {probe["port"] for probe in probes} == {"http"}
    assert {probe["path"] for probe in probes} <= PROBE_PATHS


def test_probes_pass_whatever_hosts_are_allowed() -> None:
    for kind in ("startup", "readiness", "liveness"):
        (header,) = CONTAINER[f"{kind}Probe"]["httpGet"]["httpHeaders"]
        assert header["name"] == "Host"
        assert header["value"] in LOOPBACK_HOSTS


def test_the_pod_is_admitted_where_the_restricted_standard_is_enforced() -> None:
    """Source: kubernetes.io/docs/concepts/security/pod-security-standards, level restricted."""
    pod, container = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & POD.keys()
    assert not any("hostPort" in port for port in CONTAINER["ports"])
    allowed = {"configMap", "emptyDir", "secret"}
    assert all(volume.keys() - {"name"} <= allowed for volume in POD["volumes"])


def test_the_namespace_enforces_the_restricted_standard() -> None:
    assert read("namespace.yaml")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert read("namespace.yaml")["metadata"]["name"] == KUSTOMIZATION["namespace"]


def test_the_pod_can_neither_write_to_its_root_nor_ask_the_cluster_anything() -> None:
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert POD["automountServiceAccountToken"] is False


def test_the_pod_runs_as_the_user_of_the_image_and_can_write_to_its_volume() -> None:
    user = int(from_the_dockerfile(r"^USER (\d+):"))
    context = POD["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (user, user, user)
    writable = [volume["name"] for volume in POD["volumes"] if "emptyDir" in volume]
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"] if mount["name"] in writable}
    assert mounts == {"/tmp", from_the_dockerfile(r"^VOLUME (/var\S+)$")}


def test_the_configuration_and_the_keys_are_where_the_service_looks_for_them() -> None:
    folders = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert folders.keys() == {volume["name"] for volume in POD["volumes"]}
    assert CONTAINER["args"] == ["serve", "--config", f"{folders['config']}/bisenet.toml"]
    keys_file = settings().auth.keys_file
    assert keys_file is not None
    assert str(keys_file.parent) == folders["api-keys"]


def test_the_token_of_the_admin_port_is_where_it_says() -> None:
    (made,) = re.findall(r"-- cat (\S+)", (BASE / "kustomization.yaml").read_text())
    folders = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert made == from_the_dockerfile(r"BISENET_AUTH__ADMIN_TOKEN_FILE=(\S+)")
    assert str(Path(made).parent) == folders["state"]


def test_the_pod_listens_to_others_and_lets_no_stranger_in() -> None:
    assert not settings().server.is_loopback
    assert not settings().auth.allow_anonymous


def test_requests_may_finish_before_the_pod_is_killed() -> None:
    sleep, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    assert POD["terminationGracePeriodSeconds"] > int(seconds) + settings().server.grace_s


def test_a_rolling_update_takes_no_pod_away_before_another_is_ready() -> None:
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_it_runs_the_image_that_compose_builds() -> None:
    (service,) = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    assert CONTAINER["image"] == service["image"]
