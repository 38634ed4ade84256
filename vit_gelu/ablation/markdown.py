"""A report as Markdown."""

import re

from vit_gelu.ablation.document import Document
from vit_gelu.ablation.tables import Table


def to_markdown(document: Document, figures: str) -> str:
    """The whole report; pictures are linked.

    Args:
        document: the report.
        figures: folder of the pictures, relative to the file.
    """
    parts = [f"# {escape(document.title)}", f"**{escape(document.answer[0])}**"]
    parts += [escape(sentence) for sentence in document.answer[1:]]
    parts += [escape(document.subject), table_to_markdown(document.results)]
    if document.notes:
        parts.append("Mind:\n\n" + "\n".join(f"- {escape(note)}" for note in document.notes))
    for picture in document.pictures:
        parts.append(f"## {escape(picture.title)}")
        if picture.svg:
            parts.append(f"![{escape(picture.title)}]({figures}/{picture.name}.png)")
        parts.append(escape(picture.caption))
    parts += [table_to_markdown(table) for table in document.details]
    parts.append("## How to read this\n\n" + "\n".join(f"- {escape(line)}" for line in document.method))
    parts.append(table_to_markdown(document.runs))
    if document.left_out.rows:
        parts.append(table_to_markdown(document.left_out))
    return "\n\n".join(parts) + "\n"


def table_to_markdown(table: Table) -> str:
    """Heading, table, note."""
    marks = [":--" if i in table.text_columns else "--:" for i in range(len(table.header))]
    lines = [
        [escape(cell) for cell in table.header],
        marks,
        *([escape(c) for c in row] for row in table.rows),
    ]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"\n\n{escape(table.note)}" if table.note else ""
    return f"## {escape(table.title)}\n\n{text}{note}"


def escape(text: str) -> str:
    """Text that Markdown shows as it is.

    >>> print(escape("a|b <i> *c*"))
    a\\|b &lt;i&gt; \\*c\\*
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]#])", r"\\\1", " ".join(text.split())) if text else ""
