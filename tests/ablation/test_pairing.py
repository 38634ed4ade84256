"""What is compared with what: sound runs in, everything else left out by name."""

import json
import shutil

import pytest
import yaml

from tests.ablation.helpers import experiment, record, write
from tests.training.helpers import ROOT
from vit_gelu.ablation.comparison import analyse
from vit_gelu.ablation.costs import measure_costs
from vit_gelu.ablation.metric import METRICS
from vit_gelu.ablation.pairing import read_experiment
from vit_gelu.ablation.statistics import t_interval
from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.run_hash import config_hash

THREE = {"relu": [9000, 9010, 8990], "gelu": [9050, 9060, 9030], "silu": [9020, 9040, 9000]}


def left_out(root):
    return {x.folder.name: x.reason for x in read_experiment([root]).left_out}


def test_sound_runs_are_all_used(tmp_path):
    found = read_experiment([experiment(tmp_path, THREE)])
    assert {arm: list(runs) for arm, runs in found.arms.items()} == {arm: [0, 1, 2] for arm in THREE}
    assert not found.left_out
    pairs = found.pairs("gelu", "relu")
    assert [(a.arm, b.arm, a.seed, b.seed) for a, b in pairs] == [("gelu", "relu", s, s) for s in range(3)]
    assert all(a.order_hash == b.order_hash for a, b in pairs)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"order_hash": "9" * 32}, "order of images 999999999999 at seed 1 is not the other arms' 000000000000"),
        ({"order_hash": f"{0:032x}"}, "order of images"),
        ({"dataset__train_n": 50000}, "split (train, validation, test images) is 50000, 5000, 10000"),
        ({"dataset__fingerprint": "e" * 32}, "fingerprint of the data set is eee"),
        ({"dataset__name": "cifar100"}, "data set is cifar100, cifar10 in the others"),
        ({"global_batch_size": 256}, "global batch size is 256, 128 in the others"),
        ({"steps": 21}, "number of steps is 21, 20 in the others"),
        ({"tested": "best"}, "tested checkpoint is best, last in the others"),
        ({"env__precision": "32-true"}, "precision is 32-true, bf16-mixed in the others"),
        ({"env__device_type": "cpu"}, "device type is cpu, cuda in the others"),
        ({"model__name": "vit_small"}, "model is vit_small, vit_tiny in the others"),
        ({"test__top1": 0.95}, "test top-1 0.95 is not 9060 of 10000"),
        ({"test__n": 9999}, "test was measured on 9999 images, the split has 10000"),
        ({"test__loss": float("nan")}, "test loss is nan, not a finite number"),
        ({"test": None}, "no test score"),
        ({"schema": 2}, "schema 2 is newer than this version knows (1)"),
        ({"schema": "x"}, "not the record of a run"),
        ({"status": "running"}, "status is 'running'"),
        ({"status": "diverged", "diverged_step": 7}, "diverged at step 7"),
        ({"epochs": "1"}, "epochs is '1', not a whole number"),
        ({"order_hash": ""}, "the record has no order_hash"),
        ({"config_hash": "e" * 16}, "config hash eeeeeeeeeeeeeeee differs from the arm's other runs"),
        ({"arm": 3}, "arm is 3, not a text"),
        ({"tuned": 3}, "tuned is 3, not a mapping"),
        ({"tuned": {"model.lr": [1, 2], "seeds": [9]}}, 'tuning is {"model.lr": [1, 2], "seeds": [9]}, None in'),
    ],
)  # fmt: skip
def test_doctored_record_is_refused_by_name(tmp_path, change, reason):
    experiment(tmp_path, THREE)
    shutil.rmtree(tmp_path / "gelu-seed1")
    write(tmp_path, record("gelu", 1, 9060, **change), "doctored")
    found = left_out(tmp_path)
    assert list(found) == ["doctored"]
    assert reason in found["doctored"]


def test_what_is_no_finished_run_is_named(tmp_path):
    experiment(tmp_path, THREE)
    (tmp_path / "gelu-seed0" / "record.json").write_text('{"schema": 1,')
    (tmp_path / "silu-seed0" / "record.json").unlink()
    (tmp_path / "silu-seed0" / "config.yaml").write_text("seed_everything: 0\n")
    found = left_out(tmp_path)
    assert "cannot be read" in found["gelu-seed0"]
    assert found["silu-seed0"] == "not finished: no record.json"


