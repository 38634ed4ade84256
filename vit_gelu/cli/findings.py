"""What ``vit-gelu doctor`` finds: a fact, whether it is as it should be, and what to do if not."""

from dataclasses import dataclass

OK, WARNING, PROBLEM = "ok", "warning", "problem"


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        status: ok, warning (it works, but slower or not all of it) or problem (it does not work).
        found: what is there.
        advice: what to do; empty where nothing needs doing.
    """

    name: str
    status: str
    found: str
    advice: str = ""
