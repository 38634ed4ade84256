"""ImageData under a real Trainer: what it shows, and that a resumed run goes on exactly."""

import contextlib
import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint

from vit_gelu.data.arrays import ImageArrays, Source
from vit_gelu.data.module import ImageData
from vit_gelu.data.policies import build_policy

N, BATCH = 44, 4  # 11 batches an epoch


def make_source(n=N, size=8):
    g = torch.Generator().manual_seed(1)

    def part(count):
        images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=g)
        return ImageArrays(images, torch.randint(0, 3, (count,), generator=g))

    return Source(
        name="random",
        train=part(n),
        val=part(11),
        test=part(13),
        class_names=("a", "b", "c"),
        mean=(0.5, 0.5, 0.5),
        std=(0.3, 0.3, 0.3),
        image_size=(size, size),
        channels=3,
        fingerprint="00",
    )


def make_data(**options):
    data = ImageData("random", **{"global_batch_size": BATCH, "eval_batch_size": 5, **options})
    data._source = make_source()
    data.seed = 7
    return data


class Recorder(L.LightningModule):
    """Trains one number, and writes down what it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.pixels, self.evaluated = [], [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch_idx, batch.indices.tolist()))
        self.pixels.append(batch.images.double().sum().item())
        return (self.weight - batch.images.mean()) ** 2

    def validation_step(self, batch, batch_idx):
        self.evaluated += batch.indices.tolist()

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stop(L.Callback):
    """Kills the run after some steps, when it has fetched the batch after them but not trained on it."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step >= self.steps:
            raise KeyboardInterrupt


def make_trainer(folder, callbacks=(), **options):
    settings = {"max_epochs": 3, "devices": 1, **options}
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **settings,
    )


def fit(trainer, data, ckpt_path=None):
    model = Recorder()
    with contextlib.suppress(SystemExit):
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return model


OPTIONS = {"augment": "crop_alternating_flip", "mixup": 0.4, "cutmix": 1.0}


LENGTHS = {
    "each": {"max_epochs": 3},
    "accumulated": {"max_epochs": 3, "accumulate_grad_batches": 2},
    "max_steps": {"max_epochs": -1, "max_steps": 33},
}


@pytest.fixture(scope="module", params=LENGTHS)
def uninterrupted(request, tmp_path_factory):
    data = make_data(**OPTIONS)
    options = LENGTHS[request.param]
    model = fit(make_trainer(tmp_path_factory.mktemp("whole"), enable_checkpointing=False, **options), data)
    assert [index for _, _, batch in model.seen for index in batch] != sorted(range(N)) * 3
    assert len(model.seen) == 33
    return options, model, data.order_hash


# 11 batches an epoch, or 6 optimizer steps of two: within, just before, at and after an epoch's end
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("steps", [1, 5, 6, 7, 10, 11, 12, 17])
def test_resumed_run_sees_what_the_uninterrupted_run_saw(steps, uninterrupted, tmp_path):
    options, whole, order_hash = uninterrupted

    def trainer_with(*callbacks):
        checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        return make_trainer(tmp_path, [checkpoint, *callbacks], **options)

    first = fit(trainer_with(Stop(steps)), make_data(**OPTIONS))
    data, trainer = make_data(**OPTIONS), trainer_with()
    second = fit(trainer, data, ckpt_path=tmp_path / f"step={steps}.ckpt")
    assert first.seen + second.seen == whole.seen
    assert first.pixels + second.pixels == whole.pixels
    assert second.weight.item() == whole.weight.item()
    assert data.order_hash == order_hash


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("when", ["end of epoch", "end of validation", "max_steps"])
def test_resume_from_the_end_of_an_epoch_keeps_order_and_hash(when, tmp_path):
    def trainer_of(epochs):
        limit = (
            {"max_epochs": -1, "max_steps": 11 * epochs} if when == "max_steps" else {"max_epochs": epochs}
        )
        checkpoint = ModelCheckpoint(
            tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=when != "end of validation"
        )
        return make_trainer(tmp_path, [checkpoint], **limit)

    whole_data = make_data(**OPTIONS)
    whole = fit(make_trainer(tmp_path, enable_checkpointing=False), whole_data)
    first = fit(trainer_of(1), make_data(**OPTIONS))
    data = make_data(**OPTIONS)
    second = fit(trainer_of(3), data, ckpt_path=tmp_path / "epoch=0.ckpt")
    # The loader's own count is the order's: Lightning's runs one ahead under max_steps.
    shown = [(batch, indices) for _, batch, indices in first.seen + second.seen]
    assert shown == [(batch, indices) for _, batch, indices in whole.seen]
    assert first.pixels + second.pixels == whole.pixels
    assert data.order_hash == whole_data.order_hash


