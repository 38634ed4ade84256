"""Finding out what the user's word for a checkpoint means, and reading that."""

import re
from pathlib import Path

from vit_gelu.models.pretrained.checkpoint import CLIP, IMAGENET, INCEPTION, OPTION, Pretrained
from vit_gelu.models.pretrained.files import SUFFIXES, read_npz, read_state, sha256_of
from vit_gelu.models.pretrained.google import from_npz
from vit_gelu.models.pretrained.infer import infer_options, is_clips
from vit_gelu.models.pretrained.keys import account, leave_out, shapes_of
from vit_gelu.models.pretrained.layouts import to_timm_names
from vit_gelu.models.pretrained.runs import is_run_folder, read_run
from vit_gelu.models.pretrained.timm_checkpoint import CONFIG, read_hub, read_timm_folder, read_timm_name
from vit_gelu.suggest import nearest

HUB = re.compile(r"hf[-_]hub:(?P<repository>.*)")


def read_pretrained(source: str, *, image_size: tuple[int, int] | None = None) -> Pretrained:
    """Read a checkpoint and understand its architecture; every key of the file is used, or the file refused.

    Args:
        source: one of

            - a file or folder on this disk: ``.safetensors``, ``.pth``, ``.pt``, ``.bin`` (a state dict in timm's,
              torchvision's, CLIP's or DINOv2's names), ``.npz`` (Google's), a folder of timm's (``config.json``
              and weights), one of our run folders or ``.ckpt`` files;
            - ``hf-hub:owner/name`` or ``hf-hub:owner/name@revision``, a repository of timm's format;
            - a name of timm's with tag, such as ``vit_base_patch16_224.augreg_in21k``.

        image_size: height, width of the images that the checkpoint was **trained** on; only for a bare file whose
            position embeddings are not of a square grid. (What it is to be resized to is ``build_pretrained``'s.)

    Raises:
        ValueError: whatever is wrong with the source, in the user's words.
    """
    if not source.strip():
        raise ValueError(f"{OPTION}: empty; give a file, a folder, hf-hub:owner/name or a name of timm's")
    hub = HUB.fullmatch(source)
    if hub:
        if not hub["repository"]:
            raise ValueError(f"{OPTION} {source}: needs a repository after the colon, owner/name")
        return read_hub(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, source)
    if path.is_file():
        return _read_file(path, source, image_size)
    if "/" in source or source.startswith((".", "~")) or source.endswith(SUFFIXES):
        raise ValueError(_no_such_path(path, source))
    return read_timm_name(source)


def _no_such_path(path: Path, source: str) -> str:
    if re.fullmatch(r"[\w-]+/[\w.-]+(@[\w.-]+)?", source) and not source.endswith(SUFFIXES):
        return f"{OPTION} {source}: no such file or folder; a repository of the hub is hf-hub:{source}"
    present = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    close = nearest(path.name, present, n=2)
    hint = f"; did you mean {' or '.join(str(path.parent / name) for name in close)}?" if close else ""
    return f"{OPTION} {source}: no such file or folder{hint}"


def _read_folder(folder: Path, source: str) -> Pretrained:
    if (folder / CONFIG).is_file():
        return read_timm_folder(folder, source)
    if is_run_folder(folder):
        return read_run(folder, source)
    files = sorted(p.name for p in folder.iterdir() if p.name.endswith(SUFFIXES))
    hint = f"; give one of its files: {', '.join(files[:3])}" if files else ""
    raise ValueError(
        f"{OPTION} {source}: neither a folder of timm's ({CONFIG} and weights) nor one of our runs "
        f"(checkpoints/last.ckpt){hint}"
    )


def _read_file(path: Path, source: str, image_size: tuple[int, int] | None) -> Pretrained:
    if path.suffix == ".ckpt":
        return read_run(path, source)
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{OPTION} {source}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    if path.suffix == ".npz":
        state, options, notes = from_npz(read_npz(path), source, image_size)
        origin, layout, (mean, std) = "google", "google", INCEPTION
    else:
        raw, notes = read_state(path)
        state, layout = to_timm_names(raw, source)
        state, left = leave_out(state, layout)
        options, assumed = infer_options(state, layout, source, image_size)
        notes += [*assumed, *left]
        origin = "torchvision" if layout == "torchvision" else "timm"
        clips = is_clips(state, layout)
        mean, std = CLIP if clips else IMAGENET
    account(shapes_of(options), state, source)
    channels = options["in_channels"]
    if channels != 3:
        mean, std = (0.5,) * channels, (0.5,) * channels
    if origin == "timm":
        whose = "0.5" if channels != 3 else "CLIP's" if clips else "ImageNet's"
        notes.append(
            f"mean and std {whose}: assumed, the file does not say (others: --data.mean and --data.std, or a timm "
            "folder with config.json)"
        )
    return Pretrained(source, path.stem, origin, options, state, mean, std, sha256_of(path), tuple(notes))
