"""Nobody profiles, nothing is paid for; somebody does, and it works."""

from types import SimpleNamespace

import pytest
from lightning.pytorch.profilers import AdvancedProfiler, SimpleProfiler

from tests.training.helpers import arguments
from vit_gelu.cli.options import TrainCLI
from vit_gelu.training.profiler import NoProfiler, profile_into
from vit_gelu.training.run import train


def run(folder, **options):
    """A training of two steps; returns its trainer."""
    fixed = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 2, "trainer__log_every_n_steps": 1}
    argv = arguments(folder, **fixed, **options)
    cli = TrainCLI.parse(argv)
    cli.run_folder.prepare()
    record = train(cli.model, cli.datamodule, cli.trainer, cli.folder, config=cli.resolved)
    assert record["status"] == "finished"
    return cli.trainer


def test_without_a_profiler(tmp_path):
    profiler = run(tmp_path / "run").profiler
    assert type(profiler) is NoProfiler
    with profiler.profile("a"), profiler.profile("b"):
        pass
    assert profiler.summary() == ""


@pytest.mark.parametrize(("name", "kind"), [("simple", SimpleProfiler), ("advanced", AdvancedProfiler)])
def test_with_a_profiler(tmp_path, capsys, name, kind):
    profiler = run(tmp_path / "run", trainer__profiler=name).profiler
    assert type(profiler) is kind
    report = tmp_path / "run" / "fit-profile.txt"
    assert f"reports of the profiler: {report.with_name('*-profile*.txt')}" in capsys.readouterr().out
    # With one, a step goes through all that Lightning's profiler times.
    for action in ("run_training_batch", "backward", "optimizer_step"):
        assert action in report.read_text()
    if kind is SimpleProfiler:
        assert len(profiler.recorded_durations["run_training_batch"]) == 2


def test_a_file_of_its_own_is_kept(tmp_path):
    trainer = SimpleNamespace(profiler=SimpleProfiler(tmp_path, "mine"), is_global_zero=True)
    profile_into(trainer, tmp_path / "run")
    assert (trainer.profiler.dirpath, trainer.profiler.filename) == (tmp_path, "mine")
