"""From what the user writes to runs: expansion, names, mistakes, and plans that go on or do not."""

import re
from dataclasses import replace

import pytest
import yaml

from tests.ablation.plans import TRAIN, specification, write_plan
from tests.cli.test_bad_input import failure
from vit_gelu.ablation.plan import Arm, Plan, Tune, make_run
from vit_gelu.ablation.slots import local_slots
from vit_gelu.ablation.specification import build_plan
from vit_gelu.ablation.workspace import Workspace, differences, plan_as_plain, read_plan
from vit_gelu.cli.ablate import go_on
from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.resolve import Resolver


@pytest.fixture(scope="module")
def resolve():
    return Resolver()


def plan_of(resolve, **changes):
    return build_plan(specification(**changes), resolve)


def test_expansion_and_names(resolve):
    arms = ["relu", {"label": "wide gelu", "activation": "gelu", "model.embed_dim": 64}]
    plan = plan_of(resolve, arms=arms, seeds=[3, 1])
    runs = plan.runs()
    assert [(r.arm.label, r.seed) for r in runs] == [
        ("relu", 3),
        ("wide gelu", 3),
        ("relu", 1),
        ("wide gelu", 1),
    ]
    assert all(re.fullmatch(r"(relu|wide-gelu)-seed[13]-[0-9a-f]{8}", r.id) for r in runs)
    assert len({r.id for r in runs}) == 4
    assert runs[1].arm.get("model.embed_dim") == 64
    assert runs[1].arm.config["arm"] == "wide gelu"
    assert plan.baseline == "relu"
    # The name says what is run: not where it stands in the plan, what it is called, or where it logs to.
    again = plan_of(
        resolve, arms=arms[::-1], seeds=[1, 3], overrides=TRAIN | {"loggers": ["csv", "tensorboard"]}
    )
    assert {r.id for r in again.runs()} == {r.id for r in runs}
    longer = plan_of(resolve, arms=arms, seeds=[3, 1], overrides=TRAIN | {"trainer.max_epochs": 3})
    assert not {r.id for r in longer.runs()} & {r.id for r in runs}


def test_the_hash_is_that_of_the_records(ended, resolve):
    import json

    from vit_gelu.ablation.plan import Run

    _, out, _ = ended
    runs: dict[str, Run] = {r.id: r for r in read_plan(out).runs()}
    paths = list((out / "runs").glob("*/record.json"))
    assert paths
    for path in paths:
        assert json.loads(path.read_text())["config_hash"] == runs[path.parent.name].arm.hash


def test_options_nested_dotted_and_by_flag_are_one(resolve):
    nested = TRAIN | {"model": {"lr": 0.5}}
    nested.pop("model.lr")
    for overrides in (TRAIN | {"model.lr": 0.5}, nested, TRAIN | {"model.lr": "0.5"}):
        assert plan_of(resolve, overrides=overrides).arms[0].get("model.lr") == 0.5
    kwargs = {
        "label": "leaky",
        "activation": "leaky_relu",
        "model.activation_kwargs": {"negative_slope": 0.2},
    }
    plan = plan_of(resolve, arms=["gelu", kwargs])
    assert plan.arms[1].get("model.activation_kwargs") == {"negative_slope": 0.2}
    assert plan.baseline == "gelu", "the first, where there is no relu"


