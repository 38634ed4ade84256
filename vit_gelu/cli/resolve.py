"""What a command line of ``vit-gelu train`` means, found out without training."""

from typing import Any

from vit_gelu.cli.checks import check_choices, check_numbers, check_own_way
from vit_gelu.cli.configs import expand_configs
from vit_gelu.cli.options import build_parser, fill_model_defaults, plain_options
from vit_gelu.data import ImageData
from vit_gelu.training.module import ClassificationModule


class Resolver:
    """Resolves command lines; its parser is built once, which is most of the work."""

    def __init__(self) -> None:
        self.parser = build_parser()

    def __call__(self, argv: list[str]) -> dict[str, Any]:
        """All options of a run, plain types, as they will stand in its ``config.yaml``.

        What can be seen to be wrong without the data is: options, their types, and whether there is such an
        activation, optimizer, schedule or augmentation.

        Args:
            argv: arguments of ``vit-gelu train``.

        Raises:
            ValueError: an option that is unknown or has a wrong value; the message names it.
        """
        config = self.parser.parse_args(expand_configs(argv))
        check_numbers(config)
        check_own_way(config.trainer)
        check_choices(config)
        fill_model_defaults(config.model)
        plain = plain_options(self.parser, config)
        ClassificationModule(**plain["model"])
        ImageData(**plain["data"])
        return plain
