from __future__ import annotations

import os

import pytest
from published_programs import PUBLISHED, Shapes, narrowed, published_shapes

from model.checkpoints.recognition import SIGNATURES, Recognition, recognise
from model.errors import ForeignCheckpointError
from model.networks.generations import GENERATIONS

needs_lists = pytest.mark.skipif("BISENET_DATA_ROOT" not in os.environ, reason="needs BISENET_DATA_ROOT")
LISTS = [(name, facts.list_name) for name, facts in PUBLISHED.items()]
TWINS = [("v1-g1", "v1_old_fp16.txt"), ("v2-g0", "v2_aa3876b.txt")]

BODY: Shapes = {
    "cp.resnet.conv1.weight": (64, 3, 7, 7),
    "cp.resnet.bn1.num_batches_tracked": (),
    "sp.conv1.conv.weight": (64, 3, 7, 7),
    "ffm.conv1.weight": (64, 256, 1, 1),
}


def v1(main: int, coarse: int | None = None) -> Shapes:
    """Return what tells one BiSeNetV1 with a bias from another."""
    heads = {"conv_out.conv_out.weight": (main, 256, 1, 1), "conv_out.conv_out.bias": (main,)}
    if coarse is not None:
        heads["conv_out16.conv_out.weight"] = (main, 64, 1, 1)
        heads["conv_out32.conv_out.weight"] = (coarse, 64, 1, 1)
    return BODY | heads


def without_auxiliary(name: str, shapes: Shapes) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not SIGNATURES[name].is_auxiliary(key)}


def test_every_generation_that_is_recognised_is_known_and_only_our_own_is_not_recognised() -> None:
    assert SIGNATURES.keys() == GENERATIONS.keys() - {"v1-diss", "v1-lite", "v1-lite4"}


@pytest.mark.data
@needs_lists
@pytest.mark.parametrize(("name", "list_name"), [*LISTS, *TWINS])
def test_each_published_list_is_of_its_generation_with_and_without_auxiliary_heads(
    name: str, list_name: str
) -> None:
    shapes = published_shapes(list_name)
    parameters = {"head_channels": 1024} if name.startswith("v2") else {}
    for given in (shapes, without_auxiliary(name, shapes)):
        found = recognise(given)
        assert (found.generation, found.num_classes, found.parameters) == (name, 19, parameters)
    assert len(without_auxiliary(name, shapes)) < len(shapes)


@pytest.mark.data
@needs_lists
@pytest.mark.parametrize(("name", "list_name"), LISTS)
def test_no_single_missing_key_makes_another_generation_of_a_list(name: str, list_name: str) -> None:
    shapes = published_shapes(list_name)
    telling = [key for key in shapes if key.startswith(("ffm.", "conv_out", "head."))]
    found = {
        missing: outcome({key: shape for key, shape in shapes.items() if key != missing})
        for missing in [*telling, *list(shapes)[::9]]
    }
    scores = SIGNATURES[name].scores
    assert found.pop(scores).startswith(f"{name}, but {scores} is missing")
    assert set(found.values()) == {name}


def outcome(shapes: Shapes) -> str:
    try:
        return recognise(shapes).generation
    except ForeignCheckpointError as error:
        return str(error)


@pytest.mark.data
@needs_lists
def test_generations_with_equally_many_keys_are_told_apart_and_the_telling_keys_named() -> None:
    seed, head = (published_shapes(PUBLISHED[name].list_name) for name in ("v2-g2", "v2-g4"))
    assert len(seed) == len(head) == 383
    assert "head.conv_out.0.weight of (1216, 1024, 1, 1)" in recognise(seed).evidence
    assert "head.conv_out.1.weight of (19, 1024, 1, 1)" in recognise(head).evidence


@pytest.mark.data
@needs_lists
@pytest.mark.parametrize("name", ["v2-g0", "v2-g2", "v2-g4"])
def test_classes_and_width_of_a_head_are_read_from_its_shape(name: str) -> None:
    shapes = narrowed(published_shapes(PUBLISHED[name].list_name), num_classes=3, width=16)
    found = recognise(shapes)
    assert (found.generation, found.num_classes, found.parameters) == (name, 3, {"head_channels": 16})


@pytest.mark.parametrize(
    ("main", "coarse", "generation", "num_classes"),
    [
        (19, 19, "v1-g3", 19),
        (128, 128, "v1-g3", 128),  # a multiple of 64, yet no pixel shuffle
        (128, 512, "v1-g2", 2),
        (1216, 4864, "v1-g2", 19),
        (19, None, "v1-g3", 19),
        (1216, None, "v1-g2", 19),
    ],
)
def test_a_pixel_shuffle_is_told_by_the_head_at_stride_16_or_else_by_more_channels_than_classes(
    main: int, coarse: int | None, generation: str, num_classes: int
) -> None:
    found = recognise(v1(main, coarse))
    assert (found.generation, found.num_classes) == (generation, num_classes)


def test_the_evidence_names_keys_that_are_there_and_patterns_that_are_not() -> None:
    shapes = {key: shape for key, shape in v1(19).items() if "num_batches" not in key and "bias" not in key}
    found = recognise(shapes)
    assert found == Recognition(
        "v1-g0",
        GENERATIONS["v1-g0"].title,
        "sp.conv1.conv.weight, ffm.conv1.weight, no *.num_batches_tracked, no conv_out*.conv_out.bias, "
        "conv_out.conv_out.weight of (19, 256, 1, 1)",
        19,
        {},
    )


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "not a BiSeNet"),
        ({"w": (2, 2)}, "they begin with w"),
        ({"fpn.backbone.conv1.weight": (64, 3, 7, 7)}, "they begin with fpn"),
        ({"detail.S1.0.conv.weight": (64, 3, 3, 3)}, "nearest is v2-g0, but no key is head"),
        (BODY, r"v1-g1, but conv_out\.conv_out\.weight is missing"),
        ({key: BODY[key] for key in list(BODY)[:3]} | {"conv_out.conv_out.bias": (2,)}, "no key is ffm"),
        (v1(1217, 4868), r"conv_out\.conv_out\.weight is \(1217, 256, 1, 1\).*1\.\.255, times 64"),
        (v1(64 * 256, 256 * 256), "no number of classes"),
        (v1(0), "no number of classes"),
        (v1(19) | {"conv_out.conv_out.weight": (19,)}, r"is \(19,\)"),
        ({k: s for k, s in v1(19).items() if k != "conv_out.conv_out.weight"}, "is missing"),
        (dict.fromkeys(v1(19, 19), ()), r"conv_out\.conv_out\.weight is missing"),
    ],
)
def test_what_is_of_no_generation_is_refused_with_the_reason(shapes: Shapes, message: str) -> None:
    with pytest.raises(ForeignCheckpointError, match=message):
        recognise(shapes)
