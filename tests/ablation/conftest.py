"""One small ablation that went through to its end, shared by the tests that only look at it."""

import pytest

from tests.ablation.plans import write_plan

ARMS = [
    "gelu",
    {"label": "wild", "activation": "relu", "model.lr": 1e30},
    {"label": "heads", "activation": "relu", "model.num_heads": 5},
    "gelu_stochastic",
]


@pytest.fixture(scope="session")
def ended(tmp_path_factory):
    """Plan file, folder and exit status: one arm diverges, one cannot be built, two finish."""
    from vit_gelu.cli.ablate import main

    place = tmp_path_factory.mktemp("ablation")
    plan = write_plan(place / "plan.yaml", arms=ARMS)
    status = main([plan, "--out", str(place / "out")])
    return plan, place / "out", status
