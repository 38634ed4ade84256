"""Parameter groups by rule, optimizers by name, the schedule against its closed form."""

import math

import pytest
import torch
from torch import nn

from vit_gelu.training.muon import Muon
from vit_gelu.training.optim import (
    build_optimizer,
    build_schedule,
    optimizer_names,
    parameter_groups,
    resolve_optimizer,
    schedule_factor,
    warmup_length,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 8))
        self.body = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.matrix_without_decay = nn.Parameter(torch.zeros(2, 2))
        self.matrix_without_decay.no_weight_decay = True
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)
        self.head = nn.Linear(8, 3)

    def no_weight_decay(self):
        return {"pos_embed"}

    def forward(self, x):
        return self.head(self.norm(self.body(x + self.pos_embed.sum(1))))


def test_only_matrices_decay():
    net = Net()
    names = {id(p): n for n, p in net.named_parameters()}
    decayed, muon, seen = set(), set(), []
    for group in parameter_groups(net, 0.3):
        for p in group["params"]:
            seen.append(names[id(p)])
            if group["weight_decay"]:
                assert group["weight_decay"] == 0.3
                decayed.add(names[id(p)])
            if not group["use_fallback"]:
                muon.add(names[id(p)])
    assert decayed == {"body.weight", "head.weight"}
    assert muon == {"body.weight"}
    assert sorted(seen) == sorted(set(names.values()) - {"frozen"})


@pytest.mark.parametrize("name", ["adamw", "AdamW", "sgd", "lion", "muon", "adafactor", "nadamw", "lamb"])
def test_optimizers_by_name_learn(name):
    torch.manual_seed(0)
    net = Net()
    optimizer = build_optimizer(net, name, lr=0.01, weight_decay=0.0)
    x, y = torch.randn(32, 8), torch.randint(3, (32,))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_torch_classes_come_first_except_muon():
    assert resolve_optimizer("adamw") is torch.optim.AdamW
    assert resolve_optimizer("Muon") is Muon
    assert resolve_optimizer("lars").__module__.startswith("timm")
    assert "lion" in optimizer_names()


def test_adamw_step_equals_plain_torch():
    torch.manual_seed(0)
    ours, reference = Net(), Net()
    reference.load_state_dict(ours.state_dict())
    a = build_optimizer(ours, "adamw", lr=0.01, weight_decay=0.1, betas=[0.9, 0.95])
    decayed = [reference.body.weight, reference.head.weight]
    rest = [p for p in reference.parameters() if p.requires_grad and all(p is not d for d in decayed)]
    b = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=0.01,
        betas=(0.9, 0.95),
    )
    for _ in range(3):
        x = torch.randn(4, 8)
        for net, optimizer in ((ours, a), (reference, b)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adamv"}, "unknown optimizer 'adamv'. Did you mean"),
        ({"lr": 0.0}, "--model.lr 0.0: must be > 0"),
        ({"weight_decay": -1.0}, "--model.weight_decay -1.0"),
        ({"beta": 0.9}, "unknown option of adamw 'beta'. Did you mean 'betas'"),
        ({"name": "lbfgs", "weight_decay": 0.1}, "lbfgs has none"),
    ],
)
def test_mistakes_are_named(arguments, message):
    arguments = {"name": "adamw", "lr": 0.1, "weight_decay": 0.0} | arguments
    with pytest.raises(ValueError, match="--model") as error:
        build_optimizer(Net(), **arguments)
    assert message in str(error.value)


def test_cosine_equals_torchs_own_schedulers():
    parameter = nn.Parameter(torch.zeros(()))
    ours = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.SGD([parameter], lr=1.0)
    a = build_schedule(ours, total_steps=50, warmup_steps=0, final_lr_fraction=0.1)
    b = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=50, eta_min=0.1)
    for _ in range(51):
        assert ours.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"], abs=1e-9)
        ours.step(), reference.step(), a.step(), b.step()


def test_schedule_shape():
    factors = [schedule_factor(s, total_steps=110, warmup_steps=10, schedule="linear") for s in range(111)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert max(factors) == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == 0.0
    assert all(f > 0 for f in factors[:110])
    assert schedule_factor(99, total_steps=100, warmup_steps=0, schedule="constant") == 1.0
    middle = schedule_factor(25, total_steps=100, warmup_steps=0, schedule="cosine")
    assert middle == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


def test_warm_up_in_epochs_or_steps():
    assert warmup_length(1.5, None, steps_per_epoch=10, total_steps=20) == 15
    assert warmup_length(0.0, 7, steps_per_epoch=10, total_steps=20) == 7


@pytest.mark.parametrize(
    ("epochs", "steps", "message"),
    [
        (
            5,
            None,
            "--model.warmup_epochs 5: .* 50 steps .* training of 27; at most --model.warmup_epochs 2.7",
        ),
        (0.0, 28, "--model.warmup_steps 28: .* 28 steps .* training of 27; at most --model.warmup_steps 27"),
    ],
)
def test_the_longest_warm_up_is_named_and_fits(epochs, steps, message):
    with pytest.raises(ValueError, match=message):
        warmup_length(epochs, steps, steps_per_epoch=10, total_steps=27)
    assert warmup_length(2.7, None, steps_per_epoch=10, total_steps=27) == 27


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"warmup_steps": 11}, "warmup_steps 11: does not fit a training of 10 steps"),
        ({"final_lr_fraction": 2.0}, "final_lr_fraction 2.0"),
    ],
)
def test_schedule_mistakes(arguments, message):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    with pytest.raises(ValueError, match="--model") as error:
        build_schedule(optimizer, **({"total_steps": 10, "warmup_steps": 0} | arguments))
    assert message in str(error.value)
