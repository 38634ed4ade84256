"""``vit-gelu evaluate SOURCE --probe``: the features of a checkpoint that is not a run of ours."""

import json
import time
from pathlib import Path
from typing import Any

from vit_gelu.cli.errors import UsageError


def is_run(name: str) -> bool:
    """Whether the subject is, or looks like, a run folder or checkpoint of ours, and no other checkpoint."""
    path = Path(name).expanduser()
    if path.is_dir():
        return not (path / "config.json").is_file()
    on_the_hub = name.startswith(("hf-hub:", "hf_hub:"))
    return path.suffix == ".ckpt" or (not path.exists() and "/" in name and not on_the_hub)


def probe_pretrained(options: Any) -> int:
    """Probe a checkpoint as ``--model.pretrained`` takes it; returns the exit status.

    Args:
        options: of ``vit-gelu evaluate``, with ``probe``.

    Raises:
        UsageError: no data set named, or an option that only a run has.
        ValueError: see ``read_pretrained``, ``build_pretrained`` and ``run_probe``.
    """
    from vit_gelu.cli.device import choose_device
    from vit_gelu.cli.evaluation_data import Split
    from vit_gelu.cli.evaluation_files import PROBE, SCHEMA, refuse_to_overwrite
    from vit_gelu.cli.probing import run_probe
    from vit_gelu.data import ImageData
    from vit_gelu.models.options import pair
    from vit_gelu.models.pretrained import build_pretrained, read_pretrained
    from vit_gelu.training.record import software_and_device, write_json

    if options.data_name is None:
        raise UsageError(f"--data.name: say on which data set the features of {options.run} are to be probed")
    if options.checkpoint is not None:
        raise UsageError(f"--checkpoint {options.checkpoint}: only for a run folder; {options.run} is none")
    device = choose_device(options.device)
    pretrained = read_pretrained(options.run)
    data = ImageData(options.data_name, options.data_root, num_workers=options.num_workers)
    data.follow(pair("image_size", pretrained.options["image_size"]), pretrained.normalization)
    network, changes = build_pretrained(
        pretrained, image_size=data.image_size, in_channels=data.in_channels, num_classes=0
    )
    name = (
        f"evaluation-{data.source.name}-{options.split}-{pretrained.name.replace('/', '-')}-{options.probe}"
    )
    out = Path(options.out).expanduser() if options.out is not None else Path(name)
    refuse_to_overwrite(out, options.overwrite, (PROBE,), "a probe")
    precision, batch_size = options.precision or "32-true", options.batch_size or 512
    started = time.perf_counter()
    found = run_probe(
        options.probe,
        network.eval(),
        Split(data.source, options.split, getattr(data.source, options.split), None),
        shots=options.shots or [10],
        neighbours=options.neighbours or 20,
        mean=data.mean,
        std=data.std,
        upsample=data.upsample,
        batch_size=batch_size,
        device=device,
        precision=precision,
        num_workers=options.num_workers,
    )
    record = {
        "schema": SCHEMA,
        "checkpoint": {"source": pretrained.source, "sha256": pretrained.sha256, "origin": pretrained.origin},
        "changes": [*pretrained.notes, *(change.text for change in changes)],
        "activation": pretrained.options["activation"],
        "dataset": {
            "name": data.source.name,
            "split": options.split,
            "n": len(getattr(data.source, options.split)),
            "fingerprint": data.fingerprint,
        },
        "probe": options.probe,
        **found.record,
        "precision": precision,
        "batch_size": batch_size,
        "seconds": time.perf_counter() - started,
        "env": software_and_device(device),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / PROBE, record)
    if options.json:
        print(json.dumps(record, indent=1, allow_nan=False))
        return 0
    print(
        f"{pretrained.name} on {data.source.name}, {options.split}; {precision} on {record['env']['device']}"
    )
    print(*record["changes"], *found.lines, sep="\n")
    print(f"\nfile: {out / PROBE}")
    return 0
