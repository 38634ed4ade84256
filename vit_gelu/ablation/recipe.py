"""Whether two runs were asked for the same thing: their resolved options, and what may differ in them.

The record of a run proves by its ``config_hash`` that the ``config.yaml`` beside it is its own.
"""

from typing import Any

import yaml

from vit_gelu.ablation.records import CONFIG, Run
from vit_gelu.cli.run_hash import NOT_IN_HASH, config_hash

# Besides what the hash leaves out: what an ablation compares, and what changes neither data, model nor optimization.
MAY_DIFFER = frozenset(
    {
        "model.activation",
        "model.activation_kwargs",
        "model.compile",
        "model.attention_choice",  # rounding, no more
        "data.root",
        "data.mirror",
        "data.num_workers",
        "data.eval_batch_size",
        # Whichever device it was, the record says; the global batch does not depend on how many.
        *(
            f"trainer.{name}"
            for name in ("accelerator", "devices", "num_nodes", "strategy", "logger", "callbacks")
        ),
        *(f"trainer.enable_{name}" for name in ("progress_bar", "model_summary", "checkpointing")),
        *(f"trainer.{name}" for name in ("default_root_dir", "log_every_n_steps", "profiler")),
    }
)

Recipe = dict[str, Any]


def read_recipe(run: Run) -> Recipe | None:
    """Options that must agree between runs, by dotted name; None where ``config.yaml`` is missing or not the run's."""
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        config = yaml.load((run.folder / CONFIG).read_text(encoding="utf-8"), Loader=loader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    if not isinstance(config, dict) or config_hash(config) != run.record["config_hash"]:
        return None
    return recipe_of(config)


def recipe_of(config: dict[str, Any]) -> Recipe:
    """Of all options of a run, those that must agree."""
    flat = _flatten({k: v for k, v in config.items() if k not in NOT_IN_HASH})
    return {name: value for name, value in flat.items() if name not in MAY_DIFFER}


def _flatten(options: dict[str, Any], prefix: str = "") -> Recipe:
    flat: Recipe = {}
    for name, value in options.items():
        if isinstance(value, dict) and not prefix:
            flat |= _flatten(value, f"{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differing(recipe: Recipe, other: Recipe) -> list[str]:
    """Names of options that have different values; one that only one side knows came with another version."""
    return sorted(name for name in recipe.keys() & other.keys() if recipe[name] != other[name])
