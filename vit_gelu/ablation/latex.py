"""The results as a LaTeX table for a paper; needs ``booktabs``."""

import re

from vit_gelu.ablation.document import Document

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": r"$-$", "–": "--", "<": r"$<$",
    ">": r"$>$", "|": r"$|$",
}  # fmt: skip


def to_latex(document: Document) -> str:
    """A ``table`` environment with the results, the answer as its caption."""
    table = document.results
    columns = "".join("l" if i in table.text_columns else "r" for i in range(len(table.header)))
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "  \\centering",
        f"  \\caption{{{escape(f'{document.answer[0]} {document.subject} {table.note}')}}}",
        f"  \\begin{{tabular}}{{{columns}}}",
        "    \\toprule",
        f"    {_row(table.header)}",
        "    \\midrule",
        *(f"    {_row(row)}" for row in table.rows),
        "    \\bottomrule",
        "  \\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _row(cells: tuple[str, ...]) -> str:
    # A bracket that opens a row would be read as an option of the line break before it.
    return " & ".join(f"{{{c}}}" if c.startswith("[") else c for c in map(escape, cells)) + r" \\"


def escape(text: str) -> str:
    r"""Text that LaTeX sets as it is.

    >>> print(escape("a_b 5 % ± −1"))
    a\_b 5 \% $\pm$ $-$1
    """
    return re.sub(r"[\\{}&%$#_~^±−–<>|]", lambda m: _SPECIAL[m[0]], text)
