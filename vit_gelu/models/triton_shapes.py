"""Which shapes the attention by Triton is for; loads no Triton."""

import torch


def fits_on_chip(tokens: int, head_dim: int, dtype: torch.dtype) -> bool:
    """Whether it is for them: the scores of more tokens do not fit into the registers of one program."""
    return tokens <= 128 and head_dim <= 128 and dtype in (torch.bfloat16, torch.float16)


def beside_a_tile(tokens: int) -> bool:
    """Whether it computes the last token by itself: a tile of twice the size would be half empty."""
    return tokens - 1 in (16, 32, 64)
