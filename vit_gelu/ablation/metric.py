"""What is compared: where it stands in a record, and in which unit it is shown."""

from dataclasses import dataclass

from vit_gelu.ablation.records import Run, look_up


@dataclass(frozen=True)
class Metric:
    """A number of a run.

    Attributes:
        name: as the user types it.
        path: where the record has it.
        label: what axes and tables call it.
        unit: of a difference.
        scale: from the record to the screen.
        sign: +1 where more is better, −1 where less is.
        margin: of equivalence, in ``unit``; None where no usual one exists.
        digits: decimals shown.
    """

    name: str
    path: str
    label: str
    unit: str
    scale: float
    sign: int
    margin: float | None
    digits: int

    def of(self, run: Run) -> float:
        """The value on the screen's scale (accuracies in per cent)."""
        return float(look_up(run.record, self.path)) * self.scale

    def known(self, run: Run) -> bool:
        """Whether the run has it."""
        return look_up(run.record, self.path) is not None

    @property
    def axis(self) -> str:
        """Label with the unit of a single value."""
        return f"{self.label} (%)" if self.scale == 100 else self.label


METRICS = {
    m.name: m
    for m in (
        Metric("test_top1", "test.top1", "test top-1", "points", 100, 1, 0.2, 2),
        Metric("test_top5", "test.top5", "test top-5", "points", 100, 1, 0.2, 2),
        Metric("test_loss", "test.loss", "test loss", "nats", 1, -1, None, 4),
        Metric("val_top1", "val.top1", "validation top-1", "points", 100, 1, 0.2, 2),
        Metric("val_loss", "val.loss", "validation loss", "nats", 1, -1, None, 4),
    )
}
