"""The JSON documents below ``/v2``, as ``/openapi.json`` describes them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from service.open_inference.metadata import ModelMetadata, TensorMetadata


class PlainErrorDocument(BaseModel):
    """An error below ``/v2``; ``code`` is one of the service's error codes."""

    error: str
    code: str
    request_id: str


class ServerDocument(BaseModel):
    """The server and the extensions of the protocol that it has."""

    name: str
    version: str
    extensions: list[str]


class LiveDocument(BaseModel):
    """The process answers."""

    live: bool = True


class ReadyDocument(BaseModel):
    """Requests are answered."""

    ready: bool = True


class ModelReadyDocument(ReadyDocument):
    """A version answers requests."""

    name: str


class ModelNamesDocument(BaseModel):
    """Names of the served models, the default one first."""

    models: list[str]


class TensorDocument(BaseModel):
    """A tensor of a model; -1 is an axis whose length a request chooses."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataDocument(BaseModel):
    """A model; its one input has two forms, of which a request sends one."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDocument]
    outputs: list[TensorDocument]


class ConfigTensorDocument(BaseModel):
    """A tensor as Triton's model configuration describes it."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfigDocument(BaseModel):
    """A model in the terms of Triton's model configuration; tensors have their batch axis themselves."""

    name: str
    platform: str
    backend: str
    max_batch_size: int = 0
    input: list[ConfigTensorDocument]
    output: list[ConfigTensorDocument]


class StatisticsDocument(BaseModel):
    """Triton's statistics of each version that was asked for."""

    model_stats: list[dict[str, Any]]


class IndexQuery(BaseModel):
    """Which versions to list."""

    model_config = ConfigDict(extra="ignore", strict=True)

    ready: bool = False


class IndexEntryDocument(BaseModel):
    """A version and its state: ``READY`` or ``LOADING``."""

    name: str
    version: str
    state: str
    reason: str = ""


_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "INT64": "TYPE_INT64", "FP16": "TYPE_FP16"}


def metadata_document(metadata: ModelMetadata) -> ModelMetadataDocument:
    """Describe a model."""
    return ModelMetadataDocument(
        name=metadata.name,
        versions=list(metadata.versions),
        platform=metadata.platform,
        inputs=[_tensor(tensor) for tensor in metadata.inputs],
        outputs=[_tensor(tensor) for tensor in metadata.outputs],
    )


def config_document(metadata: ModelMetadata) -> ModelConfigDocument:
    """Describe a model in Triton's terms."""
    return ModelConfigDocument(
        name=metadata.name,
        platform=metadata.platform,
        backend=metadata.platform.partition("_")[0],
        input=[_config_tensor(tensor) for tensor in metadata.inputs],
        output=[_config_tensor(tensor) for tensor in metadata.outputs],
    )


def _tensor(tensor: TensorMetadata) -> TensorDocument:
    return TensorDocument(name=tensor.name, datatype=tensor.datatype, shape=list(tensor.shape))


def _config_tensor(tensor: TensorMetadata) -> ConfigTensorDocument:
    return ConfigTensorDocument(
        name=tensor.name, data_type=_CONFIG_TYPES[tensor.datatype], dims=list(tensor.shape)
    )
