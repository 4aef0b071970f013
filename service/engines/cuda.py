"""The engine of a network on an NVIDIA GPU: copies and computation of consecutive batches overlap.

Axes: N images in a batch, K channels of the head, H height, W width (of the padded input), h w = H/stride
W/stride, B bytes.

Pictures are gathered in pinned memory and copied on a stream of their own while the network runs on the batch
before. Labels are decoded on the GPU: they have 1/64 of the size of the scores at full resolution, and the
CPU is free for pictures.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.artifacts.manifest import ModelManifest
from model.decoding import decode_cuda
from model.decoding.confidence_torch import confidence
from model.errors import ModelOutputError
from model.labels import UInt8Array
from model.pictures.preprocess import PreparedImage
from service.core.device.engine import (
    DeviceLostError,
    DeviceMemoryError,
    EngineInfo,
    Float32Array,
    ImageBatch,
    PendingLabels,
)
from service.engines.cuda_graphs import NetworkProgram


class CudaEngine:
    """Runs batches on one stream of one GPU; used by one thread at a time.

    Args:
        program: the network.
        manifest: says how the raw output becomes labels.
        info: of this engine.
    """

    def __init__(self, program: NetworkProgram, manifest: ModelManifest, info: EngineInfo) -> None:
        self._program = program
        self._manifest = manifest
        self._info = info
        device = torch.device(info.device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # untyped in torch
        self._device = device
        self._free: list[_Staging] = []

    @property
    def info(self) -> EngineInfo:
        """Name, device and precision."""
        return self._info

    def infer(self, images_NHW3: ImageBatch) -> Float32Array:
        """Run the network.

        Args:
            images_NHW3: RGB, uint8 or float32 of 0..255, both sides multiples of 32.

        Returns:
            raw_NKhw: float32, C-contiguous; the caller owns it.

        Raises:
            DeviceMemoryError: the device has too little memory for the batch.
            DeviceLostError: the device is lost to this process.
        """
        with _device_errors(), torch.inference_mode(), torch.cuda.stream(self._stream):
            images = torch.from_numpy(np.ascontiguousarray(images_NHW3)).to(self._info.device)
            raw_NKhw: Float32Array = self._program(images).float().contiguous().cpu().numpy()
        return raw_NKhw

    def begin(self, pictures: Sequence[PreparedImage], labels: Sequence[UInt8Array]) -> PendingLabels:
        """Enqueue a batch and return while it runs; more batches may begin before this one is fetched.

        Args:
            pictures: of one padded size.
            labels: arrays for the answer to each picture (``answer_shape``), uint8; written by the returned
                function.

        Returns:
            Function that waits for the batch; to be called once. It returns for each picture None, or
            ``ModelOutputError`` where the scores are not finite.

        Raises:
            DeviceMemoryError: the device has too little memory for the batch.
            DeviceLostError: the device is lost to this process.
        """
        # A batch has memory of its own until it is fetched, because a batch that failed begins again, in
        # parts, while the next one runs. The memory of a ``begin`` that raises is not used again.
        staging = self._free.pop() if self._free else _Staging(self._device)
        with _device_errors(), torch.inference_mode():
            with torch.cuda.stream(self._copies):
                images_NHW3 = staging.upload([picture.pixels_HW3 for picture in pictures])
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(staging.uploaded)
                raw_NKhw = self._program(images_NHW3)
                drawn = [self._answer(raw_NKhw[i], picture) for i, picture in enumerate(pictures)]
                staging.download(drawn, decode_cuda.are_finite(raw_NKhw))
        return partial(self._fetch, staging, labels)

    def close(self) -> None:
        """Wait for the batches that run; the memory is freed with the engine."""
        self._stream.synchronize()

    def _fetch(self, staging: _Staging, labels: Sequence[UInt8Array]) -> list[ModelOutputError | None]:
        flaws = staging.fetch(labels)
        self._free.append(staging)
        return flaws

    def _answer(self, raw_Khw: Tensor, picture: PreparedImage) -> Tensor:
        geometry: dict[str, Any] = {
            "upsample": self._manifest.upsample,
            "stride": self._manifest.stride,
            "padded": picture.padded,
            "content": picture.content,
            "original": picture.original,
        }
        labels_HW = decode_cuda.labels(raw_Khw, **geometry)
        if not picture.confidence:
            return labels_HW
        return torch.stack([labels_HW, confidence(raw_Khw, labels_HW, **geometry)])


class _Staging:
    """Pinned memory and device memory of one batch; grows to the largest batch so far."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pixels_B = _pinned(0)
        self._device_pixels_B = torch.empty(0, dtype=torch.uint8, device=device)
        self._answers_B = _pinned(0)
        self.uploaded = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
        self._answered = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch

    def upload(self, pictures: Sequence[UInt8Array]) -> Tensor:
        """Gather pictures of one size and enqueue their copies; returns images_NHW3 on the device."""
        num_bytes = sum(picture.size for picture in pictures)
        if self._pixels_B.numel() < num_bytes:
            self._pixels_B = _pinned(num_bytes)
            self._device_pixels_B = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        shape = (len(pictures), *pictures[0].shape)
        images_NHW3, device_images_NHW3 = (
            pixels_B[:num_bytes].view(shape) for pixels_B in (self._pixels_B, self._device_pixels_B)
        )
        for pixels_HW3, image_HW3, device_HW3 in zip(pictures, images_NHW3, device_images_NHW3, strict=True):
            np.copyto(image_HW3.numpy(), pixels_HW3)
            device_HW3.copy_(image_HW3, non_blocking=True)  # while the next one is gathered
        self.uploaded.record()
        return device_images_NHW3

    def download(self, labels: Sequence[Tensor], are_finite_N: Tensor) -> None:
        """Enqueue the copies of all labels, and of one byte each: whether its scores are finite."""
        answers_B = torch.cat([are_finite_N.to(torch.uint8), *(labels_HW.flatten() for labels_HW in labels)])
        if self._answers_B.numel() < answers_B.numel():
            self._answers_B = _pinned(answers_B.numel())
        self._answers_B[: answers_B.numel()].copy_(answers_B, non_blocking=True)
        self._answered.record()

    def fetch(self, labels: Sequence[UInt8Array]) -> list[ModelOutputError | None]:
        """Wait for the copies and write the labels of pictures whose scores are finite."""
        with _device_errors():
            self._answered.synchronize()
        answers_B: UInt8Array = self._answers_B.numpy()
        are_finite_N = answers_B[: len(labels)].astype(bool)
        begin = len(labels)
        for is_finite, out_HW in zip(are_finite_N, labels, strict=True):
            if is_finite:
                np.copyto(out_HW, answers_B[begin : begin + out_HW.size].reshape(out_HW.shape))
            begin += out_HW.size
        return [
            None if is_finite else ModelOutputError("the raw output holds scores that are not finite")
            for is_finite in are_finite_N
        ]


@contextmanager
def _device_errors() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        traceback.clear_frames(error.__traceback__)  # they hold the tensors that were computed so far
        torch.cuda.empty_cache()
        raise DeviceMemoryError(str(error)) from None
    except torch.AcceleratorError as error:
        raise DeviceLostError(str(error)) from error


def _pinned(num_bytes: int) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
