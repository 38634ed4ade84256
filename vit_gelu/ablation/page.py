"""A report as one HTML file: nothing outside it is loaded, light or dark as the reader's system is."""

import re
from html import escape

from vit_gelu.ablation.document import Document
from vit_gelu.ablation.plots import Picture
from vit_gelu.ablation.tables import Table

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5a636e; --paper: #ffffff; --line: #d4d9df; --shade: #e9edf2;
  --accent: #0062a3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #a3acb6; --paper: #14171a; --line: #343a41; --shade: #262b31; --accent: #6cb8f0; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
h1 { font-size: 1rem; font-weight: 500; color: var(--soft); margin: 0 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; }
.answer { font-size: clamp(1.25rem, 3.4vw, 1.75rem); line-height: 1.3; font-weight: 600; margin: 0 0 .8rem;
  text-wrap: pretty; }
.whole { white-space: nowrap; }
.rest { margin: 0 0 .35rem; }
.soft, figcaption, .note { color: var(--soft); font-size: .88rem; }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; white-space: normal; min-width: 3.4rem; }
th.text, td.text { text-align: left; }
tr > :first-child { padding-left: 0; }
td:first-child { font-weight: 600; }
figure { margin: .4rem 0 0; }
figure svg { display: block; width: 100%; max-width: 46rem; min-width: 33rem; height: auto; }
figure.narrow svg { max-width: 34rem; min-width: 22rem; }
.mind { border-left: 3px solid var(--accent); padding: .1rem 0 .1rem 1rem; margin: 1.4rem 0; }
.mind ul { margin: .3rem 0; padding-left: 1.1rem; }
summary { cursor: pointer; font-size: 1.15rem; font-weight: 600; margin: 2.2rem 0 .4rem; }
@media print { details > * { display: block; } figure, tr { break-inside: avoid; } }
"""
NARROW = ("trade_off",)
WHOLE = re.compile(r"\[[−+\d][^\]]{0,40}\]|\(n = [^)]{0,20}\)")
SHUT = 12  # longer tables open at a click


def to_html(document: Document) -> str:
    """The whole report."""
    first, *rest = document.answer
    body = [
        f"<h1>{escape(document.title)}</h1>",
        f'<p class="answer">{_prose(first)}</p>',
        *(f'<p class="rest">{_prose(sentence)}</p>' for sentence in rest),
        f'<p class="soft">{escape(document.subject)}</p>',
        _table(document.results, heading=False),
    ]
    if document.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in document.notes)
        body.append(f'<section class="mind"><strong>Mind</strong><ul>{items}</ul></section>')
    body += [_picture(picture) for picture in document.pictures]
    body += [_table(table) for table in document.details]
    lines = "".join(f"<p>{escape(line)}</p>" for line in document.method)
    body.append(f"<h2>How to read this</h2>{lines}")
    body.append(_table(document.runs))
    if document.left_out.rows:
        body.append(_table(document.left_out))
    joined = "\n".join(body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="generator" content="vit_gelu">\n'
        f"<title>{escape(document.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{joined}\n</main>\n"
        "</body>\n</html>\n"
    )


def _prose(text: str) -> str:
    """Escaped, with intervals and numbers of pairs kept on one line."""
    return WHOLE.sub(lambda m: f'<span class="whole">{m[0]}</span>', escape(text))


def _table(table: Table, heading: bool = True) -> str:
    def cells(row: tuple[str, ...], tag: str) -> str:
        kinds = ((' class="text"' if i in table.text_columns else "") for i in range(len(row)))
        return "".join(f"<{tag}{k}>{escape(cell)}</{tag}>" for cell, k in zip(row, kinds, strict=True))

    head = f"<thead><tr>{cells(table.header, 'th')}</tr></thead>"
    rows = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    text = f'<div class="wide"><table>{head}<tbody>\n{rows}\n</tbody></table></div>{note}'
    if not heading:
        return text
    if len(table.rows) > SHUT:
        return f"<details><summary>{escape(table.title)}</summary>{text}</details>"
    return f"<section><h2>{escape(table.title)}</h2>{text}</section>"


def _picture(picture: Picture) -> str:
    head = f"<section><h2>{escape(picture.title)}</h2>"
    if not picture.svg:
        return f'{head}<p class="soft">{escape(picture.caption)}</p></section>'
    label = f'<svg role="img" aria-label="{escape(f"{picture.title}. {picture.caption}")}" '
    svg = picture.svg.replace("<svg ", label, 1)
    kind = ' class="narrow"' if picture.name in NARROW else ""
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>"
    return f'{head}<figure{kind}><div class="wide">{svg}</div>{caption}</figure></section>'
