"""A LightningCLI parser whose errors fit in a line or two."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.cli import LightningArgumentParser

from vit_gelu.cli.checks import NO_CALLBACKS
from vit_gelu.cli.errors import UsageError
from vit_gelu.suggest import nearest, unknown

# Options that users know by another name than the parser's.
_FLAGS = {"seed_everything": "seed"}


class Parser(LightningArgumentParser):
    """A parser whose errors are one ``UsageError``, in the user's own terms."""

    given: Sequence[str] = ()  # the arguments, to find the file of a wrong key

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UsageError(self.explain(message)) from None

    def option_names(self) -> list[str]:
        """All options, with their leading dashes."""
        return sorted(
            {
                s
                for a in self._actions
                for s in a.option_strings
                if s.startswith("--") and not s.endswith(".help")
            }
        )

    def explain(self, message: str) -> str:
        """The message of the parser, shortened, with the nearest valid option where one was mistyped."""
        unrecognized = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
        if unrecognized and not unrecognized[1].startswith("-"):
            word = unrecognized[1]
            return f"unexpected argument {word!r}: every value belongs to an option, such as --config {word}"
        key = _first(
            message,
            r"[Uu]nrecognized arguments: -+([\w.-]+)",
            r"[Kk]ey [\"']?([\w.]+)[\"']? is not expected",
            r"Option '([\w.]+)' is not accepted",
        )
        group = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message)
        if group:
            key = f"{group[1]}.{group[2]}"
        if key is not None:
            choices = [name.lstrip("-") for name in self.option_names() if not name.endswith("+")]
            close = nearest(key, choices) or nearest(key.split(".")[-1], choices)
            hint = f" Did you mean {' or '.join('--' + c for c in close[:2])}?" if close else ""
            command = " ".join((self.usage or "vit-gelu train").split()[:2])
            return f"{self._file_of(key)}unknown option --{key}.{hint} All options: {command} --help all"
        of_a_class = _of_a_class(message)
        if of_a_class is not None:
            return of_a_class
        key, value = _first(message, r'Parser key "([\w.]+)"'), _first(message, r"(?:Got|Given) value: (.+)")
        if key is not None and value is not None:
            literals = re.findall(r"Literal\[([^\]]*)\]", message)
            if literals:
                choices = list(dict.fromkeys(c.strip(" '\"") for part in literals for c in part.split(",")))
                if "<class 'bool'>" in message:
                    choices = ["true", "false", *choices]
                return f"--{_FLAGS.get(key, key)}: " + unknown("value", value.strip(), choices)
            if value.strip().lstrip("+-.").lower() in ("nan", "inf", "infinity"):
                return f"--{_FLAGS.get(key, key)} {value.strip()}: must be a finite number"
            kinds = re.findall(r"Expected an? <class '(\w+)'>", message)
            kind = " or ".join(dict.fromkeys(k for k in kinds if k != "NoneType")) or "another type"
            return f"--{_FLAGS.get(key, key)} {value.strip()}: must be of type {kind}"
        lines = [line.strip() for line in message.strip().splitlines() if line.strip()]
        return "\n".join(line[:300] for line in lines[:4])

    def _file_of(self, key: str) -> str:
        """``FILE: `` for an option that stands in a recipe and not on the command line, else nothing."""
        if any(argument.split("=")[0].lstrip("-") == key for argument in self.given):
            return ""
        for option, value in zip(self.given, self.given[1:], strict=False):
            if option == "--config" and _holds(
                yaml.safe_load(Path(value).read_text(encoding="utf-8")), key.split(".")
            ):
                return f"{value}: "
        return ""


def _of_a_class(message: str) -> str | None:
    """What is wrong with an option whose value is an object (``--trainer.callbacks EarlyStopping``), or with one of its
    own options; None: the message is about something else.
    """
    key = _first(message, r'Parser key "(trainer\.\w+)"')
    if key is None:
        return None
    name = _first(message, r"Given value: Namespace\(class_path='(?:[\w.]+\.)?(\w+)'")
    if name and name in NO_CALLBACKS:  # some cannot even be written down
        return f"--{key} {name}: {NO_CALLBACKS[name]}"
    missing = _first(message, r"arguments are required: ([\w, ]+)")
    if name and missing:
        needed = " and ".join(f"--{key}.{option}" for option in missing.split(", "))
        return f"--{key} {name}: needs {needed}"
    if "Given value: NestedArg" in message:
        about = _first(message, r"- (unknown option --.*?)\.? All options", r"- (--[\w.]+ .*: must .*)")
        return re.sub("--", f"--{key}.", about) if about else None
    word = _first(message, r"Expected a dot import path string: (\w+)")
    module = {"trainer.callbacks": callbacks, "trainer.logger": loggers}.get(key)
    if word and module:
        hint = unknown(key.rpartition(".")[2].rstrip("s"), word, sorted(module.__all__), limit=12)
        return f"--{key}: {hint}, or your_package.your_module.YourClass"
    return None


def _holds(options: Any, path: list[str]) -> bool:
    return not path or (
        isinstance(options, dict) and path[0] in options and _holds(options[path[0]], path[1:])
    )


def _first(text: str, *patterns: str) -> str | None:
    """What the first pattern that matches has in its group."""
    return next((m[1] for p in patterns if (m := re.search(p, text))), None)
