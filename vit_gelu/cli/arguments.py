"""Options of the small commands: argparse whose mistakes are a ``UsageError`` with the nearest valid choice."""

import argparse
import re
from collections.abc import Callable, Sequence
from typing import NoReturn

from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import nearest, unknown


class Arguments(argparse.ArgumentParser):
    """A parser without help text of its own: each command prints a page that was written by hand.

    Args:
        command: the sub-command's name, for messages.
    """

    def __init__(self, command: str) -> None:
        # An abbreviation that works today is ambiguous after the next option.
        super().__init__(prog=f"vit-gelu {command}", add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        """Raise the parser's complaint as a ``UsageError``, in the user's own terms."""
        unrecognized = re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)
        if unrecognized:
            raise UsageError(self._explain(unrecognized[1].split()))
        missing = re.match(r"the following arguments are required: (.*)", message)
        if missing:
            raise UsageError(f"{missing[1]} is missing. How to use it: {self.prog} --help")
        raise UsageError(re.sub(r"^argument ", "", message))

    def _explain(self, extra: Sequence[str]) -> str:
        option = next((e for e in extra if e.startswith("-")), None)
        if option is None:
            return f"one argument too many: {extra[0]}. How to use it: {self.prog} --help"
        name = option.split("=")[0]
        options = [s for action in self._actions for s in action.option_strings]
        plain = {s.lstrip("-"): s for s in options} | {s.lstrip("-").split(".")[-1]: s for s in options}
        close = [plain[n] for n in nearest(name.lstrip("-").replace("-", "_"), plain)]
        hint = f" Did you mean {' or '.join(dict.fromkeys(close[:2]))}?" if close else ""
        return f"unknown option {name}.{hint} All options: {self.prog} --help"


def wants_help(argv: Sequence[str]) -> bool:
    """Whether help is asked for, anywhere before a ``--``."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return any(a in ("-h", "--help") for a in options)


def one_of(what: str, choices: Sequence[str]) -> Callable[[str], str]:
    """A type for an option that takes one of a few words.

    >>> one_of("split", ["test", "val"])("tset")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: unknown split 'tset'. Did you mean 'test'? Choices: test, val
    """

    def parse(text: str) -> str:
        if text not in choices:
            raise argparse.ArgumentTypeError(unknown(what, text, choices))
        return text

    return parse


def at_least(least: int) -> Callable[[str], int]:
    """A type for an option that takes a whole number with a lower bound.

    >>> at_least(1)("0")
    Traceback (most recent call last):
    argparse.ArgumentTypeError: 0: must be a whole number of at least 1
    """

    def parse(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least {least}")
        return int(text)

    return parse


def add_pass_options(parser: Arguments, *, several: bool = False) -> None:
    """What every command takes that sends images through a trained network and writes a folder of findings.

    Args:
        parser: gets the options.
        several: whether the command takes more than one network, as ``runs``.
    """
    if several:
        parser.add_argument("runs", metavar="RUN", nargs="+")
    else:
        parser.add_argument("run", metavar="RUN")
    parser.add_argument("--data.name", dest="data_name")
    parser.add_argument("--data.root", dest="data_root")
    parser.add_argument("--checkpoint", type=one_of("checkpoint", ("last", "best")))
    parser.add_argument("--resize", action="store_true")
    parser.add_argument("--device", type=one_of("device", ("auto", "cpu", "cuda")), default="auto")
    parser.add_argument("--precision", type=one_of("precision", ("32-true", "bf16-mixed", "16-mixed")))
    parser.add_argument("--batch_size", type=at_least(1))
    parser.add_argument("--data.num_workers", dest="num_workers", type=at_least(0), default=0)
    parser.add_argument("--out")
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--json", action="store_true")