def test_devices_are_part_of_the_plan(resolve):
    assert plan_of(resolve).devices_per_run == 1
    assert plan_of(resolve, overrides=TRAIN | {"trainer.devices": 2}).devices_per_run == 2
    assert build_plan(specification(), resolve, devices_per_run=4).devices_per_run == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"arms": ["glue"]}, ["'glue'", "--activation", "'gelu'"]),
        ({"arms": ["gelu", "gelu"]}, ["'gelu'", "twice", "label"]),
        ({"arms": ["gelu", {"label": "same", "activation": "gelu"}]}, ["'gelu' and 'same'", "same run"]),
        ({"arms": []}, ["arms", "--activations"]),
        ({"arms": [{"model.lr": 1}]}, ["number 1", "label"]),
        (
            {"arms": [{"label": "x", "activation": "relu", "model.lrr": 1}]},
            ["'x'", "--model.lrr", "--model.lr"],
        ),
        ({"arms": [{"label": "x", "activation": "relu", "sede": 1}]}, ["'x'", "'sede'"]),
        ({"arms": [{"label": "x", "activation": "relu", "model.activation": "gelu"}]}, ["'x'", "twice"]),
        ({"arms": [{"label": "x", "model.depth": "deep"}]}, ["'x'", "--model.depth", "deep", "int"]),
        ({"arms": [["gelu"]]}, ["['gelu']", "mapping"]),
        ({"arm": ["gelu"]}, ["'arm'", "'arms'"]),
        ({"overrides": {"model.depht": 3}}, ["--model.depht", "--model.depth"]),
        ({"overrides": {"modle.depth": 3}}, ["modle.depth"]),
        ({"overrides": {"out": "x"}}, ["'out'"]),
        ({"overrides": [1]}, ["overrides", "mapping"]),
        ({"config": "digitz"}, ["digitz", "digits"]),
        ({"config": ["a", "b"]}, ["config", "one recipe"]),
        ({"baseline": "rleu", "arms": ["relu", "gelu"]}, ["--baseline", "'rleu'", "'relu'"]),
        ({"seeds": 0}, ["--seeds 0", "at least 1"]),
        ({"seeds": -3}, ["--seeds -3"]),
        ({"seeds": [1, 1]}, ["--seeds", "1 is there twice"]),
        ({"seeds": [1, -1]}, ["--seeds -1", "at least 0"]),
        ({"seeds": "many"}, ["--seeds many"]),
        ({"margin": -0.1}, ["--margin -0.1", "above 0"]),
        ({"margin": "wide"}, ["--margin wide"]),
        ({"tune": {"model.lr": [0.1, 0.2], "seeds": [0, 7]}}, ["tune", "seed 0"]),
        ({"tune": {"model.lr": [0.1]}}, ["tune", "model.lr", "two"]),
        ({"tune": {"model.lrr": [0.1, 0.2]}}, ["--model.lrr"]),
        ({"tune": {"seeds": [7]}}, ["tune", "one option"]),
        ({"tune": {"trainer.max_epochs": [1, 2]}}, ["tune", "trainer.max_epochs", "same in all arms"]),
        ({"overrides": TRAIN | {"trainer.log_every_n_steps": 0}}, ["log_every_n_steps 0", ">= 1"]),
        ({"overrides": TRAIN | {"data.val_fraction": 0}}, ["--data.val_fraction 0"]),
        # What the report could not pair afterwards.
        ({"overrides": TRAIN | {"trainer.limit_test_batches": 0}}, ["--trainer.limit_test_batches 0", "all"]),
        ({"overrides": TRAIN | {"trainer.limit_val_batches": 1}}, ["--trainer.limit_val_batches 1", "all"]),
        ({"overrides": TRAIN | {"trainer.fast_dev_run": True}}, ["--trainer.fast_dev_run", "all"]),
        ({"overrides": TRAIN | {"trainer.max_time": "00:01:00:00"}}, ["max_time", "--trainer.max_epochs"]),
        (
            {
                "overrides": TRAIN
                | {
                    "trainer.callbacks": [
                        {"class_path": "EarlyStopping", "init_args": {"monitor": "val_top1", "mode": "max"}}
                    ]
                }
            },
            ["'gelu'", "EarlyStopping", "--trainer.max_epochs"],
        ),
        (
            {"arms": ["relu", {"label": "half", "activation": "relu", "trainer.precision": "bf16-mixed"}]},
            ["'half'", "--trainer.precision bf16-mixed", "32-true", "'relu'"],
        ),
        (
            {"arms": ["relu", {"label": "small steps", "activation": "relu", "data.global_batch_size": 64}]},
            ["'small steps'", "--data.global_batch_size 64", "128"],
        ),
        (
            {"arms": ["relu", {"label": "long", "activation": "gelu", "trainer.max_epochs": 3}]},
            ["'long'", "--trainer.max_epochs 3"],
        ),
        (
            {"arms": ["relu", {"activation": "gelu", "model.lr": 0.1}]},
            ["'gelu'", "--model.lr 0.1", "label: gelu, lr 0.1"],
        ),
        (
            {
                "tune": {"model.lr": [0.1, 0.2]},
                "arms": ["gelu", {"label": "hot", "activation": "gelu", "model.lr": 1}],
            },
            ["'gelu' and 'hot'"],
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_mistakes_in_a_plan(resolve, changes, expected, tmp_path):
    from vit_gelu.ablation.specification import read_specification

    path = tmp_path / "plan.yaml"
    write_plan(path, **changes)
    with pytest.raises(UsageError) as error:
        build_plan(read_specification(path), resolve)
    message = str(error.value)
    assert len(message.splitlines()) <= 4
    for part in expected:
        assert part in message, message


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ["PLAN", "--activations"]),
        (["digitz"], ["digitz", "'digits'"]),
        (["--activations", "gelu", "--seed", "3"], ["--seed", "--seeds"]),
        (["digits", "--activation", "gelu"], ["--activation", "--activations"]),
        (["digits", "--seeds", "x"], ["--seeds", "x"]),
        (["digits", "--jobs-per-device", "0"], ["--jobs-per-device", "0"]),
        (["digits", "--executor", "slrum"], ["'slrum'", "'slurm'"]),
        (["digits", "--slurm.time", "3"], ["--slurm.time", "--executor slurm"]),
        (["digits", "--ray.address", "auto"], ["--ray.address", "--executor ray"]),
        (["digits", "--model.lr"], ["--model.lr", "expects a value"]),
        (["digits", "--model.lr", "--seeds", "1"], ["--model.lr", "expects a value"]),
        (["tests"], ["tests", "plan.yaml"]),
    ],
    ids=" ".join,
)
def test_mistakes_on_the_command_line(capsys, argv, expected, tmp_path):
    message = failure(capsys, ["ablate", *argv, "--out", str(tmp_path / "out")])
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("executor", ["slurm", "ray"])
def test_missing_package_names_the_extra(capsys, monkeypatch, executor):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = failure(capsys, ["ablate", "digits", "--executor", executor])
    assert f'"vit_gelu[{executor}]"' in message


