"""One image file to one tensor."""

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps
from torch import Tensor

from vit_gelu.data.resize import centre, covering_size

# What Pillow's decoders raise on damaged files, besides OSError (whose subclasses say most of it).
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def decode_image(path: Path | str, image_size: tuple[int, int], channels: int = 3) -> Tensor:
    """Decode one image file: upright (EXIF), RGB or grey, covering ``image_size``, centre cropped.

    The short side is resized with a bicubic, antialiased filter. Transparency is dropped; of an animation
    the first frame is taken.

    Args:
        path: of the file.
        image_size: height and width in pixels.
        channels: 3 for RGB, 1 for grey.

    Returns:
        uint8, shape (channels, *image_size).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no image, is damaged, or has more than 8 bits per channel; names it.
    """
    try:
        with Image.open(path) as opened:
            # Pillow would clip these to 255 and return a white picture.
            if opened.mode == "F" or opened.mode.startswith("I"):
                raise ValueError(f"mode {opened.mode!r} has more than 8 bits per channel: save it with 8")
            image = ImageOps.exif_transpose(opened)
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("RGB" if channels == 3 else "L")
    except FileNotFoundError:
        raise
    except _DAMAGED as error:
        reason = str(error).split("\n")[0].replace(f" {str(path)!r}", " it")
        raise ValueError(f"cannot read the image {path}: {reason}") from error
    height, width = covering = covering_size((image.height, image.width), image_size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    top, left = centre(covering, image_size)
    image = image.crop((left, top, left + image_size[1], top + image_size[0]))
    pixels = torch.from_numpy(np.array(image))
    return rearrange(pixels, "h w c -> c h w" if channels == 3 else "h w -> 1 h w")
