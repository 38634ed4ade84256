"""The model card (``README.md``) of an export: what it is, how it did, how to use it, how it was made."""

from typing import Any

import yaml

from vit_gelu import __version__
from vit_gelu.export.trained import Trained
from vit_gelu.models import VisionTransformer

PRIVATE = ("root", "default_root_dir", "pretrained")  # paths of the machine
SPLITS = {"test": "test", "val": "validation"}


def results(trained: Trained) -> list[str]:
    """Lines about accuracy, from the run's record; says so where the numbers are of other weights or there are none."""
    record = trained.record
    if record is None or record.get("status") != "finished":
        return ["No results: the run that this is from has no finished record."]
    data = record["dataset"]
    tested = record.get("tested") or "last"
    lines = []
    # Tested are the weights of one checkpoint; another one of the same run is something else.
    if trained.checkpoint.stem != tested and not _same_step(trained, record, tested):
        lines += [
            f"The numbers are those of the run's `{tested}` checkpoint; **these weights are its "
            f"`{trained.checkpoint.stem}` checkpoint** (step {trained.card['step']:,}) and were not tested.",
            "",
        ]
    scores = {name: record[split] for split, name in SPLITS.items() if record.get(split)}
    classifies = any("top1" in score for score in scores.values())
    lines += [
        "| split | images | top-1 | loss |" if classifies else "| split | images | loss of masked pixels |"
    ]
    lines += ["|---|---|---|" + "---|" * classifies]
    for name, score in scores.items():
        top1 = f"{100 * score['top1']:.2f} % | " if classifies else ""
        lines.append(f"| {data['name']}, {name} | {score['n']:,} | {top1}{score['loss']:.4f} |")
    lines += ["", f"One run, seed {record['seed']}: its spread over seeds is not in these numbers."]
    return lines


def _same_step(trained: Trained, record: dict[str, Any], tested: str) -> bool:
    best = (record.get("best") or {}).get("step")
    steps = {"last": record.get("steps"), "best": best}
    return steps.get(tested) == trained.card["step"]


def model_card(trained: Trained, architecture: str) -> str:
    """The card of a timm folder, Markdown with the hub's front matter.

    Args:
        trained: what is exported.
        architecture: timm's name.
    """
    data, net = trained.card["data"], trained.net
    parameters = sum(p.numel() for p in net.parameters())
    channels, height, width = trained.image_shape
    classes = len(trained.class_names)
    task = "image-classification" if classes else "image-feature-extraction"
    front: dict[str, Any] = {"library_name": "timm", "tags": [task, "timm", "vit_gelu"]}
    origin = trained.card.get("origin") or {}
    began = f", from the checkpoint `{origin['name']}` ({origin['origin']})" if origin else ""
    network = yaml.safe_dump(net.config, sort_keys=False, allow_unicode=True).strip()
    run: dict[str, Any] = {
        part: {k: v for k, v in trained.options[part].items() if v is not None and k not in PRIVATE}
        for part in ("model", "data", "trainer")
        if part in trained.options
    }
    if "data" in run:
        run["data"]["name"] = data["name"]  # not the path of a folder
    seed = trained.card["seed"]
    recipe = yaml.safe_dump({"seed_everything": seed, **run}, sort_keys=False, allow_unicode=True).strip()
    mean, std = ([round(v, 4) for v in values] for values in (trained.mean, trained.std))
    title = architecture
    if isinstance(net, VisionTransformer):  # timm's name is but an entry whose options are all overridden
        title = f"ViT, width {net.config['embed_dim']}, depth {net.config['depth']}"
    more = ", … (`label_names` in config.json)" if classes > 20 else ""
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        f"# {title}, {trained.activation}, trained on {data['name']}",
        "",
        f"An image {f'classifier of {classes} classes' if classes else 'encoder without a head'} with {parameters:,} "
        f"parameters, activation **{trained.activation}**, trained with vit_gelu {__version__}{began}.",
        "",
        *(f"{note}\n" for note in trained.notes),
        "## Results",
        "",
        *results(trained),
        "",
        "## Use",
        "",
        "```python",
        "import timm",
        "",
        'model = timm.create_model("local-dir:PATH/OF/THIS/FOLDER", pretrained=True).eval()',
        "```",
        "",
        f"Images: {channels} × {height} × {width}, pixels scaled to 0-1, then mean {mean} and std {std} per channel "
        "(`timm.data.resolve_model_data_config(model)` has them)."
        + (f" Classes in order: {', '.join(trained.class_names[:20])}{more}." if classes else ""),
        "",
        "## How it was made",
        "",
        f"Checkpoint `{trained.checkpoint.name}`, epoch {trained.card['epoch']}, step {trained.card['step']:,}, seed "
        f"{seed}; data fingerprint `{data['fingerprint']}`.",
        "",
        "The network:",
        "",
        "```yaml",
        network,
        "```",
    ]
    if run:
        lines += ["", "The run's options (`config.yaml`):", "", "```yaml", recipe, "```"]
    return "\n".join(lines) + "\n"
