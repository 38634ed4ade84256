"""The report: its words, its files, its figures, its manners."""

import csv
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.transforms import Bbox
from scipy import stats

from tests.ablation.helpers import experiment, record, write
from vit_gelu.ablation.comparison import Verdict, analyse
from vit_gelu.ablation.costs import measure_costs
from vit_gelu.ablation.metric import METRICS
from vit_gelu.ablation.pairing import read_experiment
from vit_gelu.ablation.plots import FIGURES
from vit_gelu.ablation.sentences import answer
from vit_gelu.ablation.shapes import shape
from vit_gelu.ablation.tables import comparison_table
from vit_gelu.cli import report
from vit_gelu.cli.errors import guarded
from vit_gelu.figure_style import SETTINGS

BASE = np.random.default_rng(0).integers(8980, 9020, 10)
VERDICT_WORDS = re.compile(r"\b(beats?|loses?|better|worse|equivalent|undecided|best|wins?)\b")


def arms(n=10):
    noise = np.random.default_rng(1).integers(-4, 5, (4, 10))
    values = {
        "relu": BASE,
        "gelu": BASE + 42 + noise[0],
        "gelu_tanh": BASE + 41 + noise[1],
        "silu": BASE + np.array([-60, 90, -30, 75, 40, -55, 10, 80, -20, 5]),
        "tanh": BASE - 90 + noise[2],
        "elu": BASE + noise[3],
    }
    return {arm: [int(x) for x in v[:n]] for arm, v in values.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for i, (arm, correct) in enumerate(arms().items()):
        for seed, value in enumerate(correct):
            rate = 1000 * (1 - 0.013 * (i > 0)) * (1 + 0.001 * ((seed * 7 + i) % 5 - 2))
            write(root, record(arm, seed, value, speed__train_images_per_second=rate))
    return root


def analysed(root, **change):
    options = {"metric": METRICS["test_top1"], "baseline": "relu", "margin": 0.2} | change
    found = read_experiment([root])
    return analyse(found, **options), measure_costs(found, options["baseline"])


def test_verdicts_and_numbers(runs):
    analysis, _ = analysed(runs)
    found = {c.arm: c for c in analysis.against_baseline}
    assert {arm: c.verdict for arm, c in found.items()} == {
        "gelu": Verdict.BETTER,
        "gelu_tanh": Verdict.BETTER,
        "tanh": Verdict.WORSE,
        "elu": Verdict.EQUIVALENT,
        "silu": Verdict.UNDECIDED,
    }
    data = read_experiment([runs]).arms
    for arm, c in found.items():
        a = [100 * run.record["test"]["top1"] for run in data[arm].values()]
        b = [100 * run.record["test"]["top1"] for run in data["relu"].values()]
        expected = stats.ttest_rel(a, b)
        assert c.interval == pytest.approx(tuple(expected.confidence_interval()))
        assert c.mean == pytest.approx(np.mean(a) - np.mean(b))
        assert c.correlation == pytest.approx(np.corrcoef(a, b)[0, 1])
        assert c.p_holm >= c.sign_flip.p
    assert found["silu"].more_seeds > 0
    assert len(analysis.among_others) == 10


def test_headline_is_a_sentence(tmp_path):
    data = arms()
    analysis, costs = analysed(
        experiment(tmp_path, {a: data[a] for a in ("relu", "gelu", "gelu_tanh", "elu")})
    )
    first, *rest = answer(analysis, costs)
    assert re.fullmatch(
        r"GELU and tanh GELU beat ReLU by 0\.4\d points \[0\.\d\d, 0\.\d\d\] and 0\.4\d points "
        r"\[0\.\d\d, 0\.\d\d\] \(n = 10 pairs\)\.",
        first,
    )
    assert "ELU are equivalent within 0.2 points (n = 10 pairs)." in rest[0]
    assert any(s.startswith("GELU and tanh GELU are equivalent within 0.2 points") for s in rest)


def test_single_winner_carries_its_price(tmp_path):
    for arm in ("relu", "gelu"):
        for seed, value in enumerate(arms()[arm]):
            rate = 1000 * (0.987 if arm == "gelu" else 1) * (1 + 0.0005 * (seed * 3 % 5 - (arm == "gelu")))
            write(tmp_path, record(arm, seed, value, speed__train_images_per_second=rate))
    analysis, costs = analysed(tmp_path)
    assert re.fullmatch(
        r"GELU beats ReLU by 0\.\d\d points \[0\.\d\d, 0\.\d\d\] \(n = 10 pairs\) and costs 1\.\d % speed\.",
        answer(analysis, costs)[0],
    )


def test_words_follow_the_number_of_pairs(tmp_path):
    for n in (1, 5, 8, 9):
        analysis, costs = analysed(experiment(tmp_path / str(n), arms(n)))
        text = " ".join(answer(analysis, costs))
        assert bool(VERDICT_WORDS.search(text)) == (n >= 9), text
        verdicts = {c.verdict for c in (*analysis.against_baseline, *analysis.among_others)}
        assert (verdicts <= {Verdict.NONE}) == (n < 9)
        if n == 1:
            assert text.startswith("One pair of runs ranks nothing")
            assert not analysis.against_baseline
            assert [s.arm for s in analysis.summaries] == ["relu", *sorted(set(arms()) - {"relu"})]


def test_losses_are_better_when_lower(tmp_path):
    for seed in range(10):
        noise = 0.001 * (seed * 7 % 5)
        write(tmp_path, record("relu", seed, test__loss=0.4 + noise))
        write(tmp_path, record("gelu", seed, test__loss=0.3 + noise * 1.1))
    analysis, costs = analysed(tmp_path, metric=METRICS["test_loss"], margin=0.01)
    assert analysis.against_baseline[0].verdict is Verdict.BETTER
    assert analysis.against_baseline[0].superiority > 0.99
    assert re.match(
        r"GELU beats ReLU by 0\.\d{4} nats \[0\.\d{4}, 0\.\d{4}\] in test loss", answer(analysis, costs)[0]
    )


def test_same_network_twice_is_no_equivalence(tmp_path):
    for seed in range(10):
        for arm in ("relu", "gelu"):
            write(tmp_path, record(arm, seed, 9000 + seed, test__loss=0.3 + seed / 100))
    analysis, costs = analysed(tmp_path)
    assert analysis.against_baseline[0].verdict is Verdict.NONE
    assert "they are the same network" in answer(analysis, costs)[0]


class Checker(HTMLParser):
    """Collects what a page loads, and whether its tags are balanced."""

    def __init__(self):
        super().__init__()
        self.open, self.loaded, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "img", "link", "use", "path", "rect", "hr"):
            self.open.append(tag)
        for name, value in attrs:
            if name == "src" or (name in ("href", "xlink:href") and not value.startswith("#")):
                self.loaded.append(value)
            if name == "id":
                self.ids.append(value)
        assert tag not in ("script", "iframe", "object", "img", "link", "i"), tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in ("use", "path", "rect"):
            assert self.open.pop() == tag


