from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artifacts.manifest import ARTIFACT_FILES, ModelManifest, ModelReference, ModelVersion
from model.errors import InvalidReferenceError, ManifestError
from model.labels import ClassPalette
from model.pictures.preprocess import ImageSize

quickly = settings(max_examples=40, deadline=None)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
VERSIONS = st.builds(ModelVersion, NAMES, st.integers(1, 999_999_999))
PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(codec="utf-8")),
    lambda children: st.lists(children) | st.dictionaries(PRINTABLE, children),
    max_leaves=4,
)
MEANS = st.tuples(*[st.floats(0, 1)] * 3)
STDS = st.tuples(*[st.floats(0, 1, exclude_min=True)] * 3)


@st.composite
def palettes(draw: st.DrawFn) -> ClassPalette:
    names = draw(st.lists(PRINTABLE, min_size=1, max_size=8, unique=True))
    colors = st.lists(
        st.tuples(*[st.integers(0, 255)] * 3), min_size=len(names), max_size=len(names), unique=True
    )
    return ClassPalette(tuple(names), tuple(draw(colors)), draw(st.integers(len(names), 255)))


MANIFESTS = st.builds(
    ModelManifest,
    architecture=PRINTABLE,
    generation=PRINTABLE,
    parameters=st.dictionaries(PRINTABLE, NUMBERS | st.booleans() | PRINTABLE, max_size=3),
    upsample=st.sampled_from(["bilinear", "bilinear_aligned", "pixel_shuffle"]),
    stride=st.integers(1, 32),
    palette=palettes(),
    mean=MEANS,
    std=STDS,
    precision=st.sampled_from(["f32", "f16", "int8"]),
    training_size=st.none() | st.builds(ImageSize, st.integers(1, 5000), st.integers(1, 5000)),
    files=st.dictionaries(
        st.sampled_from(ARTIFACT_FILES), st.text("0123456789abcdef", min_size=64, max_size=64)
    ),
    derived_from=st.none() | VERSIONS.map(str),
    provenance=st.dictionaries(PRINTABLE, JSON, max_size=3),
)
SAMPLE = ModelManifest(
    architecture="bisenetv2",
    generation="v2-g4",
    parameters={"head_channels": 128},
    upsample="bilinear",
    stride=8,
    palette=ClassPalette(("sky", "fußgänger"), ((1, 2, 3), (4, 5, 6))),
    mean=(1e-5, 0.5, 0.25),
    std=(0.25, 1, 0.5),
    precision="f16",
    training_size=ImageSize(256, 320),
    files=dict.fromkeys(ARTIFACT_FILES, "0" * 64),
    provenance={"command": "bisenet train", "miou": 0.5},
)


def resealed(plain: dict[str, Any]) -> str:
    """Seal changed contents again, as somebody would who means to deceive."""
    plain.pop("manifest_digest", None)
    digest = hashlib.sha256(dumped(plain).encode()).hexdigest()
    return dumped(plain | {"manifest_digest": digest})


def dumped(plain: dict[str, Any]) -> str:
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


@quickly
@given(MANIFESTS)
def test_what_is_written_is_read_back(manifest: ModelManifest) -> None:
    assert ModelManifest.from_json(manifest.to_json()) == manifest


@quickly
@given(st.data())
def test_no_flipped_bit_goes_unnoticed(data: st.DataObject) -> None:
    written = bytearray(SAMPLE.to_json().encode())
    bit = data.draw(st.integers(0, 8 * len(written) - 1))
    written[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ManifestError):
        ModelManifest.from_json(bytes(written))


