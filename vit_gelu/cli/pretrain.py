"""``vit-gelu pretrain``: masked pre-training, from options to a finished run folder."""

from typing import TYPE_CHECKING, Any

from vit_gelu.cli.configs import DEFAULT_PRETRAIN
from vit_gelu.cli.train import carry_out, print_speed, show_help

if TYPE_CHECKING:
    from vit_gelu.cli.options import TrainCLI

HELP = """usage: vit-gelu pretrain [--config FILE ...] [--activation NAME] [--seed N] [OPTIONS]

Pre-train a Vision Transformer on images without their labels: it sees a few patches of each image,
and a light decoder must draw the others from what it makes of them (a masked autoencoder). Writes a
run folder as train does: config.yaml, metrics.csv, record.json, checkpoints/ and reconstruction.png.
Use it afterwards with: vit-gelu evaluate RUN --probe linear

what to train:
  --config FILE                a recipe: a YAML file, or the name of a shipped one
                               (default: {default}); may be given several times
  --activation NAME            gelu, relu, silu, ..., or your_package.your_module.YourActivation
  --seed N                     fixes initial weights, order, augmentation, masks and noise (default 0)
  --model.name SIZE            vit_tiny, vit_small, vit_base, vit_large or vit_huge
  --model.patch_size N         side of a patch in pixels
  --model.embed_dim N          width; likewise --model.depth, --model.num_heads
  --model.pooling P            of the later use: cls or mean

masked autoencoder:
  --model.mask_ratio X         share of the patches that are hidden (default 0.75)
  --model.norm_pixels BOOL     draw each patch in units of its own contrast (default true)
  --model.decoder_embed_dim N  width of the decoder; likewise --model.decoder_depth,
                               --model.decoder_num_heads

data:
  --data.name NAME             cifar10, cifar100, digits, an array file (.npz) or an image folder
  --data.root DIR              where data sets are looked for and kept
  --data.global_batch_size N   images per step, over all devices
  --data.augment POLICY        augmentation of the training images

optimization:
  --model.optimizer NAME       any optimizer of torch or timm
  --model.lr X                 learning rate; likewise --model.weight_decay
  --trainer.max_epochs N       length of the training
  --trainer.precision P        32-true, bf16-mixed or 16-mixed
  --trainer.devices N          how many devices (default: all)

run:
  --out DIR                    run folder (default: a new one under runs/)
  --resume DIR                 go on with the run in DIR as if it had never stopped
  --ckpt_path last|FILE        go on from a checkpoint; "last" looks in --out, or for the
                               newest run of these options
  --loggers NAME ...           csv, tensorboard, wandb (default: [csv, tensorboard])

all options:                   vit-gelu pretrain --help all | model | data | trainer | augment

examples:
  vit-gelu pretrain --config configs/pretrain/cifar100.yaml
  vit-gelu pretrain --data.name ~/pictures --data.image_size 64 --model.patch_size 8
  vit-gelu pretrain --resume runs/cifar100-masked-vit_tiny-gelu-seed0
"""


def main(argv: list[str]) -> int:
    """Run the command; returns its exit status."""
    if show_help(argv, "pretrain", HELP.format(default=DEFAULT_PRETRAIN)):
        return 0
    return carry_out(argv, "pretrain", print_result, draw)


def draw(cli: "TrainCLI") -> None:
    """Write ``reconstruction.png`` into the run folder."""
    from vit_gelu.cli.reconstruction import save_reconstruction

    save_reconstruction(cli.folder / "reconstruction.png", cli.model, cli.datamodule)


def print_result(record: dict[str, Any]) -> None:
    """The outcome in two lines."""
    val = record["val"]
    print(f"val loss {val['loss']:.4f} (masked patches of n = {val['n']} images)" if val else "not validated")
    print_speed(record)
