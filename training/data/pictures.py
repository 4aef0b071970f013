"""Labelled pictures as training steps need them: all in memory, or decoded ahead from their files.

Axes: M pictures of any sizes, H height, W width, 3 = red green blue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from model.datasets.dataset import LabeledImages
from model.labels import UInt8Array
from model.quotas import free_memory

Residency = Literal["device", "host", "files"]
Pair = tuple[UInt8Array, UInt8Array]
"""image_HW3 and label_HW, uint8."""

_BYTES_A_PIXEL = 4  # red, green, blue, label
_MEMORY_SHARE = 0.5
"""Largest share of the free memory that pictures take; the network needs the rest."""
_PREFETCHED = 16
"""Pictures that are decoded ahead while a split is iterated."""


@dataclass(frozen=True, eq=False)
class PackedPictures:
    """Pictures of any sizes with their labels, end to end in two flat buffers: one gather reaches all.

    Attributes:
        colors: uint8 RGB, rows of pixels, on any device.
        labels: uint8 class ids or the ignore id, one a pixel, on the same device.
        starts_M: int64 on the CPU: index of the first pixel of each picture.
        sizes_M2: int64 on the CPU: height and width of each picture.
    """

    colors: Tensor
    labels: Tensor
    starts_M: Tensor
    sizes_M2: Tensor

    @classmethod
    def pack(cls, pairs: Sequence[Pair]) -> PackedPictures:
        """Copy decoded pairs into new buffers on the CPU."""
        pixels = [label_HW.size for _, label_HW in pairs]
        return cls(
            colors=torch.from_numpy(np.concatenate([image_HW3.reshape(-1) for image_HW3, _ in pairs])),
            labels=torch.from_numpy(np.concatenate([label_HW.reshape(-1) for _, label_HW in pairs])),
            starts_M=torch.tensor([0, *accumulate(pixels)][:-1]),
            sizes_M2=torch.tensor([label_HW.shape for _, label_HW in pairs]),
        )

    @classmethod
    def pack_on(cls, pairs: Sequence[Pair], device: torch.device) -> PackedPictures:
        """Copy decoded pairs into new buffers on a device; a GPU receives each while the next is packed."""
        sizes = [label_HW.shape for _, label_HW in pairs]
        ends = list(accumulate((height * width for height, width in sizes), initial=0))
        colors = _buffer_on(device, [image_HW3 for image_HW3, _ in pairs])
        labels = _buffer_on(device, [label_HW for _, label_HW in pairs])
        return cls(colors, labels, torch.tensor(ends[:-1]), torch.tensor(sizes))

    def __len__(self) -> int:
        """Return M."""
        return len(self.starts_M)

    def to(self, device: torch.device) -> PackedPictures:
        """Return the pictures with their buffers on a device; pinned buffers are copied in the background."""
        colors, labels = (buffer.to(device, non_blocking=True) for buffer in (self.colors, self.labels))
        return PackedPictures(colors, labels, self.starts_M, self.sizes_M2)

    def image(self, index: int) -> Tensor:
        """Return image_HW3, uint8: a view."""
        start, (height, width) = self._extent(index)
        return self.colors[3 * start : 3 * (start + height * width)].view(height, width, 3)

    def label(self, index: int) -> Tensor:
        """Return label_HW, uint8: a view."""
        start, (height, width) = self._extent(index)
        return self.labels[start : start + height * width].view(height, width)

    def _extent(self, index: int) -> tuple[int, tuple[int, int]]:
        height, width = self.sizes_M2[index].tolist()
        return int(self.starts_M[index]), (height, width)


def _buffer_on(device: torch.device, arrays: Sequence[UInt8Array]) -> Tensor:
    is_gpu = device.type == "cuda"
    ends = list(accumulate((array.size for array in arrays), initial=0))
    packed = torch.empty(
        ends[-1], dtype=torch.uint8, pin_memory=is_gpu
    )  # a GPU copies from pinned memory itself
    on_device = torch.empty(ends[-1], dtype=torch.uint8, device=device) if is_gpu else packed
    for array, begin, end in zip(arrays, ends, ends[1:], strict=False):
        np.copyto(packed[begin:end].numpy(), array.reshape(-1))
        if is_gpu:
            on_device[begin:end].copy_(packed[begin:end], non_blocking=True)
    return on_device


class PictureSource(Protocol):
    """The pictures of some splits, in a fixed order.

    Attributes:
        names: name of each picture in messages.
        fingerprint: SHA-256 over the splits' fingerprints, 64 hex digits.
    """

    names: tuple[str, ...]
    fingerprint: str

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start to decode pictures that will be fetched soon, in this order."""

    def fetch(self, indices: Sequence[int]) -> tuple[PackedPictures, Sequence[int]]:
        """Return pictures.

        Args:
            indices: of the pictures, in any order; one may occur twice.

        Returns:
            packed: pictures on the device.
            places: index in ``packed`` of each picture that was asked for, in order.

        Raises:
            model.errors.DatasetError: a file is unusable.
        """

    def close(self) -> None:
        """Release threads and memory."""


class ResidentPictures:
    """Pictures that all lie in memory: on the device, or on the host where the device is too small.

    Args:
        packed: the pictures, on the device or on the host.
        names: name of each picture.
        fingerprint: of all pictures.
        device: device on which crops are cut.
    """

    def __init__(
        self, packed: PackedPictures, names: tuple[str, ...], fingerprint: str, device: torch.device
    ) -> None:
        self.packed = packed
        self.names = names
        self.fingerprint = fingerprint
        self.device = device

    def prefetch(self, indices: Sequence[int]) -> None:
        """Do nothing: the pictures are in memory."""

    def fetch(self, indices: Sequence[int]) -> tuple[PackedPictures, Sequence[int]]:
        """Return all pictures, or copies of the wanted ones where they have to get onto the device."""
        if self.packed.colors.device == self.device:
            return self.packed, indices
        pairs = [(self.packed.image(i).numpy(), self.packed.label(i).numpy()) for i in indices]
        return PackedPictures.pack_on(pairs, self.device), range(len(indices))

    def close(self) -> None:
        """Do nothing: there is no thread."""


