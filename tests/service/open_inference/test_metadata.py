"""Metadata names what requests may hold, and nothing else."""

from __future__ import annotations

from http_site import open_site

from model.artifacts.manifest import ModelVersion
from model.pictures.preprocess import ImageSize
from service.open_inference.images import ImageTensor
from service.open_inference.metadata import INPUTS, model_metadata, output_metadata
from service.open_inference.outputs import OUTPUT_KINDS


def test_each_form_of_the_input_is_one_that_requests_may_send() -> None:
    for tensor in INPUTS:
        shape = [2 if length < 0 else length for length in tensor.shape]
        assert ImageTensor.parse(tensor.name, tensor.datatype, shape).count == 2


def test_each_output_of_the_metadata_is_one_that_requests_may_ask_for_with_the_same_axes() -> None:
    described = {tensor.name: tensor for tensor in output_metadata(7)}
    assert list(described) == list(OUTPUT_KINDS)
    for name, kind in OUTPUT_KINDS.items():
        assert kind.datatype == described[name].datatype
        assert len(kind.axes(ImageSize(4, 5), 7)) == len(described[name].shape) - 1


async def test_a_model_tells_all_of_its_served_versions() -> None:
    versions = (ModelVersion("fake", 3), ModelVersion("other", 1), ModelVersion("fake", 11))
    async with open_site(versions=versions) as site:
        metadata = model_metadata(site.host, site.host.find("fake", 11))
    assert (metadata.name, metadata.versions, metadata.platform) == ("fake", ("3", "11"), "bisenet_fake")
