"""Output for terminals and files whose encoding lacks what we print."""

import codecs
import io
import sys

PLAIN = {
    "−": "-",
    "–": "-",
    "±": "+-",
    "×": "x",
    "…": "...",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "μ": "mu",
    "σ": "sigma",
    "Φ": "Phi",
}


def plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that cannot be encoded, as ``codecs.register_error`` wants it; ``?`` for most.

    >>> codecs.register_error("plain", plain)
    >>> "−0.5 ± 0.1 ✓".encode("ascii", "plain")
    b'-0.5 +- 0.1 ?'
    """
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


def print_in_any_encoding() -> None:
    """Have standard output and errors written plainly where their encoding (Windows' has no ``−``) lacks a character.

    As it comes, Python raises, and a report ends at its first minus sign.
    """
    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