def run(*argv):
    return guarded("vit-gelu report", lambda: report.main([str(a) for a in argv]))


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory):
    """A report over arms whose names try to break out of their place."""
    root = tmp_path_factory.mktemp("hostile")
    shutil.copytree(runs, root / "runs")
    name = '<i>&"x_1|$^2$'
    for seed in range(10):
        write(root / "runs", record("silu", seed, 9100 + seed, arm=name), f"hostile-{seed}")
    write(root / "runs", record("silu", 99, order_hash=""), "<b>bad</b>")
    assert run(root / "runs", "--out", root / "out") == 0
    return root / "out", name


def test_files(made):
    out, _ = made
    figures = sorted(p.name for p in (out / "figures").iterdir())
    assert figures == sorted(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg"))
    assert sorted(p.name for p in out.iterdir()) == [
        "figures", "report.html", "report.json", "report.md", "results.csv", "table.tex",
    ]  # fmt: skip
    for path in (out / "figures").glob("*.svg"):
        ET.parse(path)
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 71
    assert [(r["folder"][-10:], r["reason"]) for r in rows if r["used"] == "no"] == [
        ("<b>bad</b>", "the record has no order_hash")
    ]
    read = json.loads((out / "report.json").read_text())
    against = {c["arm"]: c for c in read["against_baseline"]}
    top1 = {(r["arm"], int(r["seed"])): float(r["test_top1"]) for r in rows if r["used"] == "yes"}
    differences = [100 * (top1["gelu", s] - top1["relu", s]) for s in range(10)]
    assert against["gelu"]["mean"] == pytest.approx(np.mean(differences))
    assert len(read["runs"]) == 70


def test_comparisons_name_the_other_arm_where_the_title_does_not(runs):
    analysis, _ = analysed(runs)
    named = comparison_table(analysis, analysis.against_baseline, "Against ReLU")
    among = comparison_table(analysis, analysis.among_others[:1], "Among the others")
    assert "against" not in named.header
    assert among.header[1] == "against"
    for table, comparison in ((named, analysis.against_baseline[0]), (among, analysis.among_others[0])):
        row = dict(zip(table.header, table.rows[0], strict=True))
        assert row["verdict"] == comparison.verdict.value
        assert row["pairs"] == str(comparison.n)
        assert table.header.index("verdict") in table.text_columns
        assert row.get("against", "ReLU").lower() == comparison.other


def test_page_is_whole_and_loads_nothing(made):
    out, _ = made
    page = (out / "report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert not checker.loaded
    assert not re.search(r"url\((?!#)", page)
    assert "<i>" not in page
    assert "<b>bad" not in page
    assert "&lt;i&gt;&amp;&quot;x_1|$^2$" in page
    assert "prefers-color-scheme: dark" in page
    for run_row in json.loads((out / "report.json").read_text())["runs"]:
        assert run_row["order_hash"][:12] in page
    assert len(checker.ids) == len(set(checker.ids))


def test_markdown_and_latex_keep_foreign_names_as_text(made):
    out, _ = made
    markdown = (out / "report.md").read_text()
    assert r"&lt;i&gt;&amp;" in markdown
    table = [line for line in markdown.splitlines() if line.startswith("| ReLU")]
    assert table
    results = markdown.split("## Results")[1].split("##")[0]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in results.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    tex = (out / "table.tex").read_text()
    assert r"$<$i$>$\&" in tex
    assert r"\_1$|$\$\textasciicircum{}2\$" in tex
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body.strip().splitlines()} == {7}
    assert not set(tex) - set(map(chr, range(128)))


def test_own_files_are_replaced_and_foreign_ones_never(tmp_path, capsys):
    runs = experiment(tmp_path / "runs", {"relu": [9000, 9001], "gelu": [9005, 9003]})
    out = tmp_path / "out"
    assert run(runs, "--out", out) == 0
    (out / "mine.txt").write_text("keep")
    assert run(runs, "--out", out, "--baseline", "gelu") == 0
    assert json.loads((out / "report.json").read_text())["baseline"] == "gelu"
    assert (out / "mine.txt").read_text() == "keep"
    (out / "report.md").write_text("my own words")
    assert run(runs, "--out", out) == 2
    assert "report.md was changed since the report was made" in capsys.readouterr().err
    assert (out / "report.md").read_text() == "my own words"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "results.csv").write_text("1,2")
    assert run(runs, "--out", foreign) == 2
    assert [p.name for p in foreign.iterdir()] == ["results.csv"]
    assert run(runs, "--out", foreign / "results.csv") == 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--baseline", "rellu"], "--baseline rellu: unknown arm 'rellu'. Did you mean 'relu'"),
        (["--metric", "test_top"], "unknown metric 'test_top'. Did you mean 'test_top5' or 'test_top1'"),
        (["--metric", "test_loss"], "--margin is missing; give it in nats"),
        (["--margin", "0"], "--margin: 0: must be a number above 0"),
        (["--margin", "nan"], "--margin: nan: must be a number above 0"),
        (["--margni", "1"], "unknown option --margni. Did you mean --margin?"),
        (["no/such/folder"], "no/such/folder: no such folder"),
    ],
)
def test_mistakes(runs, tmp_path, capsys, options, expected):
    assert run(runs, *options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) <= 5
    assert not (tmp_path / "out").exists()