def test_copies_and_repeated_seeds_count_once(tmp_path):
    experiment(tmp_path / "a", THREE)
    shutil.copytree(tmp_path / "a" / "gelu-seed0", tmp_path / "b" / "gelu-seed0")
    write(tmp_path, record("gelu", 1, 9999, started="2026-02-01T00:00:00+00:00"), "again")
    found = read_experiment([tmp_path, tmp_path / "a"])
    reasons = {x.folder.name: x.reason for x in found.left_out}
    assert reasons["gelu-seed0"] == f"a copy of {tmp_path / 'a' / 'gelu-seed0'}"
    assert reasons["again"].startswith("a later run of gelu at seed 1")
    assert found.arms["gelu"][1].record["test"]["correct"] == 9060


def test_two_arms_that_disagree_on_the_order_are_not_paired(tmp_path):
    experiment(tmp_path, {"relu": [9000, 9010], "gelu": [9050]})
    write(tmp_path, record("gelu", 1, 9060, order_hash="9" * 32))
    assert set(left_out(tmp_path)) == {"gelu-seed1", "relu-seed1"}


def test_several_experiments_are_not_guessed(tmp_path):
    experiment(tmp_path, {"relu": [9000, 9010]})
    experiment(tmp_path, {"gelu": [9000, 9010]}, steps=40)
    with pytest.raises(UsageError, match=r"number of steps 20 \(2 runs\), 40 \(2 runs\)"):
        read_experiment([tmp_path])


def with_config(folder, **options):
    """Give a run options, and their hash to its record."""
    config = {"seed_everything": 1, "model": {"activation": "x", "lr": 0.01}, "data": {"root": str(folder)}}
    config["model"] |= options
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    made = json.loads((folder / "record.json").read_text()) | {"config_hash": config_hash(config)}
    (folder / "record.json").write_text(json.dumps(made))


def test_other_learning_rate_is_found_in_the_options(tmp_path):
    experiment(tmp_path, THREE)
    for folder in tmp_path.iterdir():
        with_config(folder)
    assert not left_out(tmp_path)
    assert not read_experiment([tmp_path]).notes  # another data.root is no other recipe
    with_config(tmp_path / "gelu-seed1", lr=0.003)
    assert left_out(tmp_path) == {"gelu-seed1": "--model.lr is 0.003, 0.01 in the others"}


LR = {"model.lr": [0.001, 0.01, 0.1], "seeds": [1000, 1001]}


def tuned_experiment(root, **rates):
    """``THREE``, each arm with its own learning rate, which an ablation chose for it."""
    experiment(root, THREE, tuned=LR)
    for folder in root.iterdir():
        with_config(folder, lr=rates[folder.name.split("-")[0]])


def test_arms_have_the_learning_rate_that_was_chosen_for_them(tmp_path):
    tuned_experiment(tmp_path, relu=0.01, gelu=0.001, silu=0.01)
    found = read_experiment([tmp_path])
    assert not found.left_out
    assert len(found.runs) == 9
    assert found.notes == [
        "--model.lr was chosen for each arm by validation accuracy, from 0.001, 0.01, 0.1, in runs of their own (seeds "
        "1000, 1001): gelu 0.001 (an end of the grid), relu 0.01, silu 0.01."
    ]


def test_runs_that_chose_are_not_compared(tmp_path):
    tuned_experiment(tmp_path, relu=0.01, gelu=0.001, silu=0.01)
    for i, rate in enumerate(LR["model.lr"]):
        for seed in LR["seeds"]:
            for arm in THREE:
                label, status = f"{arm} [model.lr={rate}]", "diverged" if i == 2 else "finished"
                write(tmp_path, record(arm, seed, 9500, arm=label, tuned=LR, status=status))
    found = read_experiment([tmp_path])
    assert set(found.arms) == set(THREE)
    assert not found.left_out
    assert not found.diverged()
    assert found.notes[0] == "Runs of the tuning (12) are not part of the comparison."


