"""An activation of a user's own that does GELU's work three times over."""

import torch


class ThriceGELU(torch.nn.Module):
    def forward(self, x):
        y = torch.nn.functional.gelu(x)
        return (y + torch.nn.functional.gelu(x) + torch.nn.functional.gelu(x)) / 3


class Broken(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("not today")
