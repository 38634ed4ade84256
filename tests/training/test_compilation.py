"""torch.compile: what it did is counted, what it cannot do is said before the training starts."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.training.helpers import train
from vit_gelu.activations.compiled import cpu_options
from vit_gelu.data import ImageData
from vit_gelu.training import compilation
from vit_gelu.training.casts import GroupedCasts
from vit_gelu.training.compilation import (
    check_compiler,
    check_cuda_graphs,
    compile_options,
    graph_breaks,
)
from vit_gelu.training.module import ClassificationModule
from vit_gelu.training.record import environment
from vit_gelu.training.run import run_callbacks
from vit_gelu.training.speed import SpeedMeter

CPU = torch.device("cpu")


def test_a_graph_break_is_counted_and_told_once():
    torch._dynamo.reset()
    meter, trainer = SpeedMeter(), SimpleNamespace(is_global_zero=True, world_size=1)
    meter.on_train_start(trainer, SimpleNamespace(device=CPU))
    assert meter.breaks() == {}

    @torch.compile(backend="eager")
    def broken(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x * 2

    broken(torch.ones(2))
    assert sum(meter.breaks().values()) == 1
    (reason,) = meter.breaks()
    assert "\n" not in reason
    with pytest.warns(UserWarning, match="broke the graph") as warned:
        meter._warn_of_breaks(trainer)
    meter._warn_of_breaks(trainer)  # a second warning would be an error here
    assert len(warned) == 1
    assert reason in str(warned[0].message)
    later = SpeedMeter()
    later.on_train_start(trainer, SimpleNamespace(device=CPU))
    assert later.breaks() == {}
    assert graph_breaks()[reason] >= 1


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler++")
    with pytest.raises(ValueError, match=r"--model.compile true: .*no no-such-compiler\+\+; install one"):
        check_compiler(CPU)


def test_a_compiler_that_fails(monkeypatch):
    def fails(function, options):
        raise RuntimeError("backend='inductor' raised:\nCppCompileError: C++ compile error\n\nCommand:\nlong")

    monkeypatch.setenv("CXX", "ls")
    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(
        ValueError, match=r"does not work here: CppCompileError: C\+\+ compile error; train with"
    ) as e:
        check_compiler(CPU)
    assert "\n" not in str(e.value)


def test_a_compiler_that_lies(monkeypatch):
    monkeypatch.setenv("CXX", "ls")
    monkeypatch.setattr(torch, "compile", lambda function, options: lambda x: x.sum())
    with pytest.raises(ValueError, match="gives wrong results here"):
        check_compiler(CPU)


def test_the_compiler_is_tried_as_the_network_will_need_it(monkeypatch):
    """Other options cost ten seconds, in which torch prepares its headers for them."""
    seen = []
    monkeypatch.setenv("CXX", "ls")
    monkeypatch.setattr(torch, "compile", lambda function, options: (seen.append(options), function)[1])
    check_compiler(CPU)
    assert seen == [compile_options("cpu")]


def test_no_compiler_ends_a_run_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler++")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        train(tmp_path / "run", model__compile="true")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_run(tmp_path):
    torch._dynamo.reset()
    record = train(
        tmp_path / "run",
        model__compile="true",
        model__attention="strided",
        model__mlp_memory="lean",
        model__depth=1,
        trainer__max_epochs=1,
        trainer__limit_train_batches=2,
    )
    assert record["speed"]["compiled_graphs"] == 1
    assert record["speed"]["compiled_graph_breaks"] == 0
    assert record["speed"]["compile_seconds"] > 0
    assert record["env"]["compiled"] is True


def test_cuda_graphs_need_a_gpu(tmp_path):
    with pytest.raises(ValueError, match=r"--model\.cuda_graphs true: needs a CUDA GPU; this run is on cpu"):
        train(tmp_path / "run", model__compile="true", model__cuda_graphs="true")


def test_products_are_tuned_on_a_gpu(tmp_path):
    with pytest.raises(
        ValueError, match=r"--model\.compile max-autotune: needs a CUDA GPU; this run is on cpu: take .*true"
    ):
        train(tmp_path / "run", model__compile="max-autotune")


def test_the_record_says_that_products_were_tuned():
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), precision="32-true", world_size=1
    )
    assert environment(trainer, True, None, autotuned=True)["autotuned"] is True
    assert environment(trainer, True, None)["autotuned"] is None


def test_cuda_graphs_go_with_one_pass_per_step():
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda")), accumulate_grad_batches=2
    )
    with pytest.raises(ValueError, match=r"not with --trainer\.accumulate_grad_batches 2.*set it to 1"):
        check_cuda_graphs(trainer)
    trainer.accumulate_grad_batches = 1
    check_cuda_graphs(trainer)


@pytest.mark.parametrize("autotune", [False, True])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_what_is_compiled_for_a_gpu(monkeypatch, cuda_graphs, autotune):
    monkeypatch.setattr(compilation, "check_compiler", lambda device: None)
    seen = []
    net = torch.nn.Identity()
    net.compile = lambda options: seen.append(options)
    compilation.compile_network(net, torch.device("cuda"), cuda_graphs=cuda_graphs, autotune=autotune)
    (options,) = seen
    assert options.get("triton.cudagraphs", False) is cuda_graphs
    assert options.get("max_autotune", False) is autotune
    assert isinstance(options["post_grad_custom_post_pass"], GroupedCasts)
    torch.compile(torch.nn.Linear(2, 2), options=options)  # torch knows them all


def test_on_a_cpu_products_and_sums_are_one_instruction(monkeypatch):
    """a·b − c where a·b is rounded: 0 in two instructions, what was lost in one."""
    monkeypatch.setattr(compilation, "check_compiler", lambda device: None)
    seen = []
    net = torch.nn.Identity()
    net.compile = lambda **o: seen.append(o)
    compilation.compile_network(net, CPU, cuda_graphs=False)
    assert seen == [{"options": cpu_options()}]
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    a = torch.full((64,), 1 + 2**-12)
    residue = torch.compile(lambda a, c: a * a - c, options=cpu_options())(a, a * a)
    assert residue.tolist() == [2.0**-24] * 64


class NoSynchronisation(Callback):
    """Lets torch raise where a step waits for the device; the first steps and the last ones of an epoch may."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.cuda.set_sync_debug_mode("error" if 6 <= batch_idx < trainer.num_training_batches - 3 else 0)

    def teardown(self, trainer, pl_module, stage):
        torch.cuda.set_sync_debug_mode(0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.9}, {"compile": True}, {"compile": True, "cuda_graphs": True}]
)
def test_a_step_does_not_wait_for_the_gpu(tmp_path, options):
    module = ClassificationModule(
        patch_size=4, embed_dim=32, depth=2, num_heads=2, dropout=0.1, drop_path=0.1, **options
    )
    trainer = Trainer(
        accelerator="gpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=2,
        callbacks=[
            *run_callbacks(tmp_path, ema_decay=options.get("ema_decay"), save=False, show=False),
            NoSynchronisation(),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        log_every_n_steps=10_000,
    )
    data = ImageData(name="digits", global_batch_size=64, augment="digits")
    data.seed = 0
    trainer.fit(module, datamodule=data)
    assert trainer.global_step > 30