def test_within_an_arm_what_was_chosen_is_one_value(tmp_path):
    tuned_experiment(tmp_path, relu=0.01, gelu=0.001, silu=0.01)
    with_config(tmp_path / "gelu-seed1", lr=0.01)
    assert left_out(tmp_path) == {"gelu-seed1": "--model.lr is 0.01, 0.001 in the others"}
    with_config(tmp_path / "gelu-seed1", lr=0.001, depth=3)
    with_config(tmp_path / "relu-seed0", depth=4)
    for name in ("gelu-seed0", "gelu-seed2"):
        with_config(tmp_path / name, lr=0.001, depth=4)
    for folder in [*tmp_path.glob("relu-seed[12]"), *tmp_path.glob("silu*")]:
        with_config(folder, depth=4)
    # What was not tuned is still common to all.
    assert left_out(tmp_path) == {"gelu-seed1": "--model.depth is 3, 4 in the others"}


@pytest.mark.parametrize("tuned", [None, LR | {"model.lr": [0.001, 0.003]}])
def test_what_was_not_tuned_alike_is_left_out(tmp_path, tuned):
    tuned_experiment(tmp_path, relu=0.01, gelu=0.001, silu=0.01)
    write(tmp_path, record("mish", 0, 9500, tuned=tuned))
    with_config(tmp_path / "mish-seed0", lr=0.1)
    assert left_out(tmp_path)["mish-seed0"].startswith("tuning is ")


def test_an_arm_with_a_label_of_its_own_may_be_another_model(tmp_path):
    experiment(tmp_path, THREE)
    for seed in range(2):
        write(tmp_path, record("gelu", seed, 9100 + seed, arm="gelu small", model__name="vit_small"))
    for folder in tmp_path.iterdir():
        with_config(folder, **({"name": "vit_small"} if "small" in folder.name else {"name": "vit_tiny"}))
    found = read_experiment([tmp_path])
    assert not found.left_out
    assert found.notes == [
        "gelu small has options of its own: --model.name vit_small (the others: vit_tiny)."
    ]


def test_options_are_believed_only_with_the_hash_of_the_record(tmp_path):
    experiment(tmp_path, THREE)
    for folder in tmp_path.iterdir():
        with_config(folder)
    path = tmp_path / "gelu-seed1" / "config.yaml"
    path.write_text(path.read_text().replace("0.01", "0.02"))
    assert any("1 of 9 runs have no config.yaml" in note for note in read_experiment([tmp_path]).notes)


def test_hash_of_the_options_is_the_one_that_training_writes():
    runs = sorted((ROOT / "docs" / "ablation_digits" / "runs").iterdir())
    assert len(runs) == 50
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config_hash(config) == json.loads((run / "record.json").read_text())["config_hash"]
        assert config_hash(config) != config_hash(config | {"data": {}})
        assert config_hash(config) == config_hash(config | {"seed_everything": 99, "out": "x", "arm": "y"})


def test_labelled_arm_may_have_options_of_its_own_and_they_are_shown(tmp_path):
    experiment(tmp_path, THREE)
    for seed in range(3):
        write(tmp_path, record("gelu", seed, 9070 + seed, arm="gelu, low rate"))
    for folder in tmp_path.iterdir():
        with_config(folder, lr=0.003 if "low" in folder.name else 0.01)
    found = read_experiment([tmp_path])
    assert set(found.arms) == {"relu", "gelu", "silu", "gelu, low rate"}
    assert "gelu, low rate has options of its own: --model.lr 0.003 (the others: 0.01)." in found.notes


def test_arms_of_one_activation_are_told_apart(tmp_path):
    for seed in range(2):
        write(tmp_path, record("relu", seed))
        write(tmp_path, record("elu", seed), f"a{seed}")
        write(tmp_path, record("elu", seed, activation_kwargs={"alpha": 0.5}), f"b{seed}")
        write(tmp_path, record("mine.Act", seed), f"c{seed}")
    found = read_experiment([tmp_path])
    assert set(found.arms) == {"relu", "elu (defaults)", "elu (alpha=0.5)", "Act"}


