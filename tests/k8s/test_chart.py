"""``k8s/chart``: makes the objects of the overlays, and checks its values first."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from kubernetes_objects import (
    K8S,
    ROOT,
    comparable,
    helm,
    kustomized,
    needs_helm,
    needs_kubectl,
    templated,
    validate,
)

EVERYTHING = ("monitoring", "workers", "keda")
SCHEMA = json.loads((K8S / "chart/values.schema.json").read_text())
VALUES = yaml.safe_load((K8S / "chart/values.yaml").read_text())


@needs_helm
@needs_kubectl
@pytest.mark.parametrize(("switched_on", "overlay"), [((), "cpu"), (EVERYTHING, "scale")])
def test_the_chart_makes_the_objects_of_the_overlay(switched_on: tuple[str, ...], overlay: str) -> None:
    made, wanted = comparable(templated(*switched_on)), comparable(kustomized(f"overlays/{overlay}"))
    assert made.keys() == wanted.keys()
    for name, one in wanted.items():
        assert made[name] == one, name


@needs_helm
@pytest.mark.parametrize(
    "switched_on", [(), ("monitoring",), ("workers",), ("monitoring", "keda"), EVERYTHING]
)
def test_each_object_of_the_chart_matches_its_strict_schema(switched_on: tuple[str, ...]) -> None:
    for one in templated(*switched_on).values():
        validate(one)


@needs_helm
def test_helm_has_nothing_to_say_against_the_chart() -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(K8S / "chart"))


@needs_helm
def test_a_digest_wins_over_a_tag() -> None:
    digest = f"sha256:{64 * 'a'}"
    deployment = templated(**{"image.digest": digest})["Deployment", "bisenet"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"bisenet@{digest}"


@needs_helm
def test_scaling_without_measuring_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keda\.enabled needs monitoring\.enabled"):
        templated("keda")


@needs_helm
def test_helm_refuses_a_value_that_the_schema_does_not_know() -> None:
    with pytest.raises(ValueError, match="replicsa"):
        templated(replicsa="3")


def test_the_chart_s_own_values_match_the_schema() -> None:
    jsonschema.validate(VALUES, SCHEMA, jsonschema.Draft202012Validator)


def test_the_schema_knows_every_value_and_no_other() -> None:
    def names(schema: dict[str, object]) -> object:
        known = schema.get("properties")
        return {name: names(value) for name, value in known.items()} if isinstance(known, dict) else None

    def of_values(value: object, known: object) -> object:
        if not isinstance(known, dict) or not isinstance(value, dict):
            return None
        return {name: of_values(one, known.get(name)) for name, one in value.items()}

    known = names(SCHEMA)
    assert isinstance(known, dict)
    del known["global"]  # helm adds it
    assert of_values(VALUES, known) == known


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 0},
        {"image": {"repository": "bisenet", "tag": "cpu", "digest": "latest"}},
        {"env": {"MODELS": "x"}},
        {"env": {"BISENET_MODELS__SERVE": 3}},
        {"monitoring": {"enabled": "yes"}},
        {"keda": {"maxWorkers": 0}},
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(VALUES | wrong, SCHEMA, jsonschema.Draft202012Validator)


def test_the_settings_of_the_chart_are_those_of_the_base() -> None:
    assert VALUES["settings"] == (K8S / "base/bisenet.toml").read_text()


def test_the_rules_are_what_their_program_writes_from_those_of_prometheus() -> None:
    spec = importlib.util.spec_from_file_location("generate_dashboards", ROOT / ".ci/generate_dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = program
    spec.loader.exec_module(program)
    groups = [
        group
        for file in sorted((ROOT / "docker/prometheus/rules").glob("*.yml"))
        for group in yaml.safe_load(file.read_text())["groups"]
    ]
    for path, text in program.rule_files().items():
        assert Path(ROOT / path).read_text() == text, "run `make dashboards`"
        written = yaml.safe_load(text)
        assert written.get("spec", written)["groups"] == groups
