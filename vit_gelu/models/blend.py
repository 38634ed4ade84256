"""A blend of two activations, and the number that steers it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Alpha:
    """The weight of the new activation, one number for all places.

    A tensor on the network's device, shape (), float32, which is written in place: compiled code reads it anew at
    each call, without being compiled again and without waiting for the device. It is no buffer: no state dict has it.
    """

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.tensor = torch.zeros(())

    def set(self, value: float) -> None:
        with torch.no_grad():
            self.tensor.fill_(value)


class Anneal(nn.Module):
    """(1 − α)·old(x) + α·new(x); at α = 0 the very values of old(x), at α = 1 those of new(x), bit for bit.

    Both are computed at every α, so that one compiled graph serves for all. The old one's parameters are frozen; the
    new one's are there from the start, with gradients in proportion to α. A stochastic activation draws its noise at
    each call, whatever α is: blended is one draw of it, not its mean.

    Args:
        old, new: activations of equal shapes.
        alpha: shared among the places of a network.

    Shapes: as those of the two.
    """

    def __init__(self, old: nn.Module, new: nn.Module, alpha: Alpha | None = None) -> None:
        super().__init__()
        self.old, self.new = old.requires_grad_(False), new
        if getattr(old, "inplace", False):
            old.inplace = False  # type: ignore[assignment]  # it would change the x that new sees
        self.alpha = Alpha() if alpha is None else alpha
        self.gated = getattr(new, "gated", False)

    def forward(self, x: Tensor) -> Tensor:
        old, new, alpha = self.old(x), self.new(x), self.alpha.tensor
        blend = (1 - alpha) * old + alpha * new
        # Chosen, not multiplied by zero: that would leave -0.0 as 0.0, and an infinity of the other one as NaN.
        return torch.where(alpha == 0, old, torch.where(alpha == 1, new, blend))

    def set_alpha(self, value: float) -> None:
        """Set α, 0 to 1, for all places that share it.

        Raises:
            ValueError: outside of [0, 1].
        """
        if not 0 <= value <= 1:
            raise ValueError(f"alpha {value}: must lie between 0 and 1")
        self.alpha.set(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Anneal":
        super()._apply(fn, recurse)
        # Where the network goes, α goes, but stays float32.
        device = fn(torch.empty(0, device=self.alpha.tensor.device)).device
        if device != self.alpha.tensor.device:
            self.alpha.tensor = (
                torch.zeros((), device=device) if device.type == "meta" else self.alpha.tensor.to(device)
            )
        return self
