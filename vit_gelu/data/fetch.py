"""Batches of uint8 images on the device: from memory that is already there, or from files through workers."""

import functools
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_gelu.data.arrays import ImageArrays, ImageFiles, Images
from vit_gelu.data.decode import decode_image


class ArrayFetcher:
    """Images that live on the device as one uint8 tensor; a batch is one gather.

    Args:
        images: moved to the device here, once; not copied if they are there already.
        device: where batches are wanted.
    """

    def __init__(self, images: ImageArrays, device: torch.device) -> None:
        # Images that are rows of one memory block are gathered 20 times as fast; both layouts have them.
        stored = images.images.to(device)
        self._channels_last = not stored.is_contiguous()
        if self._channels_last:
            stored = rearrange(stored, "n c h w -> n h w c").contiguous()
        self._stored = stored
        self.labels = images.labels.to(device)

    def __call__(self, batches: Iterable[Tensor], on_device: Iterable[Tensor]) -> Iterator[Tensor]:
        """Images uint8 (b, c, h, w) on the device for each tensor of indices (b,), on CPU and device."""
        for indices in on_device:
            chosen = self._stored.index_select(0, indices)
            if self._channels_last:
                chosen = rearrange(chosen, "b h w c -> b c h w").contiguous()
            yield chosen


class _Decoded(Dataset[Tensor | Exception]):
    def __init__(self, files: ImageFiles) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor | Exception:
        files = self._files
        try:
            return decode_image(files.paths[index], files.image_size, files.channels)
        except (OSError, ValueError) as error:
            # Returned, for the main process to raise: a worker would bury the message in its traceback.
            return error


def _stack(images: list[Tensor | Exception], shape: tuple[int, ...]) -> Tensor | Exception:
    tensors = [torch.empty(0, *shape, dtype=torch.uint8)]
    for image in images:
        if isinstance(image, Exception):
            return image
        tensors.append(image[None])
    return torch.cat(tensors)


class _Turn(Iterable[list[int]]):
    """The batches of whichever pass over the data is under way: a DataLoader keeps one sampler for life."""

    batches: Iterable[Tensor] = ()

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)


class FileFetcher:
    """Images decoded from files, by ``num_workers`` processes ahead of time; 0: here, when asked for.

    Args:
        images: the files.
        device: where batches are wanted.
        num_workers: decoding processes, kept from epoch to epoch.
    """

    def __init__(self, images: ImageFiles, device: torch.device, num_workers: int) -> None:
        self._device = device
        self.labels = images.labels.to(device)
        self._turn = _Turn()
        self._loader = DataLoader(
            _Decoded(images),
            batch_sampler=self._turn,
            collate_fn=functools.partial(_stack, shape=(images.channels, *images.image_size)),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
            # A generator of its own: a DataLoader draws a seed per pass, from torch's global one by default.
            generator=torch.Generator(),
        )

    def __call__(self, batches: Iterable[Tensor], on_device: Iterable[Tensor]) -> Iterator[Tensor]:
        """Images uint8 (b, c, h, w) on the device for each tensor of indices (b,), given on CPU and device.

        Raises:
            FileNotFoundError, ValueError: a file is missing or no image; names it.
        """
        self._turn.batches = batches
        for images in self._loader:
            if isinstance(images, Exception):
                raise images
            yield images.to(self._device, non_blocking=self._device.type == "cuda")


def build_fetcher(images: Images, device: torch.device, num_workers: int) -> ArrayFetcher | FileFetcher:
    if isinstance(images, ImageArrays):
        return ArrayFetcher(images, device)
    return FileFetcher(images, device, num_workers)
