"""From what the user wrote (a YAML file, options) to a plan, with every mistake found before anything runs."""

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from vit_gelu.ablation.arm_names import says_more
from vit_gelu.ablation.plan import Arm, Plan, Resolve, Tune
from vit_gelu.ablation.recipe import differing, recipe_of
from vit_gelu.cli.configs import DEFAULT_CONFIG
from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import unknown

KEYS = ("config", "overrides", "arms", "seeds", "baseline", "margin", "tune")
DEFAULT_SEEDS = 5
DEFAULT_MARGIN = 0.2
TUNING_SEEDS = (1000, 1001)
GROUPS = ("model", "data", "trainer")
# What a plan may set of train's own options; the rest says where and under what name a run happens.
PLAIN_OPTIONS = ("activation", "test_checkpoint", "checkpoint_minutes", "loggers")

# What the report wants all runs to share (``pairing.PROTOCOL``), as options.
SHARED = (
    *(f"data.{name}" for name in ("name", "val_fraction", "train_fraction", "global_batch_size")),
    *(f"trainer.{name}" for name in ("max_epochs", "max_steps", "limit_train_batches")),
    *(f"trainer.{name}" for name in ("accumulate_grad_batches", "precision", "accelerator")),
    "test_checkpoint",
)
# What may keep a run from seeing all images, and the values that do not: 1 is one batch, 1.0 all of them.
WHOLE: dict[str, tuple[Any, ...]] = {
    "limit_val_batches": (None, 1.0),
    "limit_test_batches": (None, 1.0),
    "fast_dev_run": (None, False, 0),
    "overfit_batches": (None, 0, 0.0),
}
ENDS = "EarlyStopping"  # a callback that ends each run where it sees fit


def read_specification(path: Path) -> dict[str, Any]:
    """The content of a plan's YAML file.

    Raises:
        UsageError: not YAML, or keys that no plan has.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: must be a mapping with the keys {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise UsageError(f"{path}: " + unknown("key", str(key), KEYS))
    return content


def build_plan(specification: dict[str, Any], resolve: Resolve, devices_per_run: int | None = None) -> Plan:
    """The plan that a specification means.

    Args:
        specification: keys are ``KEYS``; see ``vit-gelu ablate --help``.
        resolve: turns arguments of ``vit-gelu train`` into all options, and refuses wrong ones.
        devices_per_run: overrides ``trainer.devices``; by default that of the recipe if it names a number, else 1.

    Raises:
        UsageError: a mistake in it; names the key or arm.
    """
    config = specification.get("config", DEFAULT_CONFIG)
    if not isinstance(config, str):
        raise UsageError(f"config: {config!r} must be the path or the name of one recipe")
    base = ["--config", config, '--loggers=["csv"]']
    base += _arguments(specification.get("overrides"), "overrides")
    asked = _arms(specification.get("arms"))
    arms = []
    for label, arguments in asked.items():
        arms.append(_resolve_arm(label, [*base, *arguments], resolve, devices_per_run))
    _check_distinct(arms)
    tuned = str(next((key for key in specification.get("tune") or () if key != "seeds"), ""))
    _check_comparable(arms, tuned)
    seeds = parse_seeds(specification.get("seeds", DEFAULT_SEEDS))
    baseline = specification.get("baseline")
    if baseline is None:
        baseline = "relu" if "relu" in asked else arms[0].label
    if baseline not in asked:
        raise UsageError("--baseline: " + unknown("arm", str(baseline), asked))
    margin = _number(specification.get("margin", DEFAULT_MARGIN))
    if margin is None or not margin > 0:
        raise UsageError(f"--margin {specification['margin']}: must be a number of points above 0")
    tune = _tune(specification.get("tune"), seeds)
    if tune is not None:
        # Arms that differ in what is tuned alone would be one arm afterwards.
        _check_distinct([arm.with_option(tune.option, tune.values[0]) for arm in arms])
        for value in tune.values:
            label, arguments = next(iter(asked.items()))
            extra = [*base, *arguments, f"--{tune.option}={value!r}"]
            _resolve_arm(f"{label} with {tune.option} {value:g}", extra, resolve, devices_per_run)
    return Plan(tuple(arms), seeds, baseline, margin, tune)


def parse_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds from their number (0 … N-1) or from a list of them.

    Raises:
        UsageError: fewer than one, not whole, negative, or one twice.

    >>> parse_seeds(3), parse_seeds([4, 2])
    ((0, 1, 2), (4, 2))
    """
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise UsageError(f"--seeds {seeds}: must be at least 1")
        return tuple(range(seeds))
    if not isinstance(seeds, list | tuple) or not seeds:
        raise UsageError(f"--seeds {seeds}: must be how many (N means 0 to N-1) or a list of seeds")
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UsageError(f"--seeds {seed}: a seed must be a whole number of at least 0")
    twice = [seed for i, seed in enumerate(seeds) if seed in seeds[:i]]
    if twice:
        raise UsageError(f"--seeds: {twice[0]} is there twice")
    return tuple(seeds)