def test_a_folder_keeps_its_plan(resolve, tmp_path):
    plan = plan_of(resolve, tune={"model.lr": ["1e-3", 0.003]}, margin=0.5)
    workspace = Workspace(tmp_path / "out")
    assert workspace.adopt(plan) is False
    assert read_plan(workspace.folder) == plan
    assert plan.tune.values == (0.001, 0.003)
    assert workspace.adopt(plan) is True
    assert workspace.adopt(plan.with_seeds((0, 1, 2))) is True
    assert read_plan(workspace.folder).seeds == (0, 1, 2)
    with pytest.raises(UsageError, match="another plan") as error:
        workspace.adopt(plan)
    assert "seeds: [0, 1, 2] there, [0, 1] here" in str(error.value)
    assert not list(workspace.folder.glob("*.partial"))


def test_differences_are_named(resolve):
    plan = plan_of(resolve)
    other = plan_of(resolve, overrides=TRAIN | {"model.lr": 0.5})
    assert differences(plan, other) == [
        f"arm {a}: model.lr: 0.003 there, 0.5 here" for a in ("gelu", "gelu_stochastic")
    ]
    assert differences(plan, replace(plan, margin=1.0)) == ["margin: 0.2 there, 1.0 here"]
    assert differences(plan, replace(plan, baseline="gelu_stochastic")) != []
    assert "arms: gelu, gelu_stochastic there, gelu here" in differences(
        plan, plan_of(resolve, arms=["gelu"])
    )
    assert differences(plan, plan_of(resolve, overrides=TRAIN | {"loggers": ["csv", "tensorboard"]})) == []


def test_a_plan_that_was_changed_by_hand_is_refused(resolve, tmp_path):
    Workspace(tmp_path).adopt(plan_of(resolve))
    text = (tmp_path / "plan.yaml").read_text()
    (tmp_path / "plan.yaml").write_text(text.replace("lr: 0.003", "lr: 0.004"))
    with pytest.raises(UsageError, match="changed by hand"):
        read_plan(tmp_path)
    (tmp_path / "plan.yaml").write_text("schema: 99\n")
    with pytest.raises(UsageError, match="newer"):
        read_plan(tmp_path)
    (tmp_path / "plan.yaml").write_text("arms: 3\n")
    with pytest.raises(UsageError, match="not the plan"):
        read_plan(tmp_path)


def test_another_plan_in_the_folder_is_refused(ended, capsys, tmp_path):
    _, out, _ = ended
    other = write_plan(tmp_path / "other.yaml", seeds=1)
    message = failure(capsys, ["ablate", other, "--out", str(out)])
    assert "another plan" in message
    assert "seeds: [0, 1] there, [0] here" in message
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("")
    assert "thesis.tex" in failure(capsys, ["ablate", other, "--out", str(foreign)])
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]


def test_two_at_work_in_one_folder(ended, capsys):
    from filelock import FileLock

    _, out, _ = ended
    with FileLock(out / ".lock"):
        assert "another vit-gelu ablate" in failure(capsys, ["ablate", str(out)])


def test_only_seeds_may_grow_in_a_folder(ended, capsys):
    _, out, _ = ended
    for argv in (
        ["--margin", "1"],
        ["--model.lr", "1"],
        ["--activations", "elu"],
        ["--devices-per-run", "2"],
    ):
        assert argv[0] in failure(capsys, ["ablate", str(out), *argv])


