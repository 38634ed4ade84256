"""Same weights, same logits as torchvision's VisionTransformer, after renaming its parameters."""

import pytest
import torch
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from vit_gelu.models import VisionTransformer

RENAMED = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "encoder.layers.encoder_layer_": "blocks.",
    "encoder.ln.": "norm.",
    "conv_proj.": "patch_embed.proj.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj.": "attn.proj.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
    "heads.pre_logits.": "pre_logits.fc.",
    "heads.head.": "head.",
}


def renamed(key: str) -> str:
    for theirs, ours in RENAMED.items():
        key = key.replace(theirs, ours)
    return key


@pytest.mark.parametrize("representation_size", [None, 20])
def test_logits_and_gradients(representation_size):
    theirs = TorchvisionViT(
        image_size=16,
        patch_size=4,
        num_layers=2,
        num_heads=3,
        hidden_dim=24,
        mlp_dim=96,
        num_classes=7,
        representation_size=representation_size,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    ours = VisionTransformer(
        image_size=16,
        patch_size=4,
        num_classes=7,
        embed_dim=24,
        depth=2,
        num_heads=3,
        representation_size=representation_size,
    )
    ours.load_state_dict({renamed(key): value for key, value in theirs.state_dict().items()}, strict=True)
    x = torch.randn(4, 3, 16, 16, generator=generator)
    logits, reference = ours(x), theirs(x)
    assert reference.std() > 0.01
    torch.testing.assert_close(logits, reference, rtol=1e-5, atol=1e-5)
    logits.square().mean().backward()
    reference.square().mean().backward()
    gradients = dict(ours.named_parameters())
    for key, parameter in theirs.named_parameters():
        # Rounding errors have the size of the largest terms of the sums, not of their result.
        atol = 1e-5 * max(0.1, parameter.grad.abs().max().item())
        torch.testing.assert_close(gradients[renamed(key)].grad, parameter.grad, rtol=1e-4, atol=atol)
