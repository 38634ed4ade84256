"""One thing in which the network differs from its checkpoint."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """What was changed, from what to what, and how.

    Attributes:
        part: ``head``, ``pre_logits``, ``input``, ``patch_embed`` or ``position_embedding``.
        before, after: in words.
        how: the method, in words.

    >>> Change("head", "1000 classes", "10 classes", "new, zero").text
    'head: 1000 classes -> 10 classes, new, zero'
    """

    part: str
    before: str
    after: str
    how: str

    @property
    def text(self) -> str:
        """A line for people."""
        return f"{self.part}: {self.before} -> {self.after}, {self.how}"

    def record(self) -> dict[str, Any]:
        """Plain values for the run's record."""
        return asdict(self)
