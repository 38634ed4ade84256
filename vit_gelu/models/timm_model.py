"""Any classifier of timm as the network of a run: ``--model.name timm/NAME``, with its activation swapped in place."""

import copy
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vit_gelu.activations.recognition import describe_activation
from vit_gelu.models import options
from vit_gelu.models.activation_places import find_places
from vit_gelu.models.pretrained.hub import fetch
from vit_gelu.models.swap import swap_activations
from vit_gelu.randomness import key
from vit_gelu.suggest import nearest

PREFIX = "timm/"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def check_timm_name(name: str) -> str:
    """``NAME`` of ``timm/NAME``, with its tag if it has one.

    Raises:
        ValueError: timm has no such model or tag; names the nearest.

    >>> check_timm_name("timm/resnet18")
    'resnet18'
    """
    import timm

    wanted = name.removeprefix(PREFIX)
    architecture, _, tag = wanted.partition(".")
    if not timm.is_model(architecture):
        close = nearest(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(PREFIX + c for c in close)}?" if close else ""
        raise ValueError(
            f"--model.name {name}: timm {timm.__version__} has no model {architecture!r}.{hint} "
            f"All: python -c \"import timm; print(timm.list_models('*vit*'))\""
        )
    if tag:
        tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
        if tag not in tags:
            close = nearest(tag, tags, n=3) or tags[:3]
            raise ValueError(
                f"--model.name {name}: {architecture} has no weights called {tag!r}. "
                + (f"There are: {', '.join(close)}" if tags else "timm has none of it at all")
            )
    return wanted


