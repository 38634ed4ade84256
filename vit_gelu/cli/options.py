"""The options of ``vit-gelu train`` and ``pretrain``: LightningCLI over our modules, with short errors."""

import os
import re
from pathlib import Path
from typing import Any, Self

import yaml
from jsonargparse import SUPPRESS, Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vit_gelu.cli.checks import (
    check_accelerator,
    check_callbacks,
    check_choices,
    check_numbers,
    check_own_way,
)
from vit_gelu.cli.errors import UsageError
from vit_gelu.cli.parser import Parser
from vit_gelu.cli.run_folder import RunFolder, choose_checkpoint, choose_folder
from vit_gelu.data import ImageData
from vit_gelu.training.base import RunModule
from vit_gelu.training.beginning import fill_defaults
from vit_gelu.training.logs import COLUMNS, LOSS_COLUMNS, MetricsFile
from vit_gelu.training.masked import MaskedModule
from vit_gelu.training.module import ClassificationModule
from vit_gelu.training.run import run_callbacks
from vit_gelu.training.scratch import SCRATCH
from vit_gelu.training.trackers import wandb_logger

# Where a run happens, not what it is: left out of config.yaml, so that running it again makes a new folder.
PLACE = ("config", "out", "ckpt_path")


class RunTrainer(Trainer):
    """Lightning's Trainer; ``limit_val_batches 1`` is one batch, always.

    ``typing`` caches Optional[Union[float, int]] and Optional[Union[int, float]] as one, whichever was made first:
    where scikit-learn was imported before Lightning, 1 comes out of Lightning's own signature as 1.0, all batches.
    ``int | float`` keeps its order.
    """

    def __init__(
        self,
        *,
        limit_train_batches: int | float | None = None,
        limit_val_batches: int | float | None = None,
        limit_test_batches: int | float | None = None,
        limit_predict_batches: int | float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            limit_train_batches=limit_train_batches,
            limit_val_batches=limit_val_batches,
            limit_test_batches=limit_test_batches,
            limit_predict_batches=limit_predict_batches,
            **kwargs,
        )


def fill_model_defaults(model: Namespace) -> None:
    """Write the defaults of a ViT from scratch into its options, so that ``config.yaml`` has them all."""
    if "pretrained" in model:
        options = vars(model)
        fill_defaults(options)
        model.update(Namespace(**{name: options[name] for name in SCRATCH}))