def test_diverged_runs_are_counted(tmp_path):
    experiment(tmp_path, THREE)
    write(tmp_path, record("gelu", 3, status="diverged", diverged_step=3))
    found = read_experiment([tmp_path])
    assert found.diverged() == {"gelu": 1}
    notes = analyse(found, METRICS["test_top1"], "relu", 0.2).notes
    assert "1 of 4 runs of gelu diverged; the figures are of those that did not." in notes


def test_missing_things_are_told(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        read_experiment([tmp_path / "no"])
    with pytest.raises(UsageError, match=r"no runs under .*record\.json"):
        read_experiment([tmp_path])
    write(tmp_path, record(status="running"))
    with pytest.raises(UsageError, match=r"no run can be used: .*status is 'running'"):
        read_experiment([tmp_path])


def test_speed_comes_from_exclusive_runs_under_one_condition(tmp_path):
    rates = {"relu": [1000, 1010, 990, 1000], "gelu": [980, 1000, 960, 500]}
    for arm, values in rates.items():
        for seed, rate in enumerate(values):
            change = {"speed__exclusive": None} if (arm, seed) == ("gelu", 3) else {}
            if seed == 2:
                change = {"env__compiled": False}
            write(tmp_path, record(arm, seed, 9000 + seed, speed__train_images_per_second=rate, **change))
    costs = measure_costs(read_experiment([tmp_path]), "relu")
    gelu = costs.speed["gelu"]
    assert gelu.values == (980, 1000)
    assert gelu.pairs == 2
    import numpy as np

    logs = np.log([980 / 1000, 1000 / 1010])
    assert gelu.change == pytest.approx(np.exp(logs.mean()) - 1)
    assert gelu.change_interval == pytest.approx(np.exp(np.array(t_interval(logs))) - 1)
    assert "compiled" in costs.conditions
    assert any("1 of 8 runs shared their device" in note for note in costs.notes)
    assert any("2 others ran under other conditions" in note for note in costs.notes)


def test_runs_that_changed_hands_are_named(tmp_path):
    for seed in range(3):
        write(tmp_path, record("relu", seed, 9000))
        write(tmp_path, record("gelu", seed, 9000, env__earlier=[{"git": "other"}] if seed == 1 else None))
    (note,) = [note for note in read_experiment([tmp_path]).notes if "env.earlier" in note]
    assert note.startswith("1 of 6 runs began with other code, or on another device")
    assert note.endswith("gelu-seed1.")


@pytest.mark.parametrize(("name", "value"), [("cuda_graphs", "step"), ("autotuned", True)])
def test_steps_that_are_launched_otherwise_do_not_stand_beside_each_other(tmp_path, name, value):
    """An older record without the entry is one in which it was off."""
    for seed in range(3):
        write(tmp_path, record("relu", seed, 9000))
        write(tmp_path, record("gelu", seed, 9000, **{f"env__{name}": value if seed else None}))
    experiment = read_experiment([tmp_path])
    costs = measure_costs(experiment, "relu")
    assert [r.seed for r in costs.speed["gelu"].runs] == [0]
    assert any(f"{name} is not the same in all runs" in note for note in experiment.notes)
    assert any("2 others ran under other conditions" in n for n in costs.notes)
    for arm in ("relu", "gelu"):
        for seed in range(3):
            write(tmp_path / "same", record(arm, seed, 9000, **{f"env__{name}": value}))
    shown = measure_costs(read_experiment([tmp_path / "same"]), "relu").conditions
    assert {"cuda_graphs": "step replayed from CUDA graphs", "autotuned": "products autotuned"}[name] in shown


def test_a_run_that_timed_its_last_part_alone_has_no_speed_to_compare(tmp_path):
    for seed, timed in enumerate([None, 17, 15, 9]):  # of 20 steps; an older record does not tell
        for arm in ("relu", "gelu"):
            write(tmp_path, record(arm, seed, 9000, speed__timed_steps=timed if arm == "gelu" else 19))
    costs = measure_costs(read_experiment([tmp_path]), "relu")
    assert [r.seed for r in costs.speed["gelu"].runs] == [0, 1]
    assert [r.seed for r in costs.memory["gelu"].runs] == [0, 1]
    assert costs.speed["relu"].values == (1000,) * 4
    assert any("2 of 8 runs were stopped on their way" in note for note in costs.notes)
