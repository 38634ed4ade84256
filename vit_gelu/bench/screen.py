"""The tables on the screen: one per comparison, fastest first."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vit_gelu.bench.comparison import Comparison

PLAIN_WIDTH = 150  # where there is no terminal, nothing is folded


def console() -> Console:
    """Standard output: colours on a terminal, plain and wide elsewhere."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def ratio_text(ratio: Mapping[str, float | None]) -> str:
    """A ratio with its interval; the baseline's own is 1 by definition."""
    if ratio["low"] is None:
        return "1"
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _quartiles(seconds: Mapping[str, float]) -> str:
    return f"{_ms(seconds['median'])} [{_ms(seconds['q1'])}–{_ms(seconds['q3'])}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f}"


def _mib(size: int | None) -> str:
    return "–" if size is None else f"{size / 2**20:.1f}"


def _table(title: str, *headings: str) -> Table:
    """An empty table: the activation's name, then numbers under these headings."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, collapse_padding=True)
    table.add_column("activation", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def activation_table(comparison: Comparison, baseline: str) -> Table:
    """Times in ms with quartiles; ratio of forward + backward to the baseline; bandwidth; memory; errors."""
    compiled = comparison.labels["mode"] == "compiled"
    rate = comparison.labels["copy_bytes_per_second"]
    table = _table(
        f"{comparison.title} (copy: {rate / 1e9:.1f} GB/s)",
        "forward ms",
        "backward ms",
        "both ms [quartiles]",
        f"both / {baseline} [95 %]",
        "% of copy\nfwd bwd",
        "kept MiB\nact MLP",
        "max error\ny",
        "\ndy/dx",
        *(("compile s\n(graphs)",) if compiled else ()),
    )
    for row in sorted(comparison.rows, key=lambda r: r["both"]["seconds"]["median"]):
        shares = (row["forward"]["share_of_copy"], row["backward"]["share_of_copy"])
        cells = [
            escape(row["activation"]),
            _ms(row["forward"]["seconds"]["median"]),
            _ms(row["backward"]["seconds"]["median"]),
            _quartiles(row["both"]["seconds"]),
            ratio_text(row["both"]["ratio"]),
            " ".join(f"{_percent(s):>3}" for s in shares),
            f"{_mib(row['kept_bytes'])} {_mib(row['kept_in_mlp_bytes']):>5}",
            f"{row['error']['forward']:.1e}",
            f"{row['error']['gradient']:.1e}",
        ]
        table.add_row(*cells, *([_compile(row["compile"])] if compiled else []))
    return table


def _compile(compilation: Mapping[str, Any]) -> str:
    cached = "*" if compilation["cached"] else ""
    return f"{compilation['seconds']:.1f}{cached} ({compilation['graphs']})"


def training_table(comparison: Comparison, baseline: str) -> Table:
    """Images/s, ms, ratio to the baseline and MFU of training; the same, shorter, of inference; memory."""
    compiled = comparison.labels["mode"] == "compiled"
    on_gpu = comparison.rows[0]["peak_memory_bytes"] is not None
    flops = comparison.labels["peak_flops_measured"]
    table = _table(
        f"{comparison.title} (matrix product: {flops / 1e12:.3g} TFLOP/s)",
        "train\nimages/s",
        "\nms [quartiles]",
        f"\ntime / {baseline} [95 %]",
        "\nMFU %",
        "inference\nimages/s",
        f"\ntime / {baseline} [95 %]",
        "kept\nMiB",
        *(("peak\nMiB",) if on_gpu else ()),
        *(("compile s\n(graphs)",) if compiled else ()),
    )
    for row in sorted(comparison.rows, key=lambda r: r["train"]["seconds"]["median"]):
        train, inference = row["train"], row["inference"]
        cells = [
            escape(row["activation"]),
            f"{train['images_per_second']:,.4g}",
            _quartiles(train["seconds"]),
            ratio_text(train["ratio"]),
            f"{100 * train['mfu']:.1f}",
            f"{inference['images_per_second']:,.4g}",
            ratio_text(inference["ratio"]),
            _mib(row["kept_bytes"]),
        ]
        cells += [_mib(row["peak_memory_bytes"])] if on_gpu else []
        table.add_row(*cells, *([_compile(row["compile"])] if compiled else []))
    return table


TABLES = {"activations": activation_table, "training": training_table}


def legend(kind: str, record: Mapping[str, Any]) -> list[str]:
    """What the columns mean, in a few lines, as far as anything shown needs it."""
    lines = [
        "medians over the rounds; [95 %]: t interval of the log ratio, paired by round; above 1 is slower"
    ]
    if kind == "activations":
        lines.append(
            "% of copy: nominal bytes per second over a tensor copy's, timed in the same rounds; "
            "kept: for backward, by the activation and with its output, which the next layer keeps"
        )
        if any(row["error"]["mode"] == "evaluation" for row in record["rows"]):
            lines.append("errors are against float64; stochastic activations in evaluation mode")
        else:
            lines.append("errors are against float64")
    else:
        lines.append("MFU: counted FLOP/s over the matrix product's; kept: for backward, weights not counted")
    if any((row.get("compile") or {}).get("cached") for row in record["rows"]):
        lines.append("*: compiled code came from the disk cache; this is no compile time")
    return lines


def warnings_of(record: Mapping[str, Any]) -> list[str]:
    """What bars the figures from being published as they are, or completes them."""
    lines = list(record["notes"])
    if record["exclusive"] is False:
        lines.append("the device was shared with other work: these figures are not for publication")
    elif record["exclusive"] is None:
        lines.append("whether the device was shared is not known")
    lines += [f"left out, --time_limit reached: {left}" for left in record["left_out"]]
    return lines
