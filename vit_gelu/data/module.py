"""The data of a run as Lightning takes it; the signature is the command line's ``--data.*``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from vit_gelu.data.arrays import ImageArrays, Images, Source
from vit_gelu.data.augment import Policy
from vit_gelu.data.batch import Batch
from vit_gelu.data.following import both_or_neither, decoded, enlarged, how_resized
from vit_gelu.data.loader import EvalLoader, TrainLoader, check_global_batch_size
from vit_gelu.data.mixing import Mixing
from vit_gelu.data.policies import build_policy
from vit_gelu.data.sources import check_fractions, load_source


class ImageData(L.LightningDataModule):
    """Images, their augmentation and batches.

    Args:
        name: cifar10, cifar100, digits, or the path of an array file (.npz) or image folder.
        root: Folder of the data sets; default $VIT_GELU_DATA, else the user's cache folder.
        mirror: URL to download from, in place of the official one.
        global_batch_size: Images per training batch, over all devices.
        eval_batch_size: Images per evaluation batch, on each device.
        augment: Policy, e.g. crop_flip, or operations, e.g. "random_crop(4), flip, erase(0.25)".
        mixup: Parameter of mixup's Beta distribution; 0 is off. With cutmix on too, a coin per pair decides.
        cutmix: Parameter of CutMix's Beta distribution; 0 is off.
        mixing_until: Share of the training after which images are no longer mixed.
        image_size: Resize the images to this many pixels, once; default their own size.
        upsample: Enlarge each batch to this many pixels, after augmentation; the images in memory stay small.
        val_fraction: Share of the training images kept for validation.
        train_fraction: Share of what is left that is trained on: fixed, stratified, for studies with few labels.
        mean: Normalise with this mean per channel (pixels 0-1); default that of the training pixels.
        std: Normalise with this standard deviation per channel; default that of the training pixels.
        num_workers: Processes that decode image files; images in memory need none.
    """

    def __init__(
        self,
        name: str = "cifar10",
        root: str | None = None,
        mirror: str | None = None,
        global_batch_size: int = 128,
        eval_batch_size: int = 512,
        augment: str | list[str] = "crop_flip",
        mixup: float = 0.0,
        cutmix: float = 0.0,
        mixing_until: float = 1.0,
        image_size: int | tuple[int, int] | None = None,
        upsample: int | tuple[int, int] | None = None,
        val_fraction: float = 0.1,
        train_fraction: float = 1.0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.seed = 0  # of the run; whoever sets up the run sets it before the first batch
        self.name = self._asked_name = name
        self.root, self.mirror = root, mirror
        self.global_batch_size, self.eval_batch_size = global_batch_size, eval_batch_size
        self.augment, self.mixup, self.cutmix = augment, mixup, cutmix
        self.val_fraction, self.train_fraction, self.num_workers = val_fraction, train_fraction, num_workers
        self._asked_size, self._asked_mean, self._asked_std = image_size, mean, std
        self.upsample: tuple[int, int] | None = (
            (upsample, upsample) if isinstance(upsample, int) else upsample
        )
        self._source: Source | None = None
        self._on_device: dict[str, Images] = {}
        self._train_loader: TrainLoader | None = None
        self._loads_for: L.Trainer | None = None
        self._resume_from: dict[str, Any] | None = None
        # What can be wrong without having seen the data is said before the data is looked for.
        build_policy(augment)
        Mixing(1, mixup, cutmix)
        if not 0 <= mixing_until <= 1:
            raise ValueError(f"--data.mixing_until {mixing_until}: must lie between 0 and 1")
        self.mixing_until = mixing_until
        check_fractions(val_fraction, train_fraction)
        check_global_batch_size(global_batch_size, global_batch_size, 1)
        if eval_batch_size < 1:
            raise ValueError(f"--data.eval_batch_size is {eval_batch_size}: it must be at least 1")
        if num_workers < 0:
            raise ValueError(f"--data.num_workers is {num_workers}: it must be at least 0")

    # -- what was loaded -------------------------------------------------------------------------------

    @property
    def source(self) -> Source:
        """The data set; loaded when first asked for."""
        if self._source is None:
            self._source = self._load(download=False)
        return self._source

    @property
    def num_classes(self) -> int:
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    @property
    def in_channels(self) -> int:
        return self.source.channels

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of what the network sees."""
        return self.upsample or self.source.image_size

    @property
    def fingerprint(self) -> str:
        """Hash of all images and labels."""
        return self.source.fingerprint

    @property
    def train_n(self) -> int:
        return len(self.source.train)

    @property
    def val_n(self) -> int:
        return len(self.source.val)

    @property
    def test_n(self) -> int:
        return len(self.source.test)

    @property
    def batches_per_epoch(self) -> int:
        """Global training batches of an epoch, as far as the Trainer is to use them."""
        whole = self.train_n // self.global_batch_size
        limit = self.trainer.limit_train_batches if self.trainer else 1.0
        return min(whole, limit) if isinstance(limit, int) else int(whole * limit)

    @property
    def policy(self) -> Policy:
        """The augmentation, fitted to the images' size."""
        return self._fit_to_images()[0]

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of pixels scaled to 0-1: what images are normalised with."""
        return self._fit_to_images()[1]

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel, likewise."""
        return self._fit_to_images()[2]

    @property
    def order_hash(self) -> str:
        """Hash of the order of all training images handed out so far; empty before training."""
        return self._train_loader.order_hash if self._train_loader else ""

    def _per_channel(
        self, option: str, asked: list[float] | None, own: tuple[float, ...]
    ) -> tuple[float, ...]:
        if asked is None:
            return own
        if len(asked) != self.in_channels:
            raise ValueError(
                f"--data.{option} has {len(asked)} values, the images have {self.in_channels} channels"
            )
        return tuple(asked)

    def _load(self, download: bool) -> Source:
        return load_source(
            self._asked_name,
            self.root,
            mirror=self.mirror,
            image_size=self._asked_size,
            val_fraction=self.val_fraction,
            train_fraction=self.train_fraction,
            download=download,
        )

    def follow(
        self,
        image_size: tuple[int, int],
        normalization: Callable[[int], tuple[tuple[float, ...], tuple[float, ...]]],
    ) -> list[str]:
        """Bring images as a checkpoint knows them, where the options do not say otherwise.

        Files are decoded at its size. Images in memory are enlarged to it batch by batch where that keeps their
        proportions, and else resized once. Mean and standard deviation are the checkpoint's.

        Args:
            image_size: height and width in pixels that the checkpoint was trained on.
            normalization: channels -> its mean and std.

        Returns:
            What it came to, a line each, for people.

        Raises:
            ValueError: one of mean and std is given, and the other is not.
        """
        lines = []
        if self._asked_size is None and self.upsample is None:
            if Path(self._asked_name).expanduser().is_dir():
                self._asked_size = image_size
                lines.append(decoded(image_size))
            else:
                self.prepare_data()
                own = self.source.image_size
                if enlarged(own, image_size):
                    self.upsample = image_size
                elif own != image_size:
                    self._asked_size, self._source = image_size, None
                if own != image_size:
                    lines.append(how_resized(own, image_size))
        self.prepare_data()
        self._asked_mean, self._asked_std, line = both_or_neither(
            self._asked_mean, self._asked_std, *normalization(self.in_channels)
        )
        return [*lines, line]

    # -- Lightning's hooks ------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Find or download the data: one process per node does."""
        if self._source is None:
            self._source = self._load(download=True)

    def setup(self, stage: str | None = None) -> None:
        """Load the data, and check everything that depends on it."""
        if stage in (None, "fit"):
            check_global_batch_size(self.global_batch_size, self.train_n, self._world)
        self._fit_to_images()

    def _fit_to_images(self) -> tuple[Policy, tuple[float, ...], tuple[float, ...]]:
        """Policy, mean and std for these images; raises ValueError where an option does not fit them."""
        self._check_upsample()
        policy = build_policy(self.augment, self.source.image_size, self.in_channels)
        mean = self._per_channel("mean", self._asked_mean, self.source.mean)
        std = self._per_channel("std", self._asked_std, self.source.std)
        if not all(value > 0 for value in std):
            raise ValueError(f"--data.std is {list(std)}: every value must be positive")
        return policy, mean, std

    def _check_upsample(self) -> None:
        if self.upsample is None:
            return
        (height, width), (own_height, own_width) = self.upsample, self.source.image_size
        if height < own_height or width < own_width or height * own_width != width * own_height:
            raise ValueError(
                f"--data.upsample {height} × {width}: must enlarge images of {own_height} × {own_width} and keep their "
                "proportions; --data.image_size brings them to any size"
            )

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _part(self, part: str) -> Images:
        """A part of the data set; arrays on the device, moved there once and shared by all loaders."""
        images: Images = getattr(self.source, part)
        if isinstance(images, ImageArrays):
            held = self._on_device.get(part)
            if not isinstance(held, ImageArrays) or held.images.device != self._device:
                held = ImageArrays(images.images.to(self._device), images.labels.to(self._device))
            images = self._on_device[part] = held
        return images

    def train_dataloader(self) -> TrainLoader:
        """The training batches: in a resumed run from where the checkpoint left them."""
        # Asked again by one Trainer (reload_dataloaders_every_n_epochs), the same loader goes on.
        if self._train_loader is not None and self.trainer is not None and self._loads_for is self.trainer:
            return self._train_loader
        loader = TrainLoader(
            self._part("train"),
            global_batch_size=self.global_batch_size,
            seed=self.seed,
            augment=self.policy,
            mean=self.mean,
            std=self.std,
            num_classes=self.num_classes,
            rank=self._rank,
            world=self._world,
            device=self._device,
            mixup=self.mixup,
            cutmix=self.cutmix,
            mixed_until=self._mixed_until(),
            upsample=self.upsample,
            num_workers=self.num_workers,
            repeat_order=bool(getattr(self.trainer, "overfit_batches", 0)),
        )
        if self._resume_from is not None:
            loader.load_state_dict(self._resume_from)
            self._resume_from = None
        self._train_loader, self._loads_for = loader, self.trainer
        return loader

    def _mixed_until(self) -> tuple[int, int] | None:
        """Epoch, and batch in it, from which on nothing is mixed; None: to the end.

        Raises:
            ValueError: a share was asked for of a training without an end.
        """
        if self.mixing_until == 1 or self.trainer is None:
            return None
        epochs, steps, per_epoch = self.trainer.max_epochs, self.trainer.max_steps, self.batches_per_epoch
        ends = [epochs * per_epoch] if epochs is not None and epochs >= 0 else []
        ends += [steps * self.trainer.accumulate_grad_batches] if steps >= 0 else []
        if not ends:
            raise ValueError(
                f"--data.mixing_until {self.mixing_until}: a share of the training needs its end: give "
                "--trainer.max_epochs or --trainer.max_steps"
            )
        return divmod(round(self.mixing_until * min(ends)), max(1, per_epoch))

    def val_dataloader(self) -> EvalLoader:
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader:
        return self._eval_loader("test")

    def predict_dataloader(self) -> EvalLoader:
        """The test images."""
        return self._eval_loader("test")

    def _eval_loader(self, part: str) -> EvalLoader:
        return EvalLoader(
            self._part(part),
            batch_size=self.eval_batch_size,
            mean=self.mean,
            std=self.std,
            rank=self._rank,
            world=self._world,
            device=self._device,
            upsample=self.upsample,
            num_workers=self.num_workers,
        )

    def sample_images(self, n: int) -> torch.Tensor:
        """The first ``n`` training images (or all, if fewer), normalised, not augmented.

        Returns:
            float32, (n, c, h, w), on the CPU.
        """
        part = self.source.train.take(torch.arange(min(n, self.train_n)))
        loader = EvalLoader(
            part,
            batch_size=512,
            mean=self.mean,
            std=self.std,
            upsample=self.upsample,
            num_workers=self.num_workers,
        )
        return torch.cat([batch.images for batch in loader])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Nothing to do for batches of ours: they are made on the device."""
        if isinstance(batch, Batch) and batch.images.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def state_dict(self) -> dict[str, Any]:
        """Where training is in its data. Lightning saves the loader's own state as well, but restores that
        only in mid-epoch; the order hash must go on from the end of an epoch too.
        """
        return {"train": self._train_loader.state_dict()} if self._train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the saved position for ``train_dataloader``, if this is a training run."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            self._resume_from = state_dict.get("train")
