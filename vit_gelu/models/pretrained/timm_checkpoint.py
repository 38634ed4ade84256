"""timm's checkpoints: a name of its registry, a repository of its format, or such a folder on the disk."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_gelu.models.pretrained.checkpoint import OPTION, Pretrained
from vit_gelu.models.pretrained.files import read_state, sha256_of
from vit_gelu.models.pretrained.hub import fetch
from vit_gelu.models.pretrained.keys import account, leave_out, shapes_of
from vit_gelu.models.pretrained.layouts import to_timm_names
from vit_gelu.models.pretrained.timm_architecture import options_from_timm
from vit_gelu.suggest import nearest

CONFIG = "config.json"
WEIGHTS = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit")


def read_timm_name(source: str) -> Pretrained:
    """A model of timm's registry, ``architecture.tag``; without a tag, timm's default one.

    Raises:
        ValueError: unknown name or tag (with the nearest), no weights, an architecture that our options cannot
            express, or a download that failed.
    """
    import timm

    architecture, _, tag = source.partition(".")
    if not timm.is_model(architecture):
        raise ValueError(_unknown_name(source))
    try:
        config = timm.get_pretrained_cfg(source)
    except RuntimeError:  # an unknown tag
        config = None
    if config is None or (tag and config.tag != tag):
        raise ValueError(_unknown_tag(source, architecture))
    name = f"{architecture}.{config.tag}" if config.tag else architecture
    notes = () if tag or not config.tag else (f"tag: {config.tag}, timm's default for {architecture}",)
    model = _build(name, source, {}, None)
    options_from_timm(model, source, architecture)  # before a download that would be in vain
    if not config.hf_hub_id:
        at = f"download {config.url} and give its path" if config.url else "timm has none for it"
        raise ValueError(f"{OPTION} {source}: its weights are not on the hub; {at}")
    names = (config.hf_hub_filename,) if config.hf_hub_filename else WEIGHTS[:2]
    file = fetch(config.hf_hub_id, names, source)
    complete = {**dataclasses.asdict(config), "architecture": architecture}
    return _pretrained(source, name, model, file, complete, notes)


def read_timm_folder(folder: Path, source: str) -> Pretrained:
    """A folder with timm's ``config.json`` and the weights beside it.

    Raises:
        ValueError: one of them is missing or unreadable, or as for ``read_timm_name``.
    """
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{OPTION} {source}: {folder} has a {CONFIG}, but none of {', '.join(WEIGHTS)}")
    return _read(folder / CONFIG, file, source, folder.name)


def read_hub(source: str) -> Pretrained:
    """``hf-hub:owner/name`` or ``hf-hub:owner/name@revision``: a repository of timm's format.

    Raises:
        ValueError: as for ``fetch`` and ``read_timm_folder``.
    """
    repository = source.partition(":")[2]
    config = fetch(repository, (CONFIG,), source)
    parse_config(config, source)  # before a download that would be in vain
    return _read(config, fetch(repository, WEIGHTS, source), source, repository)


def parse_config(path: Path, source: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Architecture, ``model_args`` and pretrained configuration in a timm ``config.json``, old or new form.

    Raises:
        ValueError: not JSON, or not timm's.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{OPTION} {source}: {path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        kind = config.get("model_type") if isinstance(config, dict) else None
        written = f" (of the transformers library, model_type {kind})" if kind else ""
        raise ValueError(
            f"{OPTION} {source}: its {CONFIG} is not timm's{written}: it names no architecture. "
            "A weights file of timm's names may be given by its path"
        )
    inner = dict(config.get("pretrained_cfg") or config)
    if config.get("num_classes") is not None:
        inner["num_classes"] = config["num_classes"]
    return config["architecture"], dict(config.get("model_args") or {}), inner


def _read(config_file: Path, weights: Path, source: str, name: str) -> Pretrained:
    import timm
    from timm.models import PretrainedCfg

    architecture, arguments, config = parse_config(config_file, source)
    if not timm.is_model(architecture):
        raise ValueError(f"{OPTION} {source}: {_unknown_name(architecture).removeprefix(f'{OPTION} ')}")
    fields = {field.name for field in dataclasses.fields(PretrainedCfg)} - {
        "file",
        "url",
        "hf_hub_id",
        "source",
    }
    known = {key: value for key, value in config.items() if key in fields}
    known["architecture"] = architecture
    for key in ("input_size", "mean", "std"):
        if key in known:
            known[key] = tuple(known[key])
    complete = {**dataclasses.asdict(PretrainedCfg()), **known}
    model = _build(architecture, source, arguments, known)
    return _pretrained(source, name, model, weights, complete, ())


def _build(name: str, source: str, arguments: dict[str, Any], config: dict[str, Any] | None) -> Any:
    import timm

    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return timm.create_model(name, pretrained=False, pretrained_cfg=config, **arguments)
    except (TypeError, ValueError, AssertionError, RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"{OPTION} {source}: timm cannot build it: {str(error)[:200]}") from None


def _pretrained(
    source: str, name: str, model: Any, file: Path, config: dict[str, Any], notes: tuple[str, ...]
) -> Pretrained:
    options = options_from_timm(model, source, config["architecture"])
    raw, said = read_state(file)
    nominal = list(model.patch_embed.img_size)
    if options["image_size"] != nominal:
        said.append(
            f"image_size {options['image_size']}: the whole patches of {nominal}, which is all that timm reads"
        )
    state, layout = to_timm_names(raw, source)
    state, left = leave_out(state, layout)
    expected = shapes_of(options)
    if any(key not in expected for key in state):
        state, by_timm = leave_out(state, "timm name")
        left += by_timm
    own_size = _grid_of_the_file(options, state)
    if own_size:
        options, expected = own_size, shapes_of(own_size)
        said.append(f"image_size {options['image_size']}: of the file, other than in its configuration")
    account(expected, state, source)
    return Pretrained(
        source,
        name,
        "timm",
        options,
        state,
        tuple(config["mean"]),
        tuple(config["std"]),
        sha256_of(file),
        (*notes, *said, *left),
        "flexivit" if config["architecture"].startswith("flexivit") else "",
        tuple(map(str, config.get("label_names") or ())),
    )


def _grid_of_the_file(options: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any] | None:
    """Options with the image size that the file's square of position embeddings is for, if it is another."""
    if options["position_embedding"] == "none" or "pos_embed" not in state:
        return None
    tokens = state["pos_embed"].shape[1]
    if not options["no_embed_class"]:
        tokens -= options["class_token"] + options["register_tokens"]
    sides = [i // p for i, p in zip(options["image_size"], options["patch_size"], strict=True)]
    side = math.isqrt(max(tokens, 0))
    if tokens == math.prod(sides) or side == 0 or side * side != tokens:
        return None
    return {**options, "image_size": [side * patch for patch in options["patch_size"]]}


def _names() -> list[str]:
    import timm

    return timm.list_models(module=list(MODULES), pretrained=True, include_tags=True)


def _unknown_name(source: str) -> str:
    names = _names()
    architectures = {name.partition(".")[0] for name in names}
    close = nearest(source, names if "." in source else architectures)
    close = close or nearest(source.partition(".")[0], architectures)
    hint = f" Did you mean {' or '.join(close[:3])}?" if close else ""
    return (
        f"{OPTION} {source}: neither a file, a folder, nor a model that timm knows.{hint} "
        f"timm has {len(names)} pretrained ViTs; hf-hub:owner/name reads a repository"
    )


def _unknown_tag(source: str, architecture: str) -> str:
    from timm.models import get_deprecated_models

    now = get_deprecated_models().get(source) or get_deprecated_models().get(architecture)
    if now:
        return f"{OPTION} {source}: a name that timm has given up; it is {now} now"
    tags = [name.partition(".")[2] for name in _names() if name.partition(".")[0] == architecture]
    if not tags:
        return f"{OPTION} {source}: timm has no pretrained weights for {architecture}"
    close = nearest(source.partition(".")[2], tags, n=2)
    hint = f" Did you mean {' or '.join(f'{architecture}.{tag}' for tag in close)}?" if close else ""
    more = f", … ({len(tags)} in all)" if len(tags) > 8 else ""
    return f"{OPTION} {source}: unknown tag.{hint} Tags of {architecture}: {', '.join(tags[:8])}{more}"
