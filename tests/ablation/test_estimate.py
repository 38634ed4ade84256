"""The arithmetic of the expected time."""

from vit_gelu.ablation.estimate import STEPS, _estimate
from vit_gelu.ablation.plan import Arm

TRAINER = {
    "max_epochs": 10,
    "max_steps": -1,
    "limit_train_batches": None,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 2,
}
RECORD = {
    "speed": {"train_images_per_second": 1000.0, "eval_images_per_second": 2000.0},
    "dataset": {"train_n": 1050, "val_n": 100},
    "global_batch_size": 100,
    "steps": STEPS,
    "seconds": 5.0,
    "env": {"device": "a processor"},
}


def estimate(**trainer):
    arm = Arm("gelu", {"trainer": TRAINER | trainer})
    # Steps of 0.1 s take 4 s; two looks at the validation images 0.1 s; the rest is what each run costs besides.
    return _estimate(arm, [9.0, 4.0 + 0.1 + 1.5], RECORD)


def test_epochs_steps_and_limits():
    made = estimate()
    assert made.steps == 100  # the last, incomplete batch of an epoch is not trained
    assert abs(made.run - (10.0 + 5 * 0.05 + 1.5)) < 1e-9
    assert abs(made.start - (9.0 - 5.6)) < 1e-9
    assert estimate(max_steps=30).steps == 30
    assert estimate(max_epochs=-1, max_steps=300).steps == 300
    assert estimate(limit_train_batches=4).steps == 40
    assert estimate(limit_train_batches=0.5).steps == 50
    assert estimate(accumulate_grad_batches=2).steps == 50


def test_text_divides_the_runs_among_the_places():
    made = estimate()
    assert f"expected: {round(made.start + 2 * made.run)} s for 3 runs" in made.text(3, 2, "local")
    assert "a run on this machine" in made.text(3, 2, "slurm")
