"""ImageData under a real Trainer: what it shows, and that a resumed run goes on exactly."""

import contextlib

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from vit_gelu.data.arrays import ImageArrays, Source
from vit_gelu.data.module import ImageData

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
    settings = {"max_epochs": 3, **options}
    return L.Trainer(
        accelerator="cpu",
        devices=1,
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


@pytest.fixture(scope="module", params=[1, 2], ids=["each", "accumulated"])
def uninterrupted(request, tmp_path_factory):
    data = make_data(**OPTIONS)
    trainer = make_trainer(
        tmp_path_factory.mktemp("whole"), enable_checkpointing=False, accumulate_grad_batches=request.param
    )
    model = fit(trainer, data)
    assert [index for _, _, batch in model.seen for index in batch] != sorted(range(N)) * 3
    assert len(model.seen) == 33
    return request.param, model, data.order_hash


# 11 batches an epoch, or 6 optimizer steps of two: within, just before, at and after an epoch's end
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("steps", [1, 5, 6, 7, 10, 11, 12, 17])
def test_resumed_run_sees_what_the_uninterrupted_run_saw(steps, uninterrupted, tmp_path):
    accumulate, whole, order_hash = uninterrupted

    def trainer_with(*callbacks):
        checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        return make_trainer(tmp_path, [checkpoint, *callbacks], accumulate_grad_batches=accumulate)

    first = fit(trainer_with(Stop(steps)), make_data(**OPTIONS))
    data, trainer = make_data(**OPTIONS), trainer_with()
    second = fit(trainer, data, ckpt_path=tmp_path / f"step={steps}.ckpt")
    assert first.seen + second.seen == whole.seen
    assert first.pixels + second.pixels == whole.pixels
    assert second.weight.item() == whole.weight.item()
    assert data.order_hash == order_hash
