"""What a report says, before it is written as a page, as Markdown or as LaTeX."""

from dataclasses import dataclass

from vit_gelu.ablation.comparison import ALPHA, LEAST_FOR_VERDICT, Analysis
from vit_gelu.ablation.costs import Costs
from vit_gelu.ablation.naming import display
from vit_gelu.ablation.plots import Picture
from vit_gelu.ablation.sentences import answer
from vit_gelu.ablation.tables import (
    Table,
    comparison_table,
    cost_table,
    left_out_table,
    results_table,
    runs_table,
)


@dataclass(frozen=True)
class Document:
    """A report in its parts.

    Attributes:
        title: the question.
        subject: what was trained, on what.
        answer: sentences, the headline first.
        results: the table of the first screen.
        pictures: figures, those without anything to draw included.
        details: statistics and costs.
        notes: what a reader must know.
        method: how the numbers came about.
        runs, left_out: the evidence.
    """

    title: str
    subject: str
    answer: list[str]
    results: Table
    pictures: list[Picture]
    details: list[Table]
    notes: list[str]
    method: list[str]
    runs: Table
    left_out: Table


def compose(analysis: Analysis, costs: Costs, pictures: list[Picture]) -> Document:
    """Put a report together."""
    # The baseline's: another arm may be of another model.
    run = next(iter(analysis.experiment.arms[analysis.baseline].values())).record
    data, batch = run["dataset"], run["global_batch_size"]
    details = []
    if analysis.against_baseline:
        title = f"Against {display(analysis.baseline)}"
        details.append(comparison_table(analysis, analysis.against_baseline, title))
    if analysis.among_others:
        details.append(comparison_table(analysis, analysis.among_others, "Among the others"))
    if costs.speed or costs.memory:
        details.append(cost_table(analysis, costs))
    return Document(
        title=f"Which activation? {run['model']['name']} on {data['name']}",
        subject=(
            f"{run['model']['name']} on {data['name']}: {data['train_n']:,} training, {data['val_n']:,} validation "
            f"and {data['test_n']:,} test images; {run['epochs']:,} epochs of batches of {batch:,}, "
            f"{run['steps']:,} steps; "
            f"{run.get('tested', 'last')} checkpoint tested."
        ),
        answer=answer(analysis, costs),
        results=results_table(analysis),
        pictures=pictures,
        details=details,
        notes=[*analysis.notes, *costs.notes],
        method=_method(analysis),
        runs=runs_table(analysis),
        left_out=left_out_table(analysis),
    )


def _method(analysis: Analysis) -> list[str]:
    metric = analysis.metric
    return [
        "Runs are compared in pairs of one seed, which share initial weights where shapes agree, order of images and "
        "augmentation; equal order hashes prove the order.",
        "An activation is better or worse when the two-sided sign-flip test, adjusted over the arms by Holm's "
        f"method, has p < {ALPHA:g} and the 95 % t-interval of the difference excludes 0; equivalent when two "
        "one-sided t tests, adjusted likewise, show that the difference is smaller than "
        f"{analysis.margin:g} {metric.unit}, also where so small a difference is significant; otherwise undecided. "
        f"Fewer than {LEAST_FOR_VERDICT} pairs get no verdict. Comparisons among the other arms are a family of "
        "their own.",
        "P(next pair better) is the predictive probability, under normal differences, that the pair of a new seed "
        "favours the activation: t with n − 1 degrees of freedom at mean / (sd √(1 + 1/n)).",
        "Intervals speak of new seeds on these test images, this recipe and this model, and of nothing else.",
    ]
