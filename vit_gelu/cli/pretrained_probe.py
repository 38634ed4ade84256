"""``vit-gelu evaluate SOURCE --probe``: the features of a checkpoint that is not a run of ours."""

import json
import time
from pathlib import Path
from typing import Any

from vit_gelu.cli.opened_pretrained import open_pretrained


def probe_pretrained(options: Any) -> int:
    """Probe a checkpoint as ``--model.pretrained`` takes it; returns the exit status.

    Args:
        options: of ``vit-gelu evaluate``, with ``probe``.

    Raises:
        UsageError: no data set named, or an option that only a run has.
        ValueError: see ``read_pretrained``, ``build_pretrained`` and ``run_probe``.
    """
    from vit_gelu.cli.device import choose_device
    from vit_gelu.cli.evaluation_files import PROBE, SCHEMA, refuse_to_overwrite
    from vit_gelu.cli.probing import run_probe
    from vit_gelu.training.record import software_and_device, write_json

    device = choose_device(options.device)
    subject = open_pretrained(options, "the features of {} are to be probed")
    name = f"{subject.folder_name('evaluation', options.split)}-{options.probe}"
    out = Path(options.out).expanduser() if options.out is not None else Path(name)
    refuse_to_overwrite(out, options.overwrite, (PROBE,), "a probe")
    precision, batch_size = options.precision or subject.precision, options.batch_size or subject.batch_size
    split = subject.split(options.split)
    started = time.perf_counter()
    found = run_probe(
        options.probe,
        subject.net,
        split,
        shots=options.shots or [10],
        neighbours=options.neighbours or 20,
        **subject.as_trained,
        batch_size=batch_size,
        device=device,
        precision=precision,
        num_workers=options.num_workers,
    )
    record = {
        "schema": SCHEMA,
        **subject.record,
        "dataset": {
            "name": split.source.name,
            "split": options.split,
            "n": len(split.images),
            "fingerprint": subject.data.fingerprint,
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
        f"{subject.pretrained.name} on {split.source.name}, {options.split}; {precision} on "
        f"{record['env']['device']}"
    )
    print(*record["changes"], *found.lines, sep="\n")
    print(f"\nfile: {out / PROBE}")
    return 0