def _number(value: Any) -> float | None:
    # YAML reads 1e-3, without a point, as text.
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if isinstance(value, bool) or not math.isfinite(number) else number


def _arguments(options: Any, where: str) -> list[str]:
    """Options of a mapping as arguments of ``vit-gelu train``."""
    if options is None:
        return []
    if not isinstance(options, dict):
        raise UsageError(f"{where}: must be a mapping of options, such as model.lr: 0.001")
    flat: dict[str, Any] = {}
    for key, value in options.items():
        inner = (
            {f"{key}.{k}": v for k, v in value.items()} if key in GROUPS and isinstance(value, dict) else {}
        )
        for name, setting in (inner or {str(key): value}).items():
            if name.split(".")[0] not in GROUPS and name not in PLAIN_OPTIONS:
                choices = [*PLAIN_OPTIONS, *(f"{group}.X" for group in GROUPS)]
                raise UsageError(f"{where}: " + unknown("option", name, choices))
            name = "model.activation" if name == "activation" else name
            if name in flat:
                raise UsageError(f"{where}: {name} is set twice")
            flat[name] = setting
    return [f"--{name}={_as_text(value)}" for name, value in flat.items()]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _arms(arms: Any) -> dict[str, list[str]]:
    """Label -> arguments."""
    if not isinstance(arms, list) or not arms:
        raise UsageError(
            "arms: must be a list of activations (--activations gelu relu …), or of mappings such as "
            "{label: gelu, activation: gelu, model.lr: 0.001}"
        )
    asked: dict[str, list[str]] = {}
    label: Any
    for position, arm in enumerate(arms, 1):
        if isinstance(arm, str):
            label, options = arm, {"activation": arm}
        elif isinstance(arm, dict):
            options = {k: v for k, v in arm.items() if k != "label"}
            label = arm.get("label", arm.get("activation", arm.get("model.activation")))
        else:
            raise UsageError(f"arms: {arm!r} must be the name of an activation, or a mapping")
        if not isinstance(label, str) or not re.search(r"[A-Za-z0-9]", label):
            raise UsageError(f"arms: number {position} has no label; write label: NAME")
        if label in asked:
            raise UsageError(f"arms: {label!r} is there twice; give one of them another label")
        asked[label] = _arguments(options, f"arm {label!r}")
    return asked


def _resolve_arm(label: str, arguments: list[str], resolve: Resolve, devices_per_run: int | None) -> Arm:
    try:
        config = resolve(arguments)
    except ValueError as error:
        raise UsageError(f"arm {label!r}: {error}") from None
    devices = config["trainer"]["devices"]
    if devices_per_run is None:
        devices_per_run = int(devices) if str(devices).isdecimal() and int(devices) > 0 else 1
    trainer = config["trainer"] | {"devices": devices_per_run}
    config = {k: v for k, v in config.items() if k != "seed_everything"}
    return Arm(label, config | {"trainer": trainer, "arm": label})


def _check_distinct(arms: list[Arm]) -> None:
    seen: dict[str, str] = {}
    for arm in arms:
        if arm.hash in seen:
            raise UsageError(f"arms: {seen[arm.hash]!r} and {arm.label!r} are one and the same run")
        seen[arm.hash] = arm.label
    if len({arm.get("trainer.devices") for arm in arms}) > 1:
        raise UsageError("trainer.devices: must be the same in all arms")