def test_lost_baseline_and_single_arm_are_explained(tmp_path, capsys):
    experiment(tmp_path, {"gelu": [9000, 9001], "silu": [9010, 9020]})
    write(tmp_path, record("relu", 0, steps=3))
    assert run(tmp_path) == 2
    assert "number of steps is 3, 20 in the others" in capsys.readouterr().err
    experiment(tmp_path / "one", {"relu": [9000, 9001]})
    assert run(tmp_path / "one") == 2
    assert "only one arm" in capsys.readouterr().err
    assert run() == 2
    assert "FOLDER is missing" in capsys.readouterr().err


def test_neither_command_nor_help_loads_torch(tmp_path):
    runs = experiment(tmp_path, {"relu": [9000, 9001], "gelu": [9005, 9003]})
    code = "import sys\nfrom vit_gelu.cli import report\n"
    code += "report.main(['--help'])\nassert 'scipy' not in sys.modules\n"
    code += f"report.main([{str(runs)!r}, '--out', {str(tmp_path)!r}])\n"
    code += "print('LOADED', *{'torch', 'lightning', 'pandas', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED"
    assert "examples:" in done.stdout


@pytest.mark.parametrize("n", [1, 2, 10])
def test_labels_can_be_read(runs, tmp_path, n):
    import matplotlib as mpl

    root = tmp_path
    for arm in (
        "relu",
        "gelu",
        "gelu_learnable",
        "gelu_stochastic",
        "gelu_sigmoid",
        "leaky_relu",
        "swiglu",
        "tanh",
    ):
        for seed in range(n):
            write(root, record(arm, seed, 9000 + sum(map(ord, arm)) % 50 + seed * seed))
    analysis, costs = analysed(root)
    for name, (_, draw) in FIGURES.items():
        with mpl.rc_context(SETTINGS):
            figure, caption = draw(analysis, costs)
            if figure is None:
                assert (name, n) == ("differences", 1)
                assert caption
                continue
            figure.draw_without_rendering()
        renderer = figure.canvas.get_renderer()
        window = figure.bbox
        for axes in (a for a in figure.axes if a.get_visible()):
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [x.get_window_extent(renderer) for x in labels if x.get_text() and x.get_visible()]
                boxes = [b for b in boxes if b.width]
                overlapping = [
                    (i, j)
                    for i in range(len(boxes))
                    for j in range(i)
                    if Bbox.intersection(boxes[i], boxes[j])
                ]
                assert not overlapping, (name, [x.get_text() for x in labels])
            for text in axes.texts:
                box = text.get_window_extent(renderer)
                assert box.x0 >= 0, (name, text.get_text())
                assert box.x1 <= window.x1, (name, text.get_text())
        for legend in figure.legends:
            box = legend.get_window_extent(renderer)
            assert 0 <= box.x0 < box.x1 <= window.x1, name
            lines = {round(text.get_window_extent(renderer).y0) for text in legend.get_texts()}
            assert len(lines) <= 3, (name, "eight names of this length have room on three lines")
        if name == "curves":
            ticks = [x for axes in figure.axes for x in axes.get_xticks()]
            assert all(float(x).is_integer() for x in ticks)


def test_shapes_are_those_of_the_activations():
    import torch

    from vit_gelu.activations import ACTIVATIONS, build_activation

    x = np.linspace(-6, 6, 501)
    unknown = set()
    for name in ACTIVATIONS:
        values = shape(name, {}, x)
        if values is None:
            unknown.add(name)
            continue
        with torch.no_grad():
            expected = build_activation(name).eval()(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(values, expected, atol=1e-12, err_msg=name)
    assert unknown == {"gelu_learnable", "prelu", "swiglu", "geglu", "reglu"}
    for name, options in (
        ("elu", {"alpha": 0.5}),
        ("laplace_lu", {"sigma": 2.0}),
        ("softplus", {"beta": 2.0}),
    ):
        expected = build_activation(name, **options)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(shape(name, options, x), expected, atol=1e-12)
    assert shape("laplace_lu", {"learnable": True}, x) is None
    assert shape("mine.Act", {}, x) is None
