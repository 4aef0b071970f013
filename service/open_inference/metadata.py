"""What the protocol says of the server and of each model: names, datatypes and shapes of tensors.

Axes: N pictures, H height, W width, K classes, 3 = red green blue.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

from service.core.models.loaded_model import LoadedModel
from service.core.models.model_host import ModelHost

Datatype = Literal["BYTES", "UINT8", "INT64", "FP16"]

SERVER_NAME = "bisenet-service"
EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
)
IMAGE = "image"

VARIABLE = -1
"""Length of an axis that a request chooses."""


@dataclass(frozen=True)
class TensorMetadata:
    """A tensor that a model takes or returns.

    Attributes:
        name: unique among the outputs of a model; the input has one name and two forms.
        datatype: of its elements.
        shape: length of each axis.
    """

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


INPUTS = (
    TensorMetadata(IMAGE, "BYTES", (VARIABLE,)),
    TensorMetadata(IMAGE, "UINT8", (VARIABLE, VARIABLE, VARIABLE, 3)),
)
"""The two forms of the one input: N files (JPEG, PNG, WebP), or RGB pixels [N, H, W, 3]."""


@dataclass(frozen=True)
class ModelMetadata:
    """A model as the protocol describes it.

    Attributes:
        name: of the model.
        versions: numbers of its served versions.
        platform: what runs it.
        inputs: forms of its input.
        outputs: what a request may ask for; ``confidence`` comes only where it is named.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


def server_version() -> str:
    """Return the version of the program."""
    return importlib.metadata.version("bisenet-service")


def output_metadata(num_classes: int) -> tuple[TensorMetadata, ...]:
    """Return the outputs of a model with K classes."""
    return (
        TensorMetadata("labels", "UINT8", (VARIABLE, VARIABLE, VARIABLE)),
        TensorMetadata("mask_png", "BYTES", (VARIABLE,)),
        TensorMetadata("overlay_jpeg", "BYTES", (VARIABLE,)),
        TensorMetadata("class_pixels", "INT64", (VARIABLE, num_classes)),
        TensorMetadata("confidence", "FP16", (VARIABLE, num_classes)),
    )


def model_metadata(host: ModelHost, model: LoadedModel) -> ModelMetadata:
    """Describe the model of a version.

    Args:
        host: knows the other served versions.
        model: the version that a client named.
    """
    name = model.version.name
    numbers = sorted(served.version.number for served in host.models if served.version.name == name)
    return ModelMetadata(
        name=name,
        versions=tuple(map(str, numbers)),
        platform=platform_of(model),
        inputs=INPUTS,
        outputs=output_metadata(model.manifest.palette.num_classes),
    )


def platform_of(model: LoadedModel) -> str:
    """Return the protocol's ``<project>_<format>`` of a version."""
    return f"bisenet_{model.engine.engine}"