def _check_comparable(arms: list[Arm], tuned: str) -> None:
    """Refuse what the report could not pair afterwards, or would take for a mistake.

    Args:
        arms: of the plan.
        tuned: an option that each arm gets its own value of anyway; empty: none.

    Raises:
        UsageError: names the arm and the option.
    """
    if tuned in SHARED:
        raise UsageError(f"tune: {tuned}: must be the same in all arms")
    for arm in arms:
        _check_complete(arm)
    recipes = {arm.label: _options(arm) for arm in arms}
    first = arms[0].label
    for label, here in recipes.items():
        for name in SHARED:
            if here[name] != recipes[first][name]:
                raise UsageError(
                    f"arm {label!r}: --{name} {here[name]}, {recipes[first][name]} in arm {first!r}: must be the same "
                    "in all arms of a comparison; make it an ablation of its own"
                )
    plain = [arm.label for arm in arms if not says_more(arm.label, str(arm.get("model.activation")))]
    for label in plain[1:]:
        here, there = recipes[label], recipes[plain[0]]
        others = [n for n in differing(here, there) if n != tuned]
        if others:
            n = others[0]
            raise UsageError(
                f"arm {label!r}: --{n} {here[n]}, {there[n]} in arm {plain[0]!r}, which its label does not say; give "
                f"it one that does, such as label: {label}, {n.split('.')[-1]} {here[n]}"
            )


def _check_complete(arm: Arm) -> None:
    """Refuse what makes runs of different lengths, or lets them see a part of the images that judge them."""
    callbacks = [c for c in arm.get("trainer.callbacks") or [] if isinstance(c, dict)]
    ends = [f"callbacks {ENDS}" for c in callbacks if str(c.get("class_path")).endswith(ENDS)]
    if arm.get("trainer.max_time") is not None:
        ends.append(f"max_time {arm.get('trainer.max_time')}")
    if ends:
        raise UsageError(
            f"arm {arm.label!r}: --trainer.{ends[0]}: runs would end after different numbers of steps, and could not "
            "be compared; use --trainer.max_epochs"
        )
    for name, everything in WHOLE.items():
        value = arm.get(f"trainer.{name}")
        if (type(value), value) not in [(type(whole), whole) for whole in everything]:
            raise UsageError(
                f"arm {arm.label!r}: --trainer.{name} {value}: arms are compared on all validation and test images; "
                "leave it out"
            )


def _options(arm: Arm) -> dict[str, Any]:
    """What arms may differ in by a label of their own alone, and ``SHARED``."""
    found = recipe_of(arm.config) | {name: arm.get(name) for name in SHARED}
    return found | {"trainer.precision": found["trainer.precision"] or "32-true"}  # the Trainer's own default


def _tune(tune: Any, seeds: Iterable[int]) -> Tune | None:
    if tune is None:
        return None
    if not isinstance(tune, dict):
        raise UsageError(
            "tune: must be a mapping such as {model.lr: [0.001, 0.003, 0.01], seeds: [1000, 1001]}"
        )
    options = [str(key) for key in tune if key != "seeds"]
    if len(options) != 1 or options[0].split(".")[0] not in GROUPS:
        raise UsageError(
            f"tune: must name one option with its grid, such as model.lr: [0.001, 0.003]; got {options or 'none'}"
        )
    option, grid = options[0], tune[options[0]]
    numbers = [_number(value) for value in grid] if isinstance(grid, list) else []
    values = sorted(n for n in numbers if n is not None)
    if len(values) < 2 or len(set(values)) < len(numbers):
        raise UsageError(f"tune: {option}: must be a list of at least two different numbers; got {grid!r}")
    own = parse_seeds(tune.get("seeds", list(TUNING_SEEDS)))
    check_tuning_seeds(own, seeds)
    return Tune(option, tuple(values), own)


def check_tuning_seeds(own: Iterable[int], seeds: Iterable[int]) -> None:
    """Refuse a seed for tuning that is one of the comparison as well.

    Raises:
        UsageError: names it.
    """
    both = sorted(set(own) & set(seeds))
    if both:
        raise UsageError(f"tune: seed {both[0]} is a seed of the ablation as well; a choice needs its own")
