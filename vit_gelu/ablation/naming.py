"""How numbers and arms are written for people."""

import math

from vit_gelu.ablation.statistics import Interval

PLAIN = {
    "gelu": "GELU",
    "gelu_tanh": "tanh GELU",
    "gelu_sigmoid": "sigmoid GELU",
    "gelu_learnable": "learnable GELU",
    "gelu_stochastic": "stochastic GELU",
    "relu": "ReLU",
    "elu": "ELU",
    "silu": "SiLU",
    "laplace_lu": "Laplace LU",
    "leaky_relu": "leaky ReLU",
    "prelu": "PReLU",
    "relu_squared": "squared ReLU",
    "mish": "Mish",
    "hardswish": "hard-swish",
    "softplus": "softplus",
    "tanh": "tanh",
    "identity": "identity",
    "swiglu": "SwiGLU",
    "geglu": "GEGLU",
    "reglu": "ReGLU",
}


def display(arm: str) -> str:
    """An arm's name in running text; options in brackets stay, other names are left as they are.

    >>> display("gelu_tanh"), display("elu (alpha=0.5)"), display("mine")
    ('tanh GELU', 'ELU (alpha=0.5)', 'mine')
    """
    name, bracket, rest = arm.partition(" (")
    return PLAIN.get(name, name) + bracket + rest


def capital(text: str) -> str:
    """The first letter in upper case."""
    return text[:1].upper() + text[1:]


def number(value: float | None, digits: int, sign: bool = False) -> str:
    """A number with so many decimals and a true minus sign; never "−0.00"; a dash where there is none.

    >>> number(-0.001, 2), number(0.5, 2, sign=True), number(-1.234, 2), number(None, 2)
    ('0.00', '+0.50', '−1.23', '–')
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value).replace("-", "−")
    rounded = round(value, digits) + 0.0
    text = f"{abs(rounded):.{digits}f}"
    if rounded == 0:
        return text
    return ("−" if rounded < 0 else "+" if sign else "") + text


def interval(ends: Interval | None, digits: int, sign: bool = False) -> str:
    """``[0.21, 0.63]``; a dash where there is none."""
    if ends is None:
        return "–"
    return f"[{number(ends.low, digits, sign)}, {number(ends.high, digits, sign)}]"


def probability(p: float) -> str:
    """A p-value, never shown as 0.

    >>> probability(0.0), probability(0.0412), probability(0.3)
    ('< 0.0001', '0.0412', '0.30')
    """
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"


def chance(p: float) -> str:
    """A probability in per cent; "0 %" and "100 %" are left to certainty.

    >>> chance(0.5), chance(0.9996), chance(1.0)
    ('50 %', '> 99 %', '100 %')
    """
    if 0 < p < 0.01:
        return "< 1 %"
    return "> 99 %" if 0.99 < p < 1 else f"{100 * p:.0f} %"


def listing(names: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