def test_part_of_each_epoch(tmp_path):
    data = make_data()
    model = fit(make_trainer(tmp_path, enable_checkpointing=False, limit_train_batches=3), data)
    whole = fit(make_trainer(tmp_path, enable_checkpointing=False), make_data())
    assert model.seen == [step for step in whole.seen if step[1] < 3]


def test_validation_in_mid_epoch_and_a_second_fit_change_nothing(tmp_path):
    whole_data = make_data()
    whole = fit(make_trainer(tmp_path, enable_checkpointing=False), whole_data)
    data = make_data()
    for _ in range(2):
        model = fit(make_trainer(tmp_path, enable_checkpointing=False, val_check_interval=4), data)
        assert model.seen == whole.seen
        assert data.order_hash == whole_data.order_hash


def test_reloading_the_loader_goes_on(tmp_path):
    whole_data, data = make_data(), make_data()
    whole = fit(make_trainer(tmp_path, enable_checkpointing=False), whole_data)
    trainer = make_trainer(tmp_path, enable_checkpointing=False, reload_dataloaders_every_n_epochs=1)
    assert fit(trainer, data).seen == whole.seen
    assert data.order_hash == whole_data.order_hash


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_shows_the_same_batches_in_every_epoch(tmp_path):
    model = fit(make_trainer(tmp_path, enable_checkpointing=False, overfit_batches=2), make_data())
    batches = [indices for _, _, indices in model.seen]
    assert batches == batches[:2] * 3


def test_evaluation_shows_every_image_once(tmp_path):
    trainer = make_trainer(tmp_path, enable_checkpointing=False)
    for run, n in ((trainer.validate, 11), (trainer.test, 13)):
        model = Recorder()
        run(model, datamodule=make_data(), verbose=False)
        assert model.evaluated == list(range(n))


def test_batches_are_not_moved_again():
    data = make_data()
    batch = next(iter(data.train_dataloader()))
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch


def test_arrays_are_shared_by_loaders():
    data = make_data()
    first, second = data.val_dataloader(), data.val_dataloader()
    assert first._fetch._stored.data_ptr() == second._fetch._stored.data_ptr()


def test_what_is_known_after_loading():
    data = ImageData("digits")
    data.prepare_data()
    data.setup("fit")
    assert (data.num_classes, data.in_channels, data.image_size) == (10, 1, (8, 8))
    assert (data.train_n + data.val_n + data.test_n, data.test_n) == (1797, 359)
    assert data.class_names == tuple("0123456789")
    assert len(data.fingerprint) >= 16
    assert data.order_hash == ""
    pixels = torch.cat([batch.images for batch in ImageData("digits", augment="none").train_dataloader()])
    assert abs(pixels.mean().item()) < 0.02
    assert abs(pixels.std().item() - 1) < 0.02


def test_seed_decides_the_order():
    orders = []
    for seed in (0, 0, 1):
        data = make_data()
        data.seed = seed
        orders.append(next(iter(data.train_dataloader())).indices.tolist())
    assert orders[0] == orders[1] != orders[2]


def test_own_normalisation():
    data = make_data(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 0.5], augment="none")
    batch = next(iter(data.train_dataloader()))
    raw = data.source.train.images[batch.indices] / 255
    torch.testing.assert_close(batch.images, raw * torch.tensor([1.0, 1.0, 2.0]).view(3, 1, 1))


def test_other_image_size():
    data = ImageData("digits", image_size=16, augment="random_crop(9)")
    data.setup("fit")
    assert data.image_size == (16, 16)
    assert next(iter(data.train_dataloader())).images.shape == (128, 1, 16, 16)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"augment": "crop_flop"}, "--data.augment: unknown policy or operation 'crop_flop'"),
        ({"mixup": -1.0}, "--data.mixup is -1.0"),
        ({"cutmix": -1.0}, "--data.cutmix is -1.0"),
        ({"global_batch_size": 0}, "--data.global_batch_size is 0"),
        ({"eval_batch_size": 0}, "--data.eval_batch_size is 0"),
        ({"num_workers": -1}, "--data.num_workers is -1"),
        ({"global_batch_size": 45}, "only 44 training images"),
        ({"augment": "random_crop(8)"}, "padding must be smaller than the image, 8x8: at most 7"),
        ({"mean": [0.5]}, "--data.mean has 1 values, the images have 3 channels"),
        ({"std": [0.5, 0.5, 0.0]}, "every value must be positive"),
        ({"std": [0.5, 0.5, float("nan")]}, "every value must be positive"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match="--data") as caught:
        make_data(**options).setup("fit")
    assert words in str(caught.value)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_checkpoint_of_another_run_is_refused(tmp_path):
    fit(make_trainer(tmp_path, [ModelCheckpoint(tmp_path, "{epoch}")], max_epochs=1), make_data())
    trainer = make_trainer(tmp_path, [ModelCheckpoint(tmp_path / "new", "{epoch}", every_n_epochs=1)])
    with pytest.raises(ValueError, match=r"--data\.global_batch_size was 4 .* is 11 now"):
        fit(trainer, make_data(global_batch_size=11), ckpt_path=tmp_path / "epoch=0.ckpt")


