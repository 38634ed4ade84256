"""Nobody profiles, nothing is paid for; somebody does, and it works."""

from lightning.pytorch.profilers import SimpleProfiler

from tests.training.helpers import arguments
from vit_gelu.cli.options import TrainCLI
from vit_gelu.training.profiler import NoProfiler
from vit_gelu.training.run import train


def run(folder, **options):
    """A training of two steps; returns its trainer."""
    fixed = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 2, "trainer__log_every_n_steps": 1}
    argv = arguments(folder, **fixed, **options)
    cli = TrainCLI.parse(argv)
    cli.prepare_folder()
    record = train(cli.model, cli.datamodule, cli.trainer, cli.folder, config=cli.resolved)
    assert record["status"] == "finished"
    return cli.trainer


def test_without_a_profiler(tmp_path):
    profiler = run(tmp_path / "run").profiler
    assert type(profiler) is NoProfiler
    with profiler.profile("a"), profiler.profile("b"):
        pass
    assert profiler.summary() == ""


def test_with_a_profiler(tmp_path):
    profiler = run(tmp_path / "run", trainer__profiler="simple").profiler
    assert type(profiler) is SimpleProfiler
    assert len(profiler.recorded_durations["run_training_batch"]) == 2