def plain_options(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """All options as plain types, as they stand in ``config.yaml``."""
    text = parser.dump(config, skip_none=False, skip_link_targets=True, format="yaml")
    return {k: v for k, v in yaml.safe_load(text).items() if k not in PLACE}


class TrainCLI(LightningCLI):
    """Options, run folder and objects of one training run.

    Attributes:
        command: the sub-command whose options these are.
        module_class: what it trains.
        kind: see ``choose_folder``.
        columns: of ``metrics.csv``.
        run_folder: where the run lives.
        resolved: all options, plain types, as they stand in ``config.yaml``.
        ckpt_path: the checkpoint to go on from, or None.
    """

    command = "train"
    module_class: type[RunModule] = ClassificationModule
    kind = ""
    columns: tuple[str, ...] = COLUMNS

    run_folder: RunFolder
    resolved: dict[str, Any]
    ckpt_path: Path | None = None

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """What LightningCLI is to be made with."""
        usage = f"vit-gelu {cls.command} [OPTIONS]"
        return _SETTINGS | {
            "model_class": cls.module_class,
            "parser_kwargs": {"usage": usage, "description": ""},
        }

    @classmethod
    def parse(cls, argv: list[str]) -> Self:
        """Parse the arguments and build module, data and trainer.

        Raises:
            UsageError: an option that is unknown or has a wrong value.
            ValueError: values that do not fit each other.
        """
        try:
            return cls(**cls.settings(), args=argv)
        except MisconfigurationException as error:
            about_devices = re.search("device|accelerator|gpu", str(error), re.IGNORECASE)
            advice = "; devices of this machine: vit-gelu doctor" if about_devices else ""
            raise UsageError(f"--trainer: {error}{advice}") from None
        except ImportError as error:
            raise UsageError(f"--trainer: an option needs a package that is not installed: {error}") from None

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        assert isinstance(parser, Parser)
        parser.given = list(args)
        self.config = parser.parse_args(args)
        check_numbers(self.config)
        check_own_way(self.config.trainer)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # A second name for one option: link_arguments instead would let a flag's default silence the YAML.
        parser.add_argument("--activation", dest="model.activation", type=str, default=SUPPRESS)
        parser.add_argument("--seed", dest="seed_everything", type=int, default=SUPPRESS)
        parser.add_argument("--out", type=str | None, default=None, help="Run folder.")
        parser.add_argument(
            "--ckpt_path", type=str | None, default=None, help="Checkpoint to go on from, or last."
        )
        parser.add_argument(
            "--loggers", type=list[str], default=["csv", "tensorboard"], help="csv, tensorboard, wandb."
        )
        parser.add_argument(
            "--checkpoint_minutes",
            type=float,
            default=5.0,
            help="Longest time between two saves inside an epoch.",
        )
        self.add_own_arguments(parser)
        parser.link_arguments("seed_everything", "model.seed")

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        """Options of this command alone."""
        parser.add_argument(
            "--test_checkpoint",
            type=str,
            default="last",
            help="Weights that the test set sees: last or best.",
        )
        parser.add_argument(
            "--arm", type=str, default="", help="Name under which an ablation compares the run."
        )
        parser.add_argument(
            "--tuned",
            type=dict[str, list[int | float]] | None,
            default=None,
            help="What an ablation chose for each arm by itself: the option and its grid, and the seeds of that.",
        )

    def before_instantiate_classes(self) -> None:
        config = self.config
        check_choices(config)
        check_accelerator(config.trainer.accelerator)
        fill_model_defaults(config.model)
        self.resolved = plain_options(self.parser, config)
        path = choose_folder(config, self.resolved, self.kind)
        self.run_folder = RunFolder(path, self.resolved, going_on=config.ckpt_path is not None)
        self.ckpt_path = choose_checkpoint(config.ckpt_path, path)

    @property
    def folder(self) -> Path:
        """Path of the run folder."""
        return self.run_folder.path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options = self.config.trainer
        save = options.enable_checkpointing is not False
        callbacks = run_callbacks(
            self.folder,
            on_start=self.run_folder.write_config,
            ema_decay=self.config.model.ema_decay,
            checkpoint_minutes=self.config.checkpoint_minutes,
            save=save,
            show=options.enable_progress_bar is not False,
            shared=bool(os.environ.get("VIT_GELU_SHARED_DEVICE")),
        )
        self.trainer_defaults = {"callbacks": callbacks}
        try:
            trainer: Any = super().instantiate_trainer(
                logger=self._loggers(self._get(self.config_init, "trainer").logger),
                enable_checkpointing=save,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=str(self.folder),
            )
        except TypeError as error:  # as Lightning refuses devices
            raise UsageError(f"--trainer: {error}") from error
        validated = [name for name in self.columns if name.startswith("val_")]
        check_callbacks(trainer.callbacks, validated if trainer.limit_val_batches else [])
        return trainer

    def _loggers(self, given: Any) -> list[Logger]:
        """``metrics.csv``, beside which the record is made, and the loggers that were asked for.

        Args:
            given: loggers of ``--trainer.logger``, which take the place of ``--loggers``; False for none at all.
        """
        if given is False:
            return []
        made: list[Logger] = [MetricsFile(self.folder / "metrics.csv", self.columns)]
        if given not in (None, True):
            return made + (list(given) if isinstance(given, list) else [given])
        if "tensorboard" in self.config.loggers:
            made.append(TensorBoardLogger(str(self.folder), name="", version="tensorboard"))
        if "wandb" in self.config.loggers:
            try:
                made.append(wandb_logger(self.folder))
            except ModuleNotFoundError:
                raise UsageError(
                    '--loggers wandb: not installed; python -m pip install "vit_gelu[wandb]"'
                ) from None
        return made


class PretrainCLI(TrainCLI):
    """Options, run folder and objects of one masked pre-training."""

    command = "pretrain"
    module_class = MaskedModule
    kind = "masked"
    columns = LOSS_COLUMNS

    def add_own_arguments(self, parser: LightningArgumentParser) -> None:
        """None: nothing is tested, and no ablation compares it."""


COMMANDS: dict[str, type[TrainCLI]] = {cli.command: cli for cli in (TrainCLI, PretrainCLI)}

_SETTINGS: dict[str, Any] = {
    "datamodule_class": ImageData,
    "trainer_class": RunTrainer,
    "trainer_defaults": {"num_sanity_val_steps": 0},
    "save_config_callback": None,
    "seed_everything_default": 0,
    "parser_class": Parser,
    "run": False,
    # A checkpoint must not override the command line.
    "load_from_checkpoint_support": False,
    "auto_configure_optimizers": False,
}


class _ParserBuilt(Exception):
    """Carries the parser out of LightningCLI, which would go on to parse and instantiate."""


def build_parser(command: str = "train") -> Parser:
    """The parser of ``vit-gelu train`` or ``pretrain``, for its help and for checking recipes."""
    cli = COMMANDS[command]

    def hand_out(self: TrainCLI, parser: LightningArgumentParser, args: Any) -> None:
        raise _ParserBuilt(parser)

    parser_only = type("ParserOnly", (cli,), {"parse_arguments": hand_out})
    try:
        parser_only(**cli.settings())
    except _ParserBuilt as built:
        return built.args[0]
    raise AssertionError("LightningCLI no longer calls parse_arguments")


def full_help(topic: str, command: str = "train") -> str:
    """Every option of a part: ``model``, ``data``, ``trainer`` or ``all``."""
    # Lightning documents some options in the markup of its web pages.
    text = re.sub(r":\w+:`~?([^`]+)`", r"\1", build_parser(command).format_help()).replace("``", "")
    if topic == "all":
        return text
    sections = re.split(r"\n(?=\S)", text)
    wanted = [s for s in sections if f"--{topic}." in s]
    return "\n".join(wanted) + "\n"