@quickly
@given(st.binary() | st.text().map(str.encode) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_other_text_is_a_manifest_error(text: bytes) -> None:
    with pytest.raises(ManifestError):
        ModelManifest.from_json(text)


@quickly
@given(st.sampled_from(sorted(json.loads(SAMPLE.to_json()))), JSON)
def test_any_value_under_any_key_is_read_or_refused(key: str, value: object) -> None:
    text = resealed(json.loads(SAMPLE.to_json()) | {key: value})
    try:
        manifest = ModelManifest.from_json(text)
    except ManifestError:
        return
    assert manifest.to_json() == text


def edited(draw: st.DrawFn, value: Any) -> Any:
    """Return a JSON value that differs somewhere inside: replaced, removed, renamed, repeated or added to."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 4)) == 0:
        return draw(JSON | st.sampled_from([True, 0, -1, 1e308, 10**30, "", "0" * 64, [], {}, None]))
    items = list(value.items() if isinstance(value, dict) else enumerate(value))
    at = draw(st.integers(0, len(items) - 1))
    key, inner = items[at]
    others = items[:at] + items[at + 1 :]
    match draw(st.sampled_from(["inside", "inside", "inside", "remove", "rename", "repeat"])):
        case "inside":
            changed = [*items[:at], (key, edited(draw, inner)), *items[at + 1 :]]
        case "remove":
            changed = others
        case "rename":
            changed = [*others, (draw(PRINTABLE), inner)]
        case _:
            changed = [*items, (draw(PRINTABLE), inner)]
    return dict(changed) if isinstance(value, dict) else [inner for _, inner in changed]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_manifest_that_was_edited_anywhere_inside_is_read_or_refused(data: st.DataObject) -> None:
    plain = data.draw(st.composite(edited)(json.loads(SAMPLE.to_json())))
    text = resealed(plain) if isinstance(plain, dict) else json.dumps(plain)
    try:
        manifest = ModelManifest.from_json(text)
    except ManifestError:
        return
    assert manifest.to_json() == text


@quickly
@given(st.data())
def test_no_cut_or_repetition_goes_unnoticed(data: st.DataObject) -> None:
    written = SAMPLE.to_json()
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(written))] * 2)))
    changed = data.draw(st.sampled_from([written[:begin] + written[end:], written[:end] + written[begin:]]))
    if changed != written:
        with pytest.raises(ManifestError):
            ModelManifest.from_json(changed)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"architecture": ""}, "architecture"),
        ({"generation": "v2\n"}, "generation"),
        ({"upsample": "nearest"}, "upsample 'nearest'"),
        ({"precision": "bf16"}, "precision 'bf16'"),
        ({"stride": 0}, "stride"),
        ({"stride": 33}, "stride"),
        ({"mean": (0.5, 0.5, 1.5)}, "mean"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean"),
        ({"std": (0.5, 0.0, 0.5)}, "std"),
        ({"files": {"../manifest.json": "0" * 64}}, "artifact file"),
        ({"files": {"golden.npz": "0" * 63}}, "golden.npz"),
        ({"palette": ClassPalette(("a\x1b[2J",), ((0, 0, 0),))}, "palette.names"),
        ({"derived_from": "someone"}, "derived_from"),
        ({"parameters": {"a": float("inf")}}, "parameters"),
        ({"provenance": {"a": float("nan")}}, "provenance"),
        ({"provenance": {"a": "\ud800"}}, "provenance"),
        ({"provenance": {"a": object()}}, "provenance"),
    ],
)
def test_a_manifest_that_could_not_be_served_is_not_built(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ManifestError, match=named.replace(".", r"\.")):
        dataclasses.replace(SAMPLE, **changes)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("parameters", {"a": [1]}, "parameters"),
        ("palette", {"names": ["a"]}, "palette"),
        ("palette", {"names": ["a", "a"], "colors": [[0, 0, 0], [1, 1, 1]], "ignore_id": 255}, "unique"),
        ("training_size", [0, 5], "training_size"),
        ("training_size", [5], "training_size"),
        ("mean", [0.5, True, 0.5], "mean"),
        ("mean", [0.5, 10**400, 0.5], "mean"),
        ("stride", True, "stride"),
        ("colour", 1, "unknown keys: colour"),
    ],
)
def test_a_malformed_value_is_named(key: str, value: object, named: str) -> None:
    changed = json.loads(SAMPLE.to_json()) | {key: value}
    with pytest.raises(ManifestError, match=named):
        ModelManifest.from_json(json.dumps(changed))


def test_a_missing_key_is_named() -> None:
    changed = json.loads(SAMPLE.to_json())
    del changed["upsample"]
    with pytest.raises(ManifestError, match="missing keys: upsample"):
        ModelManifest.from_json(json.dumps(changed))


def test_an_edited_manifest_says_so() -> None:
    with pytest.raises(ManifestError, match="edited or damaged"):
        ModelManifest.from_json(SAMPLE.to_json().replace("sky", "sea"))


def test_bottomless_json_is_refused() -> None:
    with pytest.raises(ManifestError, match="not JSON"):
        ModelManifest.from_json('{"a":' + "[" * 100_000)


@quickly
@given(VERSIONS)
def test_a_version_is_read_back_from_its_print(version: ModelVersion) -> None:
    assert ModelVersion.parse(str(version)) == version


@quickly
@given(NAMES, NAMES)
def test_each_form_of_a_reference_is_read_back_from_its_print(name: str, alias: str) -> None:
    for text in (name, f"{name}:{alias}", f"{name}@7"):
        assert str(ModelReference.parse(text)) == text


@quickly
@given(st.text())
def test_any_text_is_a_reference_or_an_error(text: str) -> None:
    try:
        reference = ModelReference.parse(text)
    except InvalidReferenceError:
        return
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A",
        ".a",
        "a/b",
        "..",
        "a@",
        "a@0",
        "a@01",
        "a@1.0",
        "a@-1",
        "a@\u0663",
        "a:",
        "a:B",
        "a:b@1",
        "a\n",
        "a" * 129,
        "a@1234567890",
    ],
)
def test_what_could_leave_its_folder_or_be_read_two_ways_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidReferenceError):
        ModelReference.parse(text)


def test_an_alias_is_no_version() -> None:
    with pytest.raises(InvalidReferenceError):
        ModelVersion.parse("camvid:production")


def test_versions_are_ordered_by_number() -> None:
    assert ModelVersion("a", 2) < ModelVersion("a", 10)
