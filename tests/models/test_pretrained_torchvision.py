"""torchvision's Vision Transformers, at their own size and at one that torchvision interpolated them to."""

import pytest
import torch
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer, interpolate_embeddings

from tests.models.checkpoints import assert_same_logits, images, scrambled
from vit_gelu.models.pretrained import build_pretrained, read_pretrained


def torchvision_vit(image_size: int = 32, patch_size: int = 8, **options) -> torch.nn.Module:
    return VisionTransformer(
        image_size=image_size,
        patch_size=patch_size,
        num_layers=2,
        num_heads=2,
        hidden_dim=128,
        mlp_dim=256,
        num_classes=7,
        **options,
    ).eval()


@pytest.mark.parametrize("representation_size", [None, 20])
@pytest.mark.parametrize("old_names", [False, True])
def test_native(representation_size, old_names, tmp_path):
    theirs = scrambled(torchvision_vit(representation_size=representation_size))
    state = dict(theirs.state_dict())
    if old_names:  # of torchvision before 0.14
        state = {
            k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v
            for k, v in state.items()
        }
    torch.save(state, tmp_path / "vit_b_16.pth")
    pretrained = read_pretrained(str(tmp_path / "vit_b_16.pth"))
    assert (pretrained.origin, pretrained.mean) == ("torchvision", (0.485, 0.456, 0.406))
    ours, changes = build_pretrained(pretrained)
    assert not changes
    assert_same_logits(ours, theirs, images((32, 32)))


@pytest.mark.parametrize("size", [48, 16, 40])
def test_interpolated_as_torchvision_does(size, tmp_path):
    state = scrambled(torchvision_vit()).state_dict()
    torch.save(state, tmp_path / "a.pth")
    ours, (change,) = build_pretrained(read_pretrained(str(tmp_path / "a.pth")), image_size=size)
    theirs = torchvision_vit(size)
    theirs.load_state_dict(interpolate_embeddings(size, 8, dict(state)), strict=True)
    assert "bicubic, corners aligned" in change.text
    assert_same_logits(ours, theirs, images((size, size)))


def test_a_convolutional_stem_is_refused(tmp_path):
    stem = [ConvStemConfig(8, 3, 2), ConvStemConfig(16, 3, 2), ConvStemConfig(16, 3, 2)]
    torch.save(torchvision_vit(conv_stem_configs=stem).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"has no patch_embed.proj.weight"):
        read_pretrained(str(tmp_path / "a.pth"))
