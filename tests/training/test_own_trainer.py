"""Module and data under a Trainer of one's own: Lightning's logger, progress bar and results get the figures."""

import csv

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger

from vit_gelu import ClassificationModule, ImageData


@pytest.mark.filterwarnings("ignore")
def test_what_lightning_is_told(tmp_path):
    module = ClassificationModule(
        name="vit_tiny",
        patch_size=4,
        embed_dim=16,
        depth=1,
        num_heads=2,
        activation="gelu",
        schedule="constant",
        seed=5,
    )
    data = ImageData("digits", augment="none", global_batch_size=128)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    losses = []
    step = module.training_step

    def training_step(batch, batch_idx):
        losses.append(float(F.cross_entropy(module.network(batch.images), batch.targets)))
        return step(batch, batch_idx)

    module.training_step = training_step
    trainer.fit(module, datamodule=data)
    assert data.seed == 5  # of order and augmentation, as in a run of the command line
    with (tmp_path / "lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = [float(row["train_loss"]) for row in rows if row["train_loss"]]
    assert logged == pytest.approx(losses, rel=1e-5)
    assert len([row for row in rows if row["val_top1"]]) == 1

    (result,) = trainer.test(module, datamodule=data, verbose=False)
    network = module.network.eval()
    with torch.no_grad():
        found = [(network(b.images).argmax(1) == b.targets).sum().item() for b in data.test_dataloader()]
    assert result["test_top1"] == pytest.approx(sum(found) / data.test_n)
