"""What is chosen from a grid, and from what."""

import json
from dataclasses import replace

import pytest
import yaml

from tests.ablation.plans import write_plan
from vit_gelu.ablation.plan import Arm, Tune, make_run
from vit_gelu.ablation.tuning import choose
from vit_gelu.ablation.workspace import State
from vit_gelu.cli.errors import UsageError

ARM = Arm("gelu", {"model": {"lr": 0.5}})
GRID = Tune("model.lr", (0.001, 0.003, 0.01, 0.03, 0.1), (8, 9))


def outcome(correct):
    if correct is None:
        return State("diverged", "diverged at step 3", {})
    if correct == "failed":
        return State("failed", "out of memory")
    # The test set says the opposite: whoever looks at it chooses otherwise.
    return State(
        "finished",
        "",
        {"val": {"correct": correct, "n": 100, "top1": correct / 100}, "test": {"top1": -correct}},
    )


def choice(*per_value):
    states = []
    for candidate, results in zip(GRID.candidates(ARM), per_value, strict=True):
        for seed, correct in zip(GRID.seeds, results, strict=True):
            states.append((make_run(candidate, seed, "tuning"), outcome(correct)))
    return choose(GRID, ARM, states)


@pytest.mark.parametrize(
    ("per_value", "value", "at_edge"),
    [
        ([(10, 10), (20, 30), (20, 29), (0, 0), (0, 0)], 0.003, False),
        ([(30, 20), (20, 30), (25, 25), (0, 0), (0, 0)], 0.01, False),  # a tie goes to the middle
        ([(50, 0), (0, 0), (0, 0), (0, 0), (0, 50)], 0.001, True),  # as far from it: to the smaller
        ([(0, 0), (0, 0), (0, 0), (20, 20), (20, 20)], 0.03, False),
        ([(10, 10), (99, None), (9, 9), (0, 0), (0, 0)], 0.001, True),
        ([(0, 0), (0, 0), (0, 0), (0, 0), (1, 0)], 0.1, True),
    ],
)
def test_choice(per_value, value, at_edge):
    made = choice(*per_value)
    assert (made.value, made.at_edge, made.reason) == (value, at_edge, "")
    assert [row["value"] for row in made.table] == list(GRID.values)
    means = [None if None in r else sum(r) / 200 for r in per_value]
    assert [row["val_top1"] for row in made.table] == means


def test_no_choice():
    assert "diverged at every model.lr" in choice(*[(None, 1)] * 5).reason
    made = choice((1, 1), (2, "failed"), (3, 3), (1, 1), (1, 1))
    assert made.value is None
    assert "seed9" in made.reason


def test_tuned_ablation(tmp_path, capsys):
    from vit_gelu.cli.ablate import main

    grid = {"model.lr": [1e-9, 0.003, 1e30], "seeds": [8]}
    plan = write_plan(tmp_path / "plan.yaml", arms=["gelu"], seeds=1, tune=grid)
    out = tmp_path / "out"
    assert main([plan, "--out", str(out)]) == 0
    (made,) = yaml.safe_load((out / "tuning.yaml").read_text())
    assert (made["arm"], made["value"], made["at_edge"]) == ("gelu", 0.003, False)
    assert made["table"][2]["runs"] == {"8": "diverged"}
    (record,) = (json.loads(p.read_text()) for p in out.glob("runs/*/record.json"))
    assert (record["arm"], record["seed"]) == ("gelu", 0)
    assert yaml.safe_load(next(out.glob("runs/*/config.yaml")).read_text())["model"]["lr"] == 0.003
    arms = {json.loads(p.read_text())["arm"] for p in out.glob("tuning/*/record.json")}
    assert arms == {"gelu [model.lr=1e-09]", "gelu [model.lr=0.003]", "gelu [model.lr=1e+30]"}
    assert "gelu: model.lr 0.003\n" in capsys.readouterr().out


def test_the_report_compares_arms_whose_learning_rates_differ(tmp_path, monkeypatch):
    from vit_gelu.ablation import execute
    from vit_gelu.cli.ablate import main
    from vit_gelu.cli.report import main as report_command

    best = {"relu": 0.01, "gelu": 0.003}
    monkeypatch.setattr(
        execute, "choose", lambda tune, arm, states: replace(choose(tune, arm, states), value=best[arm.label])
    )
    grid = {"model.lr": [0.003, 0.01], "seeds": [8]}
    plan = write_plan(tmp_path / "plan.yaml", arms=["relu", "gelu"], seeds=1, tune=grid)
    assert main([plan, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert not report["left_out"]
    text = json.dumps(report, ensure_ascii=False)
    assert "--model.lr was chosen for each arm by validation accuracy, from 0.003, 0.01" in text
    assert "gelu 0.003 (an end of the grid), relu 0.01 (an end of the grid)" in text
    rates = {
        config["arm"]: config["model"]["lr"]
        for config in (yaml.safe_load(p.read_text()) for p in (tmp_path / "out").glob("runs/*/config.yaml"))
    }
    assert rates == best
    with pytest.raises(UsageError, match="seed 8 is a seed of the ablation as well"):
        main([str(tmp_path / "out"), "--seeds", "9"])
    assert report_command([str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again["notes"] == ["Runs of the tuning (4) are not part of the comparison.", *report["notes"]]
    assert again["arms"] == report["arms"]
