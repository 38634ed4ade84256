"""What a forward pass keeps for the backward pass: counted tensor by tensor, not guessed."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def kept_for_backward(
    forward: Callable[[], Tensor],
    *,
    exclude: Iterable[Tensor] = (),
    also: Callable[[Tensor], Iterable[Tensor]] = lambda output: (),
) -> int:
    """Bytes of memory that autograd holds from a forward pass until its backward pass.

    Each storage counts once, with its whole size, however many tensors and views of it are saved: that is
    what cannot be freed.

    Args:
        forward: runs it and returns its output.
        exclude: tensors that live anyway, such as parameters.
        also: of the output, tensors that what comes after the forward pass will keep.

    Returns:
        Bytes.

    >>> x = torch.zeros(1000, requires_grad=True)
    >>> kept_for_backward(lambda: x.sin().exp())  # sin keeps its input, exp its output
    8000
    """
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    saved.extend(also(output))
    # The list keeps all of them alive, so an address stands for one storage.
    sizes = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in saved)}
    for tensor in exclude:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())
