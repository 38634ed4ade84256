"""Recipes: where the shipped YAML files are, and how ``--config`` finds one."""

from pathlib import Path

from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import unknown

DEFAULT_CONFIG = "cifar10"
PLANS = "ablation"  # folder of the plans of ablations among the recipes
PRETRAIN = "pretrain"  # folder of the recipes of masked pre-training
DEFAULT_PRETRAIN = "pretrain/cifar100"


def configs_folder() -> Path:
    """The folder of the shipped recipes: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def shipped_configs(command: str = "train") -> dict[str, Path]:
    """Name (path under ``configs/`` without suffix) -> file, of the recipes of single runs.

    Args:
        command: whose recipes: ``train``, or ``pretrain``, whose names start with ``pretrain/``.
    """
    folder = configs_folder()
    files = {p: p.relative_to(folder) for p in sorted(folder.rglob("*.yaml"))}
    return {
        str(place.with_suffix("")): file
        for file, place in files.items()
        if PLANS not in place.parts and (PRETRAIN in place.parts) == (command == "pretrain")
    }


def shipped_plans() -> dict[str, Path]:
    """Name -> file, of the shipped plans of ablations."""
    return {p.stem: p for p in sorted((configs_folder() / PLANS).glob("*.yaml"))}


def find_config(name: str, command: str = "train") -> Path:
    """A file of that path, else the shipped recipe of that name, for a command.

    Raises:
        UsageError: neither is there.
    """
    path = Path(name).expanduser()
    if path.is_file():
        check_yaml(path)
        return path
    shipped = shipped_configs(command)
    short = name.removeprefix("configs/").removesuffix(".yaml")
    for known in (short, f"{PRETRAIN}/{short}"):
        if known in shipped:
            return shipped[known]
    raise UsageError(f"--config {name}: no such file, and " + unknown("recipe", short, shipped))


def check_yaml(path: Path) -> None:
    """Check that a file is a recipe at all, so that the error names it.

    Raises:
        UsageError: no text, no YAML, or no options.
    """
    import yaml

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UsageError(f"--config {path}: not a text file; a recipe is YAML") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        raise UsageError(
            f"--config {path}{line}: not YAML: {getattr(error, 'problem', None) or 'cannot be read'}"
        ) from None
    if options is not None and not isinstance(options, dict):
        raise UsageError(
            f"--config {path}: must hold options such as 'model: {{depth: 6}}', not {options!r:.40}"
        )


def find_plan(name: str) -> Path:
    """A file or folder of that path, else the shipped plan of that name.

    Raises:
        UsageError: neither is there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    shipped = shipped_plans()
    short = name.removeprefix("configs/").removeprefix(f"{PLANS}/").removesuffix(".yaml")
    if short in shipped:
        return shipped[short]
    raise UsageError(f"{name}: no such file or folder, and " + unknown("plan", short, shipped))


def expand_configs(argv: list[str], command: str = "train") -> list[str]:
    """Arguments with every ``--config`` made a path, the command's default recipe first where none is given."""
    expanded: list[str] = []
    given = False
    i = 0
    while i < len(argv):
        argument = argv[i]
        if argument in ("-c", "--config"):
            if i + 1 == len(argv):
                raise UsageError(f"{argument}: expects a file or the name of a shipped recipe")
            expanded += ["--config", str(find_config(argv[i + 1], command))]
            given, i = True, i + 2
            continue
        if argument.startswith("--config="):
            expanded += ["--config", str(find_config(argument.split("=", 1)[1], command))]
            given = True
        else:
            expanded.append(argument)
        i += 1
    default = DEFAULT_PRETRAIN if command == "pretrain" else DEFAULT_CONFIG
    return expanded if given else ["--config", str(find_config(default, command)), *expanded]
