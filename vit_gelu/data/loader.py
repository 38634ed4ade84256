"""Loaders whose order is a pure function of (seed, epoch), exactly sharded and resumable in mid-epoch."""

import hashlib
import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vit_gelu.data.arrays import ImageArrays, Images
from vit_gelu.data.augment import Policy
from vit_gelu.data.batch import Batch, Normalize
from vit_gelu.data.fetch import build_fetcher
from vit_gelu.data.mixing import Mixing
from vit_gelu.data.transfer import send
from vit_gelu.randomness import generator

# On a GPU, images are prepared for several steps at a time: launching a kernel costs the processor as much for one
# batch as for ten, and a step of a small network is over before its own batch's hundred kernels are launched.
PREPARED_SAMPLES = 2**13  # of 32×32 pixels: 100 MB as float32


class TrainLoader:
    """Endless reproducible training batches, an epoch per iteration.

    The order of an epoch is a permutation fixed by (seed, epoch); of each global batch, a rank takes a
    contiguous share. What does not fill a global batch is left out of that epoch.

    Iterating goes on from where the loader is: from batch ``next_batch`` of ``epoch``. Both are looked up
    when the first batch is asked for, so ``iter`` may be called before ``set_epoch``, as Lightning does. An
    epoch that was iterated to its end moves the loader to the start of the next.

    Args:
        images: the training images.
        global_batch_size: samples per step over all ranks.
        seed: of the run.
        augment: applied to every batch.
        mean, std: per channel, of pixels scaled to 0-1.
        upsample: height and width that batches are enlarged to, after augmentation; see ``Normalize``.
        num_classes: width of soft targets.
        rank, world: this process among all.
        device: where batches are wanted; images in memory are moved there once.
        mixup, cutmix: as in ``Mixing``.
        mixed_until: epoch, and batch in it, from which on nothing is mixed; None: to the end.
        num_workers: processes that decode image files; images in memory need none.
        repeat_order: every epoch in the order of epoch 0, for overfitting the same few batches.

    Raises:
        ValueError: the global batch size does not divide by the ranks, or exceeds the images.
    """

    def __init__(
        self,
        images: Images,
        *,
        global_batch_size: int,
        seed: int,
        augment: Policy,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        num_classes: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixed_until: tuple[int, int] | None = None,
        upsample: tuple[int, int] | None = None,
        num_workers: int = 0,
        repeat_order: bool = False,
    ) -> None:
        check_global_batch_size(global_batch_size, len(images), world)
        device = torch.device(device)
        self.global_batch_size, self.seed, self.augment = global_batch_size, seed, augment
        self.rank, self.world, self.repeat_order = rank, world, repeat_order
        self.epoch = 0
        self.next_batch = 0
        self.announced: int | None = None  # the epoch that Lightning is in, by its own count
        self._hash = b""
        self._n = len(images)
        self._device = device
        self._fetch = build_fetcher(images, device, num_workers)
        self._normalize = Normalize(mean, std, device, upsample)
        self._mixing = Mixing(num_classes, mixup, cutmix)
        self._mixed_until = mixed_until
        self._steps_at_once = self._plan_steps(images, global_batch_size // world)

    def _plan_steps(self, images: Images, batch: int) -> int:
        """How many steps' batches to prepare together: their samples are drawn one by one, so nothing else changes."""
        if self._device.type == "cpu" or not isinstance(images, ImageArrays):
            return 1
        if self._mixing.active and batch % 2:
            return 1  # the last sample of such a batch has no partner
        pixels = math.prod(self._normalize.upsample or images.images.shape[2:])
        samples = PREPARED_SAMPLES * 32**2 // pixels
        return max(1, samples // batch)

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever in it the loader is."""
        return self._n // self.global_batch_size

    @property
    def sampler(self) -> "EpochSignal":
        """What Lightning tells that an epoch begins: it calls ``loader.sampler.set_epoch``."""
        return EpochSignal(self)

    @property
    def order_hash(self) -> str:
        """Hash of the indices of every global batch handed out since the run began, in order."""
        return self._hash.hex()

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; stay where the loader is if it is in that epoch already."""
        if epoch != self.epoch:
            self.epoch, self.next_batch = epoch, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, and what the position means: plain types only."""
        return {
            "epoch": self.epoch,
            "next_batch": self.next_batch,
            "announced": self.announced,
            "order_hash": self.order_hash,
            "seed": self.seed,
            "global_batch_size": self.global_batch_size,
            "train_n": self._n,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict()``, with any number of ranks.

        Raises:
            ValueError: seed, global batch size or data differ from the saved run's: its order cannot go on.
        """
        for key, option in (
            ("seed", "--seed"),
            ("global_batch_size", "--data.global_batch_size"),
            ("train_n", "the number of training images"),
        ):
            ours = self.state_dict()[key]
            if state[key] != ours:
                raise ValueError(
                    f"cannot resume: {option} was {state[key]} in the checkpoint's run and is {ours} now;"
                    " resume with the same, or start a new run from its weights"
                )
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]
        self.announced = state["announced"]
        self._hash = bytes.fromhex(state["order_hash"])

    def epoch_order(self, epoch: int) -> Tensor:
        """The training images' indices in the order of an epoch, int64, (n,), on the CPU."""
        epoch = 0 if self.repeat_order else epoch
        return torch.randperm(self._n, generator=generator(self.seed, "order", epoch))

    def __iter__(self) -> Iterator[Batch]:
        epoch, size = self.epoch, self.global_batch_size
        whole = self.epoch_order(epoch)[: len(self) * size]
        rounds = rearrange(whole, "(batch size) -> batch size", size=size)[self.next_batch :]
        mine = rearrange(rounds, "batch (rank b) -> rank batch b", rank=self.world)[self.rank].contiguous()
        mixed = self._mixed_in(epoch, len(mine))
        prepared = itertools.chain(
            self._prepare(mine[:mixed], epoch, mix=True), self._prepare(mine[mixed:], epoch, mix=False)
        )
        for batch, everyone in zip(prepared, rounds, strict=True):
            self.next_batch += 1
            self._hash = chain(self._hash, everyone)
            yield batch
        self.epoch, self.next_batch = epoch + 1, 0

    def _mixed_in(self, epoch: int, batches: int) -> int:
        """How many of the next batches are mixed."""
        if self._mixed_until is None or epoch < self._mixed_until[0]:
            return batches
        if epoch > self._mixed_until[0]:
            return 0
        return min(batches, max(0, self._mixed_until[1] - self.next_batch))

    def _prepare(self, mine: Tensor, epoch: int, *, mix: bool) -> Iterator[Batch]:
        """The batches of this rank, from the indices (batches, b) of their samples."""
        if not len(mine):
            return
        together = [part.flatten() for part in mine.split(self._steps_at_once)]
        on_device = [part.flatten() for part in send(mine, self._device).split(self._steps_at_once)]
        for images, indices, shown in zip(self._fetch(together, on_device), together, on_device, strict=True):
            prepared = self._finish(images, indices, shown, epoch, mix)
            yield from map(Batch._make, zip(*(t.split(mine.shape[1]) for t in prepared), strict=True))

    def _finish(self, images: Tensor, indices: Tensor, shown: Tensor, epoch: int, mix: bool) -> Batch:
        images = self.augment(images, indices, seed=self.seed, epoch=epoch)
        targets = self._fetch.labels.index_select(0, shown)
        floats = self._normalize(images)
        if mix and self._mixing.active:
            floats, targets = self._mixing(floats, targets, indices, seed=self.seed, epoch=epoch)
        return Batch(floats, targets, shown)


class EpochSignal:
    """Moves a loader to its next epoch whenever another epoch is announced.

    The loader counts for itself: resumed at the end of an epoch under ``max_steps``, Lightning 2.6 announces
    an epoch that it leaves empty, and its count is one ahead from then on.
    """

    def __init__(self, loader: TrainLoader) -> None:
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        loader = self._loader
        if loader.announced is None and loader.next_batch == 0:
            loader.set_epoch(epoch)
        elif loader.announced != epoch and loader.next_batch > 0:
            loader.set_epoch(loader.epoch + 1)
        loader.announced = epoch


class EvalLoader:
    """Every image exactly once over all ranks, in order, never padded: rank r sees ``range(r, n, world)``.

    All ranks have the same number of batches, so they may meet once a batch; none is empty unless there
    are fewer images than ranks. Only the last two batches of a rank can be smaller than ``batch_size``.

    Args:
        images: the images of the split.
        batch_size: of each rank. (One alone may be exceeded by one, where batches of 1 would leave a rank
            without any.)
        mean, std: per channel, of pixels scaled to 0-1.
        upsample: height and width that batches are enlarged to, after augmentation; see ``Normalize``.
        rank, world: this process among all.
        device: where batches are wanted; images in memory are moved there once.
        num_workers: processes that decode image files.

    Raises:
        ValueError: the batch size is not positive.
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        upsample: tuple[int, int] | None = None,
        num_workers: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"--data.eval_batch_size is {batch_size}: it must be at least 1")
        device = torch.device(device)
        self._device = device
        self._batches = eval_batches(len(images), batch_size, rank, world)
        self._fetch = build_fetcher(images, device, num_workers)
        self._normalize = Normalize(mean, std, device, upsample)

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        on_device = [send(batch, self._device) for batch in self._batches]
        for images, shown in zip(self._fetch(self._batches, on_device), on_device, strict=True):
            yield Batch(self._normalize(images), self._fetch.labels.index_select(0, shown), shown)


def eval_batches(n: int, batch_size: int, rank: int, world: int) -> list[Tensor]:
    """The indices of each of a rank's evaluation batches; as many batches on every rank.

    >>> [[batch.tolist() for batch in eval_batches(11, 3, rank, 2)] for rank in (0, 1)]
    [[[0, 2, 4], [6, 8, 10]], [[1, 3, 5], [7, 9]]]
    >>> [[batch.tolist() for batch in eval_batches(5, 2, rank, 2)] for rank in (0, 1)]
    [[[0, 2], [4]], [[1], [3]]]
    """
    mine = torch.arange(n)[rank::world]
    most, fewest = -(-n // world), n // world
    count = -(-most // batch_size)
    if fewest:
        count = min(count, fewest)
    size = max(batch_size, -(-len(mine) // count)) if count else 0
    # As full as they go, but one image kept back for each batch that is still to come.
    ends = [min((i + 1) * size, len(mine) - (count - 1 - i)) for i in range(count)]
    return [mine[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def chain(so_far: bytes, indices: Tensor) -> bytes:
    """The order hash after one more global batch: BLAKE2b over the hash so far and the indices, 16 bytes."""
    return hashlib.blake2b(so_far + indices.numpy().astype("<i8").tobytes(), digest_size=16).digest()


def check_global_batch_size(size: int, n: int, world: int) -> None:
    """Raise ValueError if ``size`` cannot be split over ``world`` ranks or exceeds the ``n`` images."""
    if size < 1:
        raise ValueError(f"--data.global_batch_size is {size}: it must be at least 1")
    if size > n:
        raise ValueError(
            f"--data.global_batch_size is {size}, but there are only {n} training images:"
            f" at most {n // world * world}"
        )
    if size % world:
        below, above = size // world * world, -(-size // world) * world
        nearest = above if below == 0 or (above - size < size - below and above <= n) else below
        raise ValueError(
            f"--data.global_batch_size is {size}, which does not divide by {world} devices: try {nearest}"
        )
