"""``vit-gelu bench`` from the command line to its files, and every mistake."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from scipy import stats

from vit_gelu.activations import ACTIVATIONS, build_activation
from vit_gelu.bench import options as bench_options
from vit_gelu.bench.comparison import check_compiled
from vit_gelu.bench.compiling import Compilation, compile_alone, counted
from vit_gelu.bench.subject import check_graphs
from vit_gelu.cli.bench import main
from vit_gelu.cli.errors import UsageError, guarded

FAST = ["--device", "cpu", "--rounds", "3", "--min_time", "0.0001"]


def refusal(capsys, *argv):
    capsys.readouterr()
    assert guarded("vit-gelu bench", lambda: main([str(a) for a in argv])) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) <= 5
    return captured.err


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    """Every activation on a small tensor, and gelu_tanh as the baseline."""
    out = tmp_path_factory.mktemp("bench") / "all"
    argv = ["activations", *FAST, "--compile", "false", "--sizes", "2x3x64", "--baseline", "gelu_tanh"]
    assert main([*argv, "--out", str(out)]) == 0
    return out


def test_files_agree(eager):
    record = json.loads((eager / "bench.json").read_text())
    assert {p.name for p in eager.iterdir()} == {
        "bench.json", "bench.csv", "rounds.csv", "bench.png", "bench.svg"
    }  # fmt: skip
    assert (record["kind"], record["status"], record["left_out"]) == ("activations", "finished", [])
    assert record["env"]["torch"] == torch.__version__
    assert record["env"]["threads"] == torch.get_num_threads()
    assert [(r["dtype"], r["activation"]) for r in record["rows"]] == [
        (d, a) for d in ("float32", "bfloat16") for a in ACTIVATIONS
    ]
    table = rows_of(eager / "bench.csv")
    assert [float(r["both_seconds_median"]) for r in table] == [
        r["both"]["seconds"]["median"] for r in record["rows"]
    ]
    # Statistics again from the single times.
    times = {
        (r["pass"], r["activation"], int(r["round"])): float(r["seconds"])
        for r in rows_of(eager / "rounds.csv")
        if r["dtype"] == "float32"
    }
    ratio = next(r for r in record["rows"] if r["activation"] == "mish")["both"]["ratio"]
    logs = [
        [torch.tensor(times["both", name, i]).log().item() for i in range(3)]
        for name in ("mish", "gelu_tanh")
    ]
    low, high = stats.ttest_rel(*logs).confidence_interval()
    assert [ratio["low"], ratio["high"]] == pytest.approx(
        [torch.tensor(v).exp().item() for v in (low, high)], rel=1e-4
    )
    with Image.open(eager / "bench.png") as picture:
        picture.verify()
    svg = (eager / "bench.svg").read_text()
    assert all(f">{name}<" in svg for name in ACTIVATIONS)


def test_numbers_that_do_not_depend_on_the_clock(eager):
    rows = {(r["dtype"], r["activation"]): r for r in json.loads((eager / "bench.json").read_text())["rows"]}
    n = 2 * 3 * 64
    assert rows["float32", "gelu"]["kept_bytes"] == 4 * n
    assert rows["float32", "gelu"]["kept_in_mlp_bytes"] == 8 * n
    assert rows["bfloat16", "relu"]["kept_in_mlp_bytes"] == rows["bfloat16", "relu"]["kept_bytes"] == 2 * n
    gelu = rows["float32", "gelu"]["forward"]
    assert gelu["bytes_per_second"] == pytest.approx(8 * n / gelu["seconds"]["median"])
    assert rows["float32", "identity"]["forward"]["bytes_per_second"] is None
    assert rows["float32", "gelu_stochastic"]["error"]["mode"] == "evaluation"
    assert all(r["error"]["forward"] < 1e-5 for (d, _), r in rows.items() if d == "float32")
    assert rows["float32", "gelu_tanh"]["both"]["ratio"] == {"value": 1.0, "low": None, "high": None}


def test_nothing_is_overwritten(eager, capsys):
    before = {p.name: p.read_bytes() for p in eager.iterdir()}
    message = refusal(capsys, "activations", *FAST, "--compile", "false", "--out", eager)
    assert "holds results already" in message
    assert {p.name: p.read_bytes() for p in eager.iterdir()} == before


def test_a_slow_activation_is_found(tmp_path):
    slow = "tests.bench.slow.ThriceGELU"
    argv = ["activations", "--device", "cpu", "--activations", "gelu", slow, "--baseline", "gelu"]
    argv += ["--sizes", "8x65x768", "--dtypes", "float32", "--compile", "false", "--rounds", "7"]
    assert main([*argv, "--min_time", "0.005", "--out", str(tmp_path / "o")]) == 0
    rows = json.loads((tmp_path / "o" / "bench.json").read_text())["rows"]
    row = next(r for r in rows if r["activation"] == slow)
    assert row["forward"]["ratio"]["value"] >= 1.5
    assert row["both"]["ratio"]["value"] >= 1.5


def test_compiled_code_has_tables_of_its_own(tmp_path, capsys):
    argv = ["activations", *FAST, "--activations", "gelu_sigmoid", "identity", "--baseline", "gelu_sigmoid"]
    argv += ["--sizes", "2x3x64", "--dtypes", "float32", "--compile", "both", "--out", str(tmp_path / "o")]
    assert main(argv) == 0
    out = capsys.readouterr().out
    rows = json.loads((tmp_path / "o" / "bench.json").read_text())["rows"]
    assert [(r["mode"], r["activation"]) for r in rows] == [
        (m, a) for m in ("eager", "compiled") for a in ("gelu_sigmoid", "identity")
    ]
    assert [r["compile"] and r["compile"]["graphs"] for r in rows] == [None, None, 1, 0]
    assert rows[2]["compile"]["seconds"] > 0
    assert rows[2]["compile"]["graph_breaks"] == 0
    assert rows[2]["error"]["forward"] < 1e-5
    assert "float32, eager" in out
    assert "float32, compiled" in out


def test_twenty_competitors_are_all_compiled():
    """Dynamo keeps eight versions of one function and then runs eagerly; each of ours has its own."""
    for name in ACTIVATIONS:
        module, x = build_activation(name), torch.randn(2, 8, requires_grad=True)
        before = counted()
        compile_alone(module, backend="eager")(x)
        after = counted()
        assert after[0] - before[0] == (0 if name == "identity" else 1), name
        assert after[1] == before[1], name
    for width in range(10, 20):
        before = counted()
        compile_alone(module, backend="eager")(torch.randn(2, 2 * width))
        assert counted()[0] == before[0] + 1


def test_what_torch_compile_left_out_is_said():
    assert check_compiled("gelu", Compilation(1.0, 1, 0, False)) == []
    assert "3 graph breaks" in check_compiled("mine.Act", Compilation(1.0, 4, 3, False))[0]
    with pytest.raises(RuntimeError, match="compiled nothing"):
        check_compiled("mine.Act", Compilation(1.0, 0, 0, False))
    with pytest.raises(RuntimeError, match="graph breaks"):
        check_compiled("gelu", Compilation(1.0, 2, 1, False))


def test_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vit_gelu.bench.training.device_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr("vit_gelu.training.exclusivity.Exclusivity.check", lambda self: False)
    argv = [
        "training",
        *FAST,
        "--activations",
        "gelu",
        "swiglu",
        "gelu_stochastic",
        "--out",
        str(tmp_path / "o"),
    ]
    argv += [
        "--model.depth",
        "1",
        "--model.embed_dim",
        "48",
        "--model.pooling",
        "mean",
        "--batch_size",
        "2",
        "--precision",
        "bf16-mixed",
    ]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert "not for publication" in captured.err
    assert "relu is measured as well" in captured.err
    record = json.loads((tmp_path / "o" / "bench.json").read_text())
    assert record["exclusive"] is False
    assert [r["activation"] for r in record["rows"]] == ["gelu", "swiglu", "gelu_stochastic", "relu"]
    row = record["rows"][0]
    assert (row["precision"], row["batch"], row["overrides"]) == (
        "bf16-mixed",
        2,
        "embed_dim=48 depth=1 pooling=mean",
    )
    train, inference = row["train"], row["inference"]
    assert train["images_per_second"] == pytest.approx(2 / train["seconds"]["median"])
    assert train["mfu"] == pytest.approx(train["flops_per_image"] * train["images_per_second"] / 1e12)
    # Closed form of the forward pass: patches, qkv + proj + MLP, the two attention products, head.
    d, n = 48, 65
    forward = 2 * 64 * d * 48 + 2 * n * 12 * d * d + 4 * n * n * d + 2 * d * 10
    assert inference["flops_per_image"] == forward
    assert train["flops_per_image"] == 3 * forward - 2 * 64 * d * 48
    # One hidden tensor (b, n, 4d) in bfloat16 more than ReLU.
    assert row["kept_bytes"] - record["rows"][3]["kept_bytes"] == 2 * n * 4 * d * 2
    assert row["peak_memory_bytes"] is None


def test_time_limit_says_what_was_left_out(tmp_path, capsys, monkeypatch):
    class Soon:
        """Passes once the first comparison is through."""

        def __init__(self, seconds):
            self.asked = 0

        def __call__(self):
            self.asked += 1
            return self.asked > 15

    monkeypatch.setattr(bench_options, "Deadline", Soon)
    argv = ["activations", *FAST, "--activations", "relu", "--compile", "false", "--time_limit", "9"]
    assert main([*argv, "--sizes", "2x3x8", "--out", str(tmp_path / "o")]) == 0
    record = json.loads((tmp_path / "o" / "bench.json").read_text())
    assert [r["dtype"] for r in record["rows"]] == ["float32"]
    assert record["left_out"] == ["2x3x8, batch 2, bfloat16, eager"]
    assert "left out, --time_limit reached: 2x3x8, batch 2, bfloat16, eager" in capsys.readouterr().err
    monkeypatch.setattr(Soon, "__call__", lambda self: True)
    assert "before a single comparison" in refusal(capsys, *argv, "--out", tmp_path / "p")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ["activations or training"]),
        (["activation"], ["Did you mean 'activations'"]),
        (["activations", "--activations", "glue"], ["--activations", "'glue'", "'gelu'"]),
        (["activations", "--activations", "relu", "relu"], ["relu is named twice"]),
        (["activations", "--baseline", "rellu"], ["--baseline", "'relu'"]),
        (["activations", "--dtypes", "float23"], ["--dtypes", "float23", "float32"]),
        (["activations", "--dtypes", "float16"], ["--dtypes float16", "only on a GPU", "bfloat16"]),
        (["activations", "--sizes", "Ti/4@33"], ["--sizes", "Ti/4@33", "Ti/4@32", "BATCHxTOKENSxHIDDEN"]),
        (["activations", "--sizes", "Ti/4@32:0"], ["batch", "at least 1"]),
        (["activations", "--sizes", "0x3x8"], ["0x3x8", "at least 1"]),
        (["activations", "--rounds", "1"], ["--rounds", "at least 2"]),
        (["activations", "--min_time", "0"], ["--min_time", "> 0"]),
        (["activations", "--time_limit", "soon"], ["--time_limit", "soon", "seconds"]),
        (["activations", "--compile", "yes"], ["--compile", "'yes'", "true, false, both"]),
        (["activations", "--device", "gpu"], ["--device", "'gpu'", "cuda"]),
        (["activations", "--round", "3"], ["--round", "Did you mean --rounds"]),
        (["training", "--model.name", "vit_tin"], ["--model.name", "vit_tiny"]),
        (["training", "--model.patch_size", "5"], ["patch_size", "5"]),
        (["training", "--model.num_heads", "5"], ["num_heads", "5"]),
        (["training", "--model.optimizer", "adamv"], ["--model.optimizer", "'adam'"]),
        (["training", "--model.dept", "5"], ["--model.depth"]),
        (["training", "--sizes", "2x3x8"], ["--sizes", "Ti/4@32"]),
        (["activations", "--activations", "tests.bench.slow.Broken", "--sizes", "2x3x8"],
         ["tests.bench.slow.Broken", "not today"]),
    ],
    ids=lambda v: "-".join(v)[:60],
)  # fmt: skip
def test_mistakes(capsys, tmp_path, argv, expected):
    given = ["--out", tmp_path / "o"] if argv and argv[0] in ("activations", "training") else []
    given += ["--compile", "false"] if given and "--compile" not in argv else []
    given += ["--device", "cpu"] if given and "--device" not in argv else []
    message = refusal(capsys, *argv, *given)
    for part in expected:
        assert part in message, message
    assert not (tmp_path / "o").exists()


def test_devices_that_are_not_there(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU" in refusal(capsys, "activations", "--device", "cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert "Choices: cpu, cuda:0" in refusal(capsys, "training", "--device", "cuda:1")


def test_no_compiler(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no_such_compiler")
    message = refusal(capsys, "activations", "--device", "cpu", "--out", tmp_path / "o")
    assert "--compile both: no no_such_compiler" in message
    assert "--compile false" in message
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="triton"):
        bench_options.require_compiler("--compile true", "cuda")


def test_an_output_that_is_a_file(capsys, tmp_path):
    (tmp_path / "o").write_text("x")
    message = refusal(capsys, "activations", "--device", "cpu", "--compile", "false", "--out", tmp_path / "o")
    assert "is a file" in message


@pytest.mark.parametrize("argv", [["--help"], ["activations", "--help"], ["training", "-h"]])
def test_help_imports_no_torch(argv):
    code = f"import sys\nfrom vit_gelu.cli import main\nmain(['bench', *{argv!r}])\n"
    code += "assert not {'torch', 'lightning', 'numpy', 'matplotlib', 'rich'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: vit-gelu bench")
    assert "examples:" in done.stdout
    assert len(done.stdout.splitlines()) <= 50


def test_tuned_products_and_half_tokens_where_they_cannot_be(capsys):
    error = refusal(capsys, "training", *FAST, "--compile", "max-autotune")
    assert "--compile max-autotune: needs a CUDA GPU; this run is on cpu" in error
    assert "true, false, both" in refusal(capsys, "activations", *FAST, "--compile", "max-autotune")
    half = ["--model.residual_precision", "half"]
    assert "means nothing in float32" in refusal(capsys, "training", *FAST, *half, "--dtypes", "float32")
    assert "unknown stem 'cnv'. Did you mean 'conv'" in refusal(
        capsys, "training", *FAST, "--model.stem", "cnv"
    )


def test_cuda_graphs_where_they_cannot_be(capsys, monkeypatch):
    assert "needs a CUDA GPU, and the device is cpu" in refusal(
        capsys, "training", *FAST, "--cuda_graphs", "true"
    )
    assert "--cuda_graphs" in refusal(capsys, "training", *FAST, "--cuda_graphs", "maybe")

    gpu = torch.device("cuda")
    with pytest.raises(UsageError, match="not in float16"):
        check_graphs(gpu, ["float32", "float16"], "adamw")
    with pytest.raises(UsageError, match="the step of sgd cannot be recorded; take adamw or muon"):
        check_graphs(gpu, ["bfloat16"], "sgd")
    check_graphs(gpu, ["bfloat16"], "muon")
