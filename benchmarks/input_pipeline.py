"""Augmented, normalised training batches per second on one CPU core: ours against torchvision v2.

usage: python benchmarks/input_pipeline.py [OPTIONS]

Three recipes on real CIFAR-10, uint8 images in memory to float32 batches: crop and flip; these and
RandAugment(2, 9); these and TrivialAugment. Against torchvision.transforms.v2, composed as its documentation
does, in a Dataset without workers: on PIL images, and on tensors. "v2 on a whole batch" is faster because all
images of a batch get one draw, which is another augmentation. The last column is images/s of ours over theirs,
paired by round, median and 95 % interval.

  --policy NAME ...       crop_flip cifar_randaugment cifar_trivialaugment (default: all)
  --name NAME             cifar10, or an array file of RGB images       --root DIR   where data sets are
  --batch N               128
  --rounds N              12        --min_seconds X  0.5, of one timed block
  --threads N             1
  --out FILE.json         write a result file
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import checkout  # noqa: F401
import torch
from PIL import Image
from report import Options, describe, heading, run_script, save, table
from rotation import Case, Ratio, paired_ratio, quartiles, time_in_rotation
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from vit_gelu.cli.arguments import at_least, one_of
from vit_gelu.cli.errors import UsageError
from vit_gelu.data import ImageArrays, Source, TrainLoader, load_source
from vit_gelu.data.policies import build_policy
from vit_gelu.training.exclusivity import Exclusivity

# Ours by name, and what torchvision needs after crop and flip to do the same.
AUTOMATIC: dict[str, Callable[[], list[Any]]] = {
    "crop_flip": list,
    "cifar_randaugment": lambda: [v2.RandAugment(2, 9)],
    "cifar_trivialaugment": lambda: [v2.TrivialAugmentWide()],
}


def options() -> Options:
    parser = Options("input_pipeline", common=("threads", "out"))
    parser.set_defaults(threads=1)
    parser.add_argument(
        "--policy", nargs="+", type=one_of("policy", list(AUTOMATIC)), default=list(AUTOMATIC)
    )
    parser.add_argument("--name", default="cifar10")
    parser.add_argument("--root")
    parser.add_argument("--batch", type=at_least(1), default=128)
    parser.add_argument("--rounds", type=at_least(1), default=12)
    parser.add_argument("--min_seconds", type=float, default=0.5)
    return parser


class Images(Dataset):
    """Images and labels as torchvision's own CIFAR10 data set holds them: arrays of bytes, one item at a time.

    Args:
        images: uint8, (n, 3, h, w).
        labels: int64, (n,).
        transform: from a PIL image, or a tensor (3, h, w), to a float32 tensor (3, h, w).
        pil: whether an item starts as a PIL image.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, transform: Any, pil: bool) -> None:
        rows = images.permute(0, 2, 3, 1).contiguous().numpy()
        self.images = rows if pil else images.contiguous()
        self.labels = labels.tolist()
        self.transform, self.pil = transform, pil

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = Image.fromarray(self.images[index]) if self.pil else self.images[index]
        return self.transform(image), self.labels[index]


def endless(batches: Any) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    while True:
        yield from batches


def torchvision_transform(policy: str, source: Source) -> v2.Compose:
    """The recipe of ours, in torchvision's words."""
    return v2.Compose(
        [
            v2.RandomCrop(source.image_size, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            *AUTOMATIC[policy](),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(source.mean), list(source.std)),
        ]
    )


def cases_of(policy: str, source: Source, batch: int) -> dict[str, Case]:
    """One case per pipeline; a call makes one batch."""
    train = source.train
    assert isinstance(train, ImageArrays)
    ours = TrainLoader(
        train,
        global_batch_size=batch,
        seed=0,
        augment=build_policy(policy, source.image_size, source.channels),
        mean=source.mean,
        std=source.std,
        num_classes=source.num_classes,
    )
    transform = torchvision_transform(policy, source)
    generator = torch.Generator().manual_seed(0)

    def loader(pil: bool) -> DataLoader:
        images = Images(train.images, train.labels, transform, pil)
        return DataLoader(images, batch_size=batch, shuffle=True, drop_last=True, generator=generator)

    def whole_batches() -> Iterator[torch.Tensor]:
        stored = train.images.contiguous()
        while True:
            for rows in torch.randperm(len(stored), generator=generator).split(batch):
                if len(rows) == batch:
                    yield transform(stored[rows])

    pipelines = {
        "ours": endless(ours),
        "v2 on PIL": endless(loader(pil=True)),
        "v2 on tensors": endless(loader(pil=False)),
        "v2 on a whole batch": whole_batches(),
    }
    return {name: Case(it.__next__, batch) for name, it in pipelines.items()}


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    source = load_source(asked.name, asked.root)
    if source.channels != 3 or not isinstance(source.train, ImageArrays):
        raise UsageError(f"--name {asked.name}: must hold RGB images in memory (cifar10, or an .npz file)")
    if len(source.train) < asked.batch:
        raise UsageError(f"--batch {asked.batch}: at most the {len(source.train)} training images")
    device = torch.device("cpu")
    exclusive = Exclusivity(device)
    torch.manual_seed(0)  # torchvision draws from the global generator
    cases = {
        f"{policy}/{name}": case
        for policy in asked.policy
        for name, case in cases_of(policy, source, asked.batch).items()
    }
    timings = time_in_rotation(cases, rounds=asked.rounds, device=device, min_seconds=asked.min_seconds)
    rows = []
    for key, seconds in timings.seconds.items():
        policy, name = key.split("/")
        low, median, high = quartiles(seconds)
        row: dict[str, Any] = {"policy": policy, "pipeline": name, "n": len(seconds)}
        row |= {
            "images_per_second": 1 / median,
            "images_per_second_quartiles": [1 / high, 1 / low],
            "ours_over_peer": None,
        }
        if name != "ours":
            row["ours_over_peer"] = paired_ratio(seconds, timings.seconds[f"{policy}/ours"])._asdict()
        rows.append(row)
    return {
        **describe("input_pipeline", asked, device),
        "exclusive": exclusive.check(),
        "dataset": {"name": source.name, "train_n": len(source.train), "fingerprint": source.fingerprint},
        "batch": asked.batch,
        "rows": rows,
    }


def show(result: dict[str, Any]) -> None:
    print(heading(result, result["exclusive"]))
    print(f"{result['dataset']['name']}, batches of {result['batch']}\n")
    lines = []
    for r in result["rows"]:
        ratio = r["ours_over_peer"]
        low, high = r["images_per_second_quartiles"]
        line = [
            f"{r['policy']}: {r['pipeline']}",
            f"{r['images_per_second']:,.0f}",
            f"{low:,.0f} - {high:,.0f}",
        ]
        lines.append([*line, "" if ratio is None else str(Ratio(**ratio)), r["n"]])
    print(table(["policy: pipeline", "images/s", "quartiles", "ours / peer [95 %]", "n"], lines))


def run(asked: argparse.Namespace) -> int:
    result = measure(asked)
    show(result)
    save(asked.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(run_script("input_pipeline", __doc__, options(), run))