def test_signature_is_a_command_line():
    parser = ArgumentParser()
    parser.add_class_arguments(ImageData, "data")
    constant = build_policy("random_crop(4, constant), flip").spec()
    for given, expected in (
        ("crop_flip", build_policy("crop_flip").spec()),
        ("random_crop(4,constant), flip", constant),
        ("[random_crop(4, constant), flip]", constant),
        ('["random_crop(4, constant)", flip]', constant),
    ):
        config = parser.parse_args([f"--data.augment={given}", "--data.mean=[0.5, 0.5, 0.5]"])
        assert build_policy(ImageData(**config.data).augment).spec() == expected
    text = parser.format_help()
    for name in inspect.signature(ImageData).parameters:
        assert f"--data.{name}" in text


DDP_SCRIPT = """
import json, os, sys
import torch
sys.path[:0] = {paths!r}
from test_module import Recorder, make_data, make_trainer

other = os.fork()  # before torch has done anything: one import for both
os.environ["NODE_RANK"] = "0" if other else "1"
data, model = make_data(**{options!r}), Recorder()
trainer = make_trainer({folder!r}, num_nodes=2, strategy="ddp", max_epochs=2, enable_checkpointing=False)
trainer.fit(model, datamodule=data)
seen, model.evaluated = model.seen, []
trainer.test(model, datamodule=data, verbose=False)
with open({folder!r} + f"/rank{{trainer.global_rank}}.json", "w") as file:
    json.dump([seen, model.pixels, model.evaluated, data.order_hash], file)
torch.distributed.destroy_process_group()  # left to the end of the process, torch 2.11 now and then aborts
if other:
    assert os.waitpid(other, 0)[1] == 0
"""


def test_two_processes_share_what_one_sees(tmp_path):
    options = {**OPTIONS, "eval_batch_size": 2}
    here = Path(__file__).resolve()
    script = tmp_path / "script.py"
    paths = [str(here.parents[2]), str(here.parent)]
    script.write_text(DDP_SCRIPT.format(paths=paths, folder=str(tmp_path), options=options))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    data = make_data(**options)
    alone = fit(make_trainer(tmp_path, max_epochs=2, enable_checkpointing=False), data)
    assert len(ranks[0][0]) == len(ranks[1][0]) == len(alone.seen) == 22
    for step, (epoch, batch, indices) in enumerate(alone.seen):
        shares = [rank[0][step] for rank in ranks]
        assert [share[:2] for share in shares] == [[epoch, batch]] * 2
        assert shares[0][2] + shares[1][2] == indices
        assert ranks[0][1][step] + ranks[1][1][step] == pytest.approx(alone.pixels[step], rel=1e-9)
    assert sorted(ranks[0][2] + ranks[1][2]) == list(range(13))
    assert ranks[0][3] == ranks[1][3] == data.order_hash


@pytest.mark.parametrize(
    ("ends", "until"),
    [
        (
            {"max_epochs": 10, "max_steps": -1},
            (7, 1),
        ),  # 3 batches of 41 // 12 an epoch: 22.5 of 30, rounded to even
        ({"max_epochs": 10, "max_steps": 8}, (2, 0)),
        ({"max_epochs": -1, "max_steps": 8, "accumulate_grad_batches": 2}, (4, 0)),
        ({"max_epochs": 4, "max_steps": -1, "limit_train_batches": 2}, (3, 0)),
        ({"max_epochs": 4, "max_steps": -1, "limit_train_batches": 0.7}, (3, 0)),
        ({"max_epochs": 4, "max_steps": -1, "limit_train_batches": 0}, (0, 0)),
    ],
)
def test_the_share_of_mixing_as_epoch_and_batch(ends, until):
    data = ImageData(name="digits", mixup=0.8, mixing_until=0.75)
    data._source = SimpleNamespace(train=range(41))
    data.global_batch_size = 12
    data.trainer = SimpleNamespace(**{"accumulate_grad_batches": 1, "limit_train_batches": 1.0, **ends})
    assert data._mixed_until() == until


def test_a_share_of_mixing_needs_an_end_and_lies_between_0_and_1():
    data = ImageData(name="digits", mixup=0.8, mixing_until=0.75)
    data.trainer = SimpleNamespace(
        max_epochs=-1, max_steps=-1, accumulate_grad_batches=1, limit_train_batches=1.0
    )
    with pytest.raises(ValueError, match=r"--data.mixing_until 0.75: a share of the training needs its end"):
        data._mixed_until()
    with pytest.raises(ValueError, match=r"--data.mixing_until 1.5: must lie between 0 and 1"):
        ImageData(name="digits", mixing_until=1.5)
    assert ImageData(name="digits", mixup=0.8)._mixed_until() is None