class TimmModel(nn.Module):
    """A classifier of timm, as it comes, but for its activations.

    Names of parameters are timm's own: state dicts load into ``timm.create_model(NAME, …)`` and back. Which
    activations are swapped is said by ``vit_gelu.models.activation_places``: the MLPs', or in a network without MLPs
    all that are no gates.

    Args:
        name: ``timm/NAME``, with or without a tag.
        num_classes: classes.
        image_size: pixels, one number or (height, width).
        in_channels: channels of the images.
        activation: a name or import path that ``build_activation`` knows; None: the model's own.
        activation_kwargs: the activation's own options.
        seed: fixes the initial weights; None: drawn from torch's global generator.
        pretrained: start from timm's weights for that tag, loaded strictly into a model with their number of
            classes; a head for another number is new. Not in ``config``, as a checkpoint has weights of its own.
        native_activation: what the model's own activation is; given, it is checked, so that a timm which builds another
            one is refused rather than believed.
        kwargs: options of the model itself, plain values, such as ``drop_path_rate``.

    Attributes:
        config: these arguments as plain values, so that ``TimmModel(**config)`` is the same model.
        native_activation: the model's own activation by name, such as ``gelu``; several, joined by a comma; None where
            there is nothing to swap.
        timm_model: timm's module; its parameters are this module's.

    Shapes: float images (b, in_channels, height, width) -> logits (b, num_classes).

    Raises:
        ValueError: unknown name, an option that the model does not have, images that it cannot take, weights that
            are not there, or no activation to swap.
    """

    timm_model: Any

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        image_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        activation: str | None = None,
        activation_kwargs: dict[str, Any] | None = None,
        *,
        seed: int | None = None,
        pretrained: bool = False,
        native_activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        wanted = check_timm_name(name)
        size = options.pair("image_size", image_size)
        options.whole("num_classes", num_classes)
        options.whole("in_channels", in_channels)
        _check_plain(name, kwargs)
        if activation is None and activation_kwargs:
            raise ValueError(f"--model.activation_kwargs {activation_kwargs}: needs --activation")
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu"))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(key(seed, "init", "timm"))
            model = _create(wanted, num_classes, size, in_channels, pretrained, kwargs)
        # One set of children, two objects: parameters are called as timm calls them, and timm's code runs on them.
        object.__setattr__(self, "timm_model", model)
        self._modules, self._parameters, self._buffers = model._modules, model._parameters, model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self.config: dict[str, Any] = copy.deepcopy(
            {
                "name": PREFIX + wanted,
                "num_classes": num_classes,
                "image_size": list(size),
                "in_channels": in_channels,
                "activation": None,
                "activation_kwargs": {},
                "seed": seed,
                **{k: v for k, v in kwargs.items() if not k.startswith("pretrained_")},
            }
        )
        self.native_activation = own_activation(self)
        if native_activation is not None and native_activation != self.native_activation:
            raise ValueError(
                f"--model.name {name}: its own activation was {native_activation}, but this timm builds it with "
                f"{self.native_activation}"
            )
        self.config["native_activation"] = self.native_activation
        if activation is not None:
            try:
                swap_activations(self, activation, to_kwargs=activation_kwargs)
            except ValueError as error:
                raise ValueError(f"--model.name {name}: {error}") from None
        _check_images(name, self, size, in_channels, num_classes)

    def train(self, mode: bool = True) -> "TimmModel":
        super().train(mode)
        self.timm_model.training = mode
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.timm_model(images)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay should leave alone: timm's list, and learnable activations'."""
        rule = getattr(self.timm_model, "no_weight_decay", None)
        listed = set(rule()) if callable(rule) else set()
        return listed | {n for n, p in self.named_parameters() if getattr(p, "no_weight_decay", False)}

    def extra_repr(self) -> str:
        return f"{self.config['name']!r}, activation={self.config['activation'] or self.native_activation!r}"


def own_activation(model: nn.Module) -> str | None:
    """Names of the activations that a swap would replace, joined by a comma; None where there are none."""
    try:
        places, _ = find_places(model)
    except ValueError:
        return None
    return ", ".join(dict.fromkeys(describe_activation(place.module) for place in places))


def _check_plain(name: str, kwargs: dict[str, Any]) -> None:
    try:
        json.dumps(kwargs)
    except (TypeError, ValueError):
        raise ValueError(f"--model.name {name}: options {kwargs} are not plain values") from None
    taken = {"in_chans": "in_channels", "img_size": "image_size", "act_layer": "activation"}
    for option in kwargs:
        if option in taken:
            raise ValueError(f"--model.name {name}: say {taken[option]}, not {option}")


def _create(
    wanted: str,
    num_classes: int,
    size: tuple[int, int],
    in_channels: int,
    pretrained: bool,
    kwargs: dict[str, Any],
) -> Any:
    import timm
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(wanted)
    sized = bool(cfg is not None and cfg.fixed_input_size)
    arguments: dict[str, Any] = {"in_chans": in_channels, **({"img_size": size} if sized else {}), **kwargs}
    if not pretrained:
        arguments["num_classes"] = num_classes
    elif cfg is not None and cfg.hf_hub_id and "pretrained_cfg_overlay" not in kwargs:
        # Not by timm, which asks the hub even for what is in the cache, and for a minute where there is no network.
        names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else WEIGHTS
        file = fetch(cfg.hf_hub_id, names, PREFIX + wanted, option="--model.name")
        arguments["pretrained_cfg_overlay"] = {"file": str(file)}
    where = f"--model.name {PREFIX}{wanted}"
    try:
        # With timm's own number of classes its weights load strictly; with another, timm asks for nothing.
        model: Any = timm.create_model(wanted, pretrained=pretrained, **arguments)
    except TypeError as error:
        raise ValueError(f"{where}: does not take these options: {_line(error)}") from None
    except Exception as error:  # asserts, runtime errors of the loader, errors of the network
        if pretrained:
            from huggingface_hub.constants import HF_HUB_CACHE

            raise ValueError(
                f"{where}: its pretrained weights cannot be loaded: {_line(error)}\n"
                f"They are looked for in {HF_HUB_CACHE}; fill it where there is a network, or train without"
            ) from None
        raise ValueError(
            f"{where}: cannot be built for {size[0]} × {size[1]} images: {_line(error)}"
        ) from None
    _check_patches(where, model, size)
    if pretrained and model.num_classes != num_classes:
        model.reset_classifier(num_classes)
    return model


def _check_patches(where: str, model: Any, size: tuple[int, int]) -> None:
    """timm leaves out, without a word, the pixels that do not fill a patch."""
    projection: Any = getattr(getattr(model, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.kernel_size != projection.stride:
        return
    if getattr(model.patch_embed, "dynamic_img_pad", False):
        return
    height, width = projection.kernel_size
    if size[0] % height or size[1] % width:
        raise ValueError(
            f"{where}: {size[0]} × {size[1]} images are not divisible into patches of {height} × {width}"
        )


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def _check_images(
    name: str, net: TimmModel, size: tuple[int, int], in_channels: int, num_classes: int
) -> None:
    """Run one image: many models only find out in their forward that a size does not suit them."""
    parameter = next(net.parameters())
    image = torch.zeros(1, in_channels, *size, device=parameter.device)
    net.eval()
    try:
        with torch.no_grad():
            out = net(image)
    except Exception as error:  # asserts and shape errors of a thousand models
        raise ValueError(
            f"--model.name {name}: cannot take {in_channels} × {size[0]} × {size[1]} images: {_line(error)}"
        ) from None
    finally:
        net.train()
    if not isinstance(out, Tensor) or out.shape != (1, num_classes):
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"--model.name {name}: is no classifier: it gives {shape} for an image, not {(1, num_classes)}"
        )
