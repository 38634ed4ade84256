"""The command line: a table of sub-commands, each imported only when it is called."""

import importlib
import os
import sys
from collections.abc import Sequence

from vit_gelu.cli.encoding import print_in_any_encoding
from vit_gelu.cli.errors import INTERRUPTED, UsageError, guarded
from vit_gelu.suggest import unknown

COMMANDS = {
    "train": "train a ViT and test it; writes a run folder",
    "pretrain": "pre-train a ViT on images without their labels, for later training",
    "evaluate": "accuracy of a run on a data set, or a probe of its features",
    "predict": "the most likely classes of image files",
    "analyze": "what the activations and the attention of a trained network do",
    "export": "a trained network for timm, as plain weights, ONNX or torch.export",
    "ablate": "train activations with several seeds each, and compare them",
    "report": "compare the activations of finished runs: verdict, figures, tables",
    "bench": "speed, memory and exactness of activations, alone and in a whole ViT",
    "doctor": "check the installation, the devices and the data",
}

HELP = """usage: vit-gelu COMMAND [OPTIONS]

Which activation should my ViT use? Train, evaluate and compare.

commands:
{commands}

examples:
  vit-gelu train --config digits --activation gelu
  vit-gelu train --activation relu --seed 1 --data.root ~/data
  vit-gelu evaluate runs/digits-vit_tiny-gelu-seed0
  vit-gelu ablate configs/ablation/digits.yaml
  vit-gelu report runs --baseline relu
  vit-gelu COMMAND --help
"""


def help_text() -> str:
    """What ``vit-gelu --help`` prints."""
    return HELP.format(commands="\n".join(f"  {name:<10}{text}" for name, text in COMMANDS.items()))


def share_the_processor() -> None:
    """Let waiting threads of OpenMP sleep after about a tenth of a millisecond; to be called before torch loads.

    As it comes, GNU's OpenMP spins some 10 ms at every barrier. Alone on the machine nobody notices; beside any
    other busy process the threads spin for one that is not running, and a training slows down ten times and more.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "10000"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a sub-command.

    Args:
        argv: arguments without the program's name; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: 2 for a mistake of the user, else the command's own status if it is not 0.
        KeyboardInterrupt: the command was stopped by SIGINT, and has said so.
    """
    print_in_any_encoding()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "" not in sys.path and os.getcwd() not in sys.path:
        # An activation of the user's own lies beside them; an installed command does not look there by itself.
        sys.path.append(os.getcwd())
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text(), end="")
        return
    if arguments[0] == "--version":
        from vit_gelu import __version__

        print(f"vit_gelu {__version__}")
        return
    name, *rest = arguments
    share_the_processor()

    def run() -> int:
        if name not in COMMANDS:
            raise UsageError(unknown("command", name, COMMANDS))
        return importlib.import_module(f"vit_gelu.cli.{name}").main(rest)

    status = guarded(f"vit-gelu {name}" if name in COMMANDS else "vit-gelu", run)
    if status == INTERRUPTED:
        # Died of the signal, not exited with its number: only then does Ctrl-C end a shell's loop of commands, too.
        sys.excepthook = lambda *_: None
        raise KeyboardInterrupt
    if status:
        sys.exit(status)
