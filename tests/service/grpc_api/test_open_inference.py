"""The Open Inference Protocol over gRPC: the native method's labels, errors as statuses, streams in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from fakes import PATIENCE_S, FakeEngine, key_ring
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_site import GrpcSite, details_of, open_grpc_site, reason_of
from http_site import encoded, picture_of
from infer_bodies import elements, elements_of

from model.labels import UInt8Array
from service.core.keys.access_key import AccessKey
from service.core.keys.key_ring import KeyRing
from service.grpc_api.open_inference_messages import MAX_FIELDS, infer_request_of
from service.grpc_api.servicer import ServicerOptions
from service.open_inference.images import MAX_PICTURES
from service.wire import open_inference_pb2 as wire
from service.wire import segmentation_pb2
from service.wire.open_inference_pb2_grpc import GRPCInferenceServiceStub

IDS_hw = np.repeat(np.repeat(np.array([[0, 1, 2], [3, 2, 1]], np.uint8), 2, 0), 2, 1)
IMAGE_HW3 = picture_of(np.repeat(np.repeat(IDS_hw, 8, 0), 8, 1))
PICTURE = encoded(IMAGE_HW3)
Tensor = wire.ModelInferRequest.InferInputTensor
Output = wire.ModelInferRequest.InferRequestedOutputTensor


@pytest.fixture
async def site() -> AsyncIterator[GrpcSite]:
    async with open_grpc_site() as site:
        yield site


def stub_of(site: GrpcSite) -> Any:
    return GRPCInferenceServiceStub(site.channel)


def request(*files: bytes, outputs: tuple[str, ...] = ("labels",), **changes: Any) -> wire.ModelInferRequest:
    parameters = {name: wire.InferParameter(**value) for name, value in changes.pop("parameters", {}).items()}
    fields = {
        "model_name": "fake",
        "inputs": [Tensor(name="image", datatype="BYTES", shape=[len(files)])],
        "outputs": [Output(name=name) for name in outputs],
        "raw_input_contents": [elements(*files)],
        "parameters": parameters,
        **changes,
    }
    return wire.ModelInferRequest(**fields)


def pixels(**changes: Any) -> wire.ModelInferRequest:
    tensor = Tensor(name="image", datatype="UINT8", shape=[2, *IMAGE_HW3.shape])
    return request(**{"inputs": [tensor], "raw_input_contents": [2 * IMAGE_HW3.tobytes()], **changes})


async def infer(site: GrpcSite, message: wire.ModelInferRequest) -> wire.ModelInferResponse:
    response: wire.ModelInferResponse = await stub_of(site).ModelInfer(message, timeout=PATIENCE_S)
    return response


async def refusal(site: GrpcSite, message: wire.ModelInferRequest) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await infer(site, message)
    return caught.value


async def native_labels(site: GrpcSite) -> UInt8Array:
    image = segmentation_pb2.Image(data=PICTURE)
    message = segmentation_pb2.SegmentRequest(image=image, mask=segmentation_pb2.RAW)
    mask = (await site.stub.Segment(message, timeout=PATIENCE_S)).mask
    return np.frombuffer(mask.data, np.uint8).reshape(mask.height, mask.width)


async def test_files_and_pixels_give_the_labels_of_the_native_method(site: GrpcSite) -> None:
    expected_HW = await native_labels(site)
    for message in (request(PICTURE, PICTURE, id="r-1"), pixels(id="r-1")):
        response = await infer(site, message)
        assert (response.model_name, response.model_version, response.id) == ("fake", "3", "r-1")
        (tensor,) = response.outputs
        assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("labels", "UINT8", [2, 32, 48])
        assert list(response.raw_output_contents) == [2 * expected_HW.tobytes()]


async def test_contents_carry_files_and_pixels_too(site: GrpcSite) -> None:
    expected = (await native_labels(site)).tobytes()
    files = wire.InferTensorContents(bytes_contents=[PICTURE])
    tensor = Tensor(name="image", datatype="BYTES", shape=[1], contents=files)
    response = await infer(site, request(inputs=[tensor], raw_input_contents=[]))
    assert list(response.raw_output_contents) == [expected]
    values = wire.InferTensorContents(uint_contents=IMAGE_HW3.ravel().tolist())
    tensor = Tensor(name="image", datatype="UINT8", shape=[1, *IMAGE_HW3.shape], contents=values)
    response = await infer(site, request(inputs=[tensor], raw_input_contents=[]))
    assert list(response.raw_output_contents) == [expected]


async def test_without_outputs_all_but_confidence_come_in_the_order_of_the_metadata(site: GrpcSite) -> None:
    response = await infer(site, request(PICTURE, outputs=()))
    metadata = await stub_of(site).ModelMetadata(wire.ModelMetadataRequest(name="fake"), timeout=PATIENCE_S)
    described = [tensor.name for tensor in metadata.outputs if tensor.name != "confidence"]
    assert [tensor.name for tensor in response.outputs] == described
    raw = dict(zip([tensor.name for tensor in response.outputs], response.raw_output_contents, strict=True))
    assert elements_of(raw["overlay_jpeg"])[0].startswith(b"\xff\xd8")
    assert np.frombuffer(raw["class_pixels"], "<i8").sum() == IMAGE_HW3[..., 0].size


async def test_the_confidence_is_that_of_the_native_method(site: GrpcSite) -> None:
    image = segmentation_pb2.Image(data=PICTURE)
    message = segmentation_pb2.SegmentRequest(image=image, confidence=segmentation_pb2.CONFIDENCE_MEAN)
    native = (await site.stub.Segment(message, timeout=PATIENCE_S)).confidence.classes
    response = await infer(site, request(PICTURE, PICTURE, outputs=("confidence", "labels")))
    tensor = response.outputs[0]
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("confidence", "FP16", [2, 4])
    confidence_NK = np.frombuffer(response.raw_output_contents[0], "<f2").reshape(2, 4)
    assert confidence_NK[1].tolist() == pytest.approx([one.mean for one in native], rel=2**-11)


async def test_the_server_and_its_models_describe_themselves(site: GrpcSite) -> None:
    stub = stub_of(site)
    assert (await stub.ServerLive(wire.ServerLiveRequest(), timeout=PATIENCE_S)).live
    assert (await stub.ServerReady(wire.ServerReadyRequest(), timeout=PATIENCE_S)).ready
    server = await stub.ServerMetadata(wire.ServerMetadataRequest(), timeout=PATIENCE_S)
    assert (server.name, "statistics" in server.extensions) == ("bisenet-service", True)
    named = wire.ModelMetadataRequest(name="fake", version="3")
    metadata = await stub.ModelMetadata(named, timeout=PATIENCE_S)
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("fake", ["3"], "bisenet_fake")
    forms = [(tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs]
    assert forms == [("BYTES", [-1]), ("UINT8", [-1, -1, -1, 3])]
    assert (await stub.ModelReady(wire.ModelReadyRequest(name="other"), timeout=PATIENCE_S)).ready
    index = await stub.RepositoryIndex(wire.RepositoryIndexRequest(), timeout=PATIENCE_S)
    assert [(one.name, one.version, one.state) for one in index.models] == [
        ("fake", "3", "READY"),
        ("other", "1", "READY"),
    ]
    site.site.lifecycle.draining = True
    assert not (await stub.ServerReady(wire.ServerReadyRequest(), timeout=PATIENCE_S)).ready


async def test_health_knows_the_service(site: GrpcSite) -> None:
    health = health_pb2_grpc.HealthStub(site.channel)
    asked = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
    assert (await health.Check(asked, timeout=PATIENCE_S)).status == health_pb2.HealthCheckResponse.SERVING


async def test_the_index_of_a_picture_that_fails_is_named(site: GrpcSite) -> None:
    error = await refusal(site, request(PICTURE, b"GIF89a", PICTURE))
    assert (error.code(), reason_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "unsupported_media")
    assert str(error.details()).startswith("image[1]: ")


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        (request(PICTURE, model_name="nope"), grpc.StatusCode.NOT_FOUND, "'nope'"),
        (request(PICTURE, model_version="9"), grpc.StatusCode.NOT_FOUND, "fake@9"),
        (request(PICTURE, model_version="x"), grpc.StatusCode.NOT_FOUND, "number"),
        (request(PICTURE, inputs=[]), grpc.StatusCode.INVALID_ARGUMENT, "one input"),
        (request(PICTURE, outputs=("nothing",)), grpc.StatusCode.INVALID_ARGUMENT, "no output"),
        (request(PICTURE, outputs=("labels", "labels")), grpc.StatusCode.INVALID_ARGUMENT, "more than once"),
        (request(PICTURE, raw_input_contents=[]), grpc.StatusCode.INVALID_ARGUMENT, "1 elements, the data 0"),
        (request(PICTURE, raw_input_contents=[b"", b""]), grpc.StatusCode.INVALID_ARGUMENT, "each input"),
        (pixels(raw_input_contents=[b"abc"]), grpc.StatusCode.INVALID_ARGUMENT, "bytes, not 3"),
        (request(*[PICTURE] * (MAX_PICTURES + 1)), grpc.StatusCode.INVALID_ARGUMENT, "64 pictures"),
        (
            request(PICTURE, parameters={"timeout": {"int64_param": -1}}),
            grpc.StatusCode.INVALID_ARGUMENT,
            "tim",
        ),
        (request(PICTURE, parameters={"priority": {}}), grpc.StatusCode.INVALID_ARGUMENT, "priority"),
        (
            request(PICTURE, parameters={"timeout": {"int64_param": 1}}),
            grpc.StatusCode.DEADLINE_EXCEEDED,
            "dead",
        ),
    ],
)
async def test_what_is_wrong_is_a_status_with_our_text(
    site: GrpcSite, message: wire.ModelInferRequest, code: grpc.StatusCode, words: str
) -> None:
    error = await refusal(site, message)
    assert error.code() is code
    assert words in str(error.details())
    assert details_of(error)["ErrorInfo"].domain == "segmentation.v1"


async def test_values_that_are_no_bytes_are_refused(site: GrpcSite) -> None:
    for values in ([1, 2], [1, 2, 256]):
        contents = wire.InferTensorContents(uint_contents=values)
        tensor = Tensor(name="image", datatype="UINT8", shape=[1, 1, 1, 3], contents=contents)
        error = await refusal(site, request(inputs=[tensor], raw_input_contents=[]))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_priority_may_be_of_either_whole_type(site: GrpcSite) -> None:
    for parameter in ({"int64_param": 2}, {"uint64_param": 3}):
        await infer(site, request(PICTURE, parameters={"priority": parameter}))


async def test_a_message_of_too_many_fields_is_none() -> None:
    assert infer_request_of(b"\x2a\x00" * MAX_FIELDS) is not None
    assert infer_request_of(b"\x2a\x00" * (MAX_FIELDS + 1)) is None
    nested = wire.ModelInferRequest(
        inputs=[Tensor(contents=wire.InferTensorContents(bytes_contents=[b""] * MAX_FIELDS))]
    )
    assert infer_request_of(nested.SerializeToString()) is None
    for garbage in (b"\xff" * 20, b"\x2b\x2c", b"\x2a\x05a", b"\x0d\x00"):
        assert infer_request_of(garbage) is None
    good = request(PICTURE, id="r")
    assert infer_request_of(good.SerializeToString()) == good


async def test_a_key_is_asked_for() -> None:
    async with open_grpc_site(options=ServicerOptions(keys=key_ring("k"))) as site:
        assert (await refusal(site, request(PICTURE))).code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", "Bearer k"),)
        await stub_of(site).ModelInfer(request(PICTURE), metadata=metadata, timeout=PATIENCE_S)


async def test_a_key_of_streams_opens_the_stream_alone() -> None:
    keys = KeyRing([AccessKey.of_secret("camera", ("stream",))])
    metadata = (("authorization", "Bearer camera"),)
    async with open_grpc_site(options=ServicerOptions(keys=keys)) as site:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub_of(site).ModelInfer(request(PICTURE), metadata=metadata, timeout=PATIENCE_S)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        stream = stub_of(site).ModelStreamInfer([request(PICTURE)], metadata=metadata, timeout=PATIENCE_S)
        assert [answer.error_message async for answer in stream] == [""]


async def test_what_is_in_memory_counts_against_the_budget_of_pictures() -> None:
    async with open_grpc_site(options=ServicerOptions(max_image_bytes_in_flight=100)) as site:
        first = asyncio.create_task(infer(site, request(PICTURE)))
        await first  # a single one is always admitted
    engine = FakeEngine(held=True)
    async with open_grpc_site(engine, options=ServicerOptions(max_image_bytes_in_flight=100)) as site:
        first = asyncio.create_task(infer(site, request(PICTURE)))
        await asyncio.to_thread(engine.wait_until_busy)
        error = await refusal(site, request(PICTURE))
        assert (error.code(), reason_of(error)) == (grpc.StatusCode.UNAVAILABLE, "busy")
        engine.go_on()
        await first


async def test_a_stream_answers_in_order_and_an_error_leaves_it_open(site: GrpcSite) -> None:
    messages = [request(PICTURE, id="a"), request(b"GIF89a", id="b"), request(PICTURE, id="c")]
    answers = [answer async for answer in stub_of(site).ModelStreamInfer(iter(messages), timeout=PATIENCE_S)]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, False]
    assert answers[0].infer_response.raw_output_contents == answers[2].infer_response.raw_output_contents


async def test_a_drain_ends_a_stream_that_waits(site: GrpcSite) -> None:
    call = stub_of(site).ModelStreamInfer(timeout=PATIENCE_S)
    await call.write(request(PICTURE, id="a"))
    assert (await call.read()).infer_response.id == "a"
    site.drain()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.UNAVAILABLE, "draining")


async def test_the_metrics_know_the_method(site: GrpcSite) -> None:
    await infer(site, request(PICTURE))
    text = site.site.metrics.exposition()[0].decode()
    assert 'route="/inference.GRPCInferenceService/ModelInfer"' in text