class FilePictures:
    """Pictures that threads decode ahead from their files.

    The number of threads and their progress do not change the result of ``fetch``.

    Args:
        splits: the pictures.
        workers: threads that decode, at least 1.
        device: device on which crops are cut.
    """

    def __init__(self, splits: Sequence[LabeledImages], *, workers: int, device: torch.device) -> None:
        self.names = picture_names(splits)
        self.fingerprint = combined_fingerprint(splits)
        self.device = device
        self._pairs = [(split, index) for split in splits for index in range(len(split))]
        self._pool = ThreadPoolExecutor(workers, "decode")
        self._prefetched: dict[int, Future[Pair]] = {}

    def prefetch(self, indices: Sequence[int]) -> None:
        """Start to decode pictures that will be fetched soon, in this order."""
        for index in indices:
            if index not in self._prefetched:
                self._prefetched[index] = self._pool.submit(self._decode, index)

    def fetch(self, indices: Sequence[int]) -> tuple[PackedPictures, Sequence[int]]:
        """Return the pictures, decoded.

        Raises:
            model.errors.DatasetError: a file is unusable.
        """
        self.prefetch(indices)
        pairs = {index: self._prefetched.pop(index).result() for index in dict.fromkeys(indices)}
        return PackedPictures.pack_on([pairs[index] for index in indices], self.device), range(len(indices))

    def close(self) -> None:
        """Drop the prefetched pictures and end the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._prefetched.clear()

    def _decode(self, index: int) -> Pair:
        split, position = self._pairs[index]
        return split[position]


def load_pictures(
    splits: Sequence[LabeledImages], *, pixels: int, residency: Residency, workers: int, device: torch.device
) -> PictureSource:
    """Open splits as one source.

    Args:
        splits: the pictures.
        pixels: number of pixels of all pictures.
        residency: ``device`` and ``host`` decode all pictures now.
        workers: threads that decode.
        device: device on which crops are cut.

    Raises:
        model.errors.DatasetError: a file is unusable.
    """
    if residency == "files":
        return FilePictures(splits, workers=workers, device=device)
    with ThreadPoolExecutor(workers, "decode") as pool:
        packed = _decode_all(splits, pixels, pool)
    if residency == "device":
        packed = packed.to(device)
    return ResidentPictures(packed, picture_names(splits), combined_fingerprint(splits), device)


def _decode_all(splits: Sequence[LabeledImages], pixels: int, pool: ThreadPoolExecutor) -> PackedPictures:
    """Decode into buffers of the final size, so that a large set is never in memory twice."""
    colors, labels = np.empty(3 * pixels, np.uint8), np.empty(pixels, np.uint8)
    starts, sizes, start = [], [], 0
    for split in splits:
        for first in range(0, len(split), _PREFETCHED):
            for image_HW3, label_HW in pool.map(
                split.__getitem__, range(first, min(first + _PREFETCHED, len(split)))
            ):
                starts.append(start)
                sizes.append(label_HW.shape)
                end = start + label_HW.size
                colors[3 * start : 3 * end] = image_HW3.reshape(-1)
                labels[start:end] = label_HW.reshape(-1)
                start = end
    return PackedPictures(
        torch.from_numpy(colors), torch.from_numpy(labels), torch.tensor(starts), torch.tensor(sizes)
    )


def iterate_pictures(
    source: PictureSource, indices: Sequence[int], before_each: Callable[[], None] = lambda: None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield image_HW3 and label_HW, uint8 on the device, of pictures in the given order.

    Args:
        source: the pictures.
        indices: of the wanted ones.
        before_each: called before each picture; its exception ends the iteration.
    """
    source.prefetch(indices[:_PREFETCHED])
    for position, index in enumerate(indices):
        before_each()
        source.prefetch(indices[position + _PREFETCHED : position + _PREFETCHED + 1])
        packed, (place,) = source.fetch([index])
        yield packed.image(place), packed.label(place)


def choose_residency(pixels: int, *, on_device: int | None, on_host: int) -> Residency:
    """Choose the place nearest to the device whose free memory holds the pictures.

    Args:
        pixels: number of pixels of all pictures.
        on_device: free bytes of a device with its own memory; None = the device uses the host's memory.
        on_host: free bytes of the host that this process may take.
    """
    wanted = pixels * _BYTES_A_PIXEL
    if wanted <= _MEMORY_SHARE * (on_host if on_device is None else on_device):
        return "device"
    return "host" if on_device is not None and wanted <= _MEMORY_SHARE * on_host else "files"


def free_bytes(device: torch.device, processes: int) -> tuple[int | None, int]:
    """Return the free bytes of a device (None on a CPU), and this process's share of those of the host.

    Args:
        device: of this process.
        processes: number of processes that share the host.
    """
    on_device = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
    return on_device, free_memory() // processes


def picture_names(splits: Sequence[LabeledImages]) -> tuple[str, ...]:
    """Return the name of each picture of all splits, in their order."""
    return tuple(split.name(index) for split in splits for index in range(len(split)))


def combined_fingerprint(splits: Sequence[LabeledImages]) -> str:
    """Return the fingerprint of one split, or the SHA-256 over those of several: 64 hex digits."""
    if len(splits) == 1:
        return splits[0].fingerprint
    return hashlib.sha256("".join(split.fingerprint for split in splits).encode()).hexdigest()