def test_a_grid_has_labels_and_seeds_of_its_own(resolve):
    plan = plan_of(resolve, tune={"model.lr": [0.1, 0.2], "seeds": [8, 9]})
    runs = list(plan.tuning_runs())
    assert len(runs) == 2 * 2 * 2
    assert {r.seed for r in runs} == {8, 9}
    assert {r.kind for r in runs} == {"tuning"}
    assert {r.arm.label for r in runs} == {
        f"{a} [model.lr={v}]" for a in ("gelu", "gelu_stochastic") for v in (0.1, 0.2)
    }
    assert len({r.id for r in runs}) == 8
    assert plan_as_plain(plan)["tune"] == {"model.lr": [0.1, 0.2], "seeds": [8, 9]}


def test_slots(monkeypatch):
    from vit_gelu.ablation import slots

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(slots, "cores", lambda: 8)
    monkeypatch.setattr(slots.torch.cuda, "device_count", lambda: 0)
    assert [s.environment for s in local_slots("auto", 1, 1)] == [{}]
    monkeypatch.setattr(slots.torch.backends.mps, "is_available", lambda: True)
    assert [s.name for kind in ("auto", "mps", "cpu") for s in local_slots(kind, 1, 1)] == [
        "MPS",
        "MPS",
        "CPU",
    ]
    assert [s.environment for s in local_slots("auto", 1, 3)] == [
        {"OMP_NUM_THREADS": "2", "VIT_GELU_SHARED_DEVICE": "1"}
    ] * 3
    monkeypatch.setattr(slots.torch.cuda, "device_count", lambda: 4)
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in local_slots("auto", 1, 1)] == ["0", "1", "2", "3"]
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in local_slots("auto", 2, 1)] == ["0,1", "2,3"]
    assert len(local_slots("gpu", 1, 2)) == 8
    assert local_slots("cpu", 1, 1)[0].environment == {}
    with pytest.raises(UsageError, match="there are 4 GPUs"):
        local_slots("auto", 5, 1)
    with pytest.raises(UsageError, match="--jobs-per-device 2"):
        local_slots("auto", 2, 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    monkeypatch.setattr(slots.torch.cuda, "device_count", lambda: 2)
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in local_slots("auto", 1, 1)] == ["5", "GPU-abc"]


def test_the_command_to_go_on_keeps_how_and_drops_what(tmp_path):
    argv = ["plan.yaml", "--seeds", "3", "--jobs-per-device=2", "--executor", "slurm", "--slurm.time", "9"]
    assert go_on(tmp_path, argv) == (
        f"vit-gelu ablate {tmp_path} --jobs-per-device=2 --executor slurm --slurm.time 9"
    )


def test_shipped_plans(resolve):
    from vit_gelu.ablation.specification import read_specification
    from vit_gelu.cli.configs import shipped_configs, shipped_plans

    plans = {name: build_plan(read_specification(path), resolve) for name, path in shipped_plans().items()}
    assert {n: (len(p.arms), len(p.seeds)) for n, p in plans.items()} == {
        "digits": (5, 10), "cifar10": (8, 5), "cifar10_cpu": (4, 10)
    }  # fmt: skip
    assert not {n for n in shipped_configs() if n.startswith("ablation")}


def test_help_is_short_and_loads_no_torch():
    import subprocess
    import sys

    code = "import sys\nfrom vit_gelu.cli import main\nmain(['ablate', '--help'])\n"
    code += "assert not {'torch', 'lightning', 'numpy', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) < 50
    assert "examples:" in done.stdout


def test_run_names_are_fit_for_files():
    arm = Arm("my_package.acts.Act [a/b]", {"model": {"lr": 1}})
    assert re.fullmatch(r"my_package\.acts\.Act-a-b-seed0-[0-9a-f]{8}", make_run(arm, 0).id)
    assert Tune("model.lr", (0.1, 0.25), (5,)).candidates(arm)[1].get("model.lr") == 0.25
    assert Plan((arm,), (0,), arm.label, 0.2).runs() == [make_run(arm, 0)]


def test_a_broken_file(capsys, tmp_path):
    path = tmp_path / "plan.yaml"
    for text, expected in [
        ("arms: [unclosed", "YAML"),
        ("- gelu\n", "mapping"),
        ("arms: [gelu]\nsedes: 3\n", "'seeds'"),
    ]:
        path.write_text(text)
        assert expected in failure(capsys, ["ablate", str(path)])
    assert yaml.safe_load(path.read_text())["sedes"] == 3
