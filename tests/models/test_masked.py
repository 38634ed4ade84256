"""The masked autoencoder against loops, torch's unfold and the encoder's own forward pass."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vit_gelu.models import VisionTransformer
from vit_gelu.models.masked import (
    MaskedAutoencoder,
    MaskedDecoder,
    draw_visible,
    patchify,
    unpatchify,
    visible_count,
)
from vit_gelu.randomness import key

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0, "seed": 0}


def encoder(**options):
    return VisionTransformer((8, 12), (4, 2), **(SMALL | options)).eval()


def autoencoder(norm_pixels=True, **options):
    net = encoder(**options)
    return MaskedAutoencoder(
        net, MaskedDecoder(net, embed_dim=8, depth=1, num_heads=2), norm_pixels=norm_pixels
    ).eval()


def some_images(n=3, seed=0):
    return torch.randn(n, 3, 8, 12, generator=torch.Generator().manual_seed(seed))


def some_visible(n=3, k=5):
    return draw_visible(key(1, "noise", 0), torch.arange(n), 12, k)


def test_patches_are_those_of_unfold():
    images = some_images()
    assert torch.equal(patchify(images, (4, 2)), F.unfold(images, (4, 2), stride=(4, 2)).mT)
    assert torch.equal(unpatchify(patchify(images, (4, 2)), (2, 6), (4, 2)), images)


def test_every_patch_is_as_likely_and_none_is_drawn_twice():
    n = 4000
    drawn = draw_visible(key(3, "noise", 5), torch.arange(n), 12, 5)
    assert drawn.shape == (n, 5)
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    share = torch.bincount(drawn.flatten(), minlength=12) / n
    sd = (5 / 12 * 7 / 12 / n) ** 0.5
    assert (share - 5 / 12).abs().max() < 4.5 * sd
    # Pairs as well: hypergeometric, not a shifted window.
    one, other = ((drawn == patch).any(dim=1) for patch in (0, 1))
    assert (one & other).float().mean() == pytest.approx(5 * 4 / (12 * 11), abs=0.03)


def test_masks_depend_on_key_and_sample_alone():
    masks = draw_visible(key(0, "noise", 1), torch.arange(64), 64, 16)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw_visible(key(0, "noise", 1), order, 64, 16), masks[order])
    assert not torch.equal(draw_visible(key(0, "noise", 2), torch.arange(64), 64, 16), masks)
    assert not torch.equal(draw_visible(key(1, "noise", 1), torch.arange(64), 64, 16), masks)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pooling": "mean", "class_token": False, "position_embedding": "sincos2d"},
        {"register_tokens": 2, "no_embed_class": True, "pre_norm": True, "qk_norm": True},
    ],
)
def test_the_encoder_sees_what_is_visible_and_nothing_else(options):
    model, images = autoencoder(**options), some_images()
    visible = some_visible()
    with torch.no_grad():
        tokens = model.encode(images, visible)
        hidden = torch.ones(3, 12, dtype=torch.bool).scatter(1, visible, False)
        noise = unpatchify(hidden[..., None].expand(-1, -1, 24).float() * 9, (2, 6), (4, 2))
        assert not torch.equal(images + noise, images)
        assert torch.equal(model.encode(images + noise, visible), tokens)
        # All of them visible, in another order: the tokens of the whole network, in that order.
        shuffled = some_visible(k=12)
        whole = model.encoder.fc_norm(model.encoder.forward_features(images))
        prefix = model.encoder.num_prefix_tokens
        expected = torch.stack(
            [torch.cat([w[:prefix], w[prefix:][s]]) for w, s in zip(whole, shuffled, strict=True)]
        )
        assert torch.allclose(model.encode(images, shuffled), expected, atol=1e-5)


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_the_loss_is_that_of_a_loop(norm_pixels):
    model, images, visible = autoencoder(norm_pixels), some_images(), some_visible()
    with torch.no_grad():
        losses = model(images, visible).double().numpy()
        predicted = model.predict(images, visible).double().numpy()
    for i, image in enumerate(images.double().numpy()):
        errors = []
        for patch in range(12):
            if patch in visible[i].tolist():
                continue
            y, x = divmod(patch, 6)
            pixels = image[:, 4 * y : 4 * y + 4, 2 * x : 2 * x + 2].reshape(-1)
            if norm_pixels:
                pixels = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
            errors.append(np.mean((predicted[i, patch] - pixels) ** 2))
        assert len(errors) == 7
        assert losses[i] == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_decoder_puts_every_token_where_its_patch_is():
    net = encoder(class_token=False, pooling="mean")
    decoder = MaskedDecoder(net, embed_dim=16, depth=1, num_heads=2)
    decoder.embed, decoder.blocks, decoder.norm, decoder.head = (nn.Identity() for _ in range(4))
    tokens, visible = torch.randn(3, 5, 16), some_visible()
    out = decoder(tokens, visible) - decoder.pos_embed
    for i in range(3):
        for patch in range(12):
            seen = (visible[i] == patch).nonzero().flatten().tolist()
            expected = tokens[i, seen[0]] if seen else decoder.mask_token[0, 0]
            assert torch.allclose(out[i, patch], expected, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_every_weight_is_trained(pooling):
    model = autoencoder(pooling=pooling, register_tokens=1, activation="gelu_learnable", layer_scale=0.1)
    model.train()
    model(some_images(), some_visible()).mean().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_what_does_not_decay():
    spared = autoencoder(register_tokens=1, activation="gelu_learnable").no_weight_decay()
    assert {"encoder.pos_embed", "encoder.cls_token", "encoder.reg_token", "decoder.mask_token"} <= spared
    assert {n for n in spared if ".mlp.act." in n and n.startswith("decoder.")}
    names = {n for n, _ in autoencoder(register_tokens=1, activation="gelu_learnable").named_parameters()}
    assert spared <= names


def test_the_decoder_starts_apart_from_the_encoder_and_by_the_seed():
    net = encoder()
    one, again = (MaskedDecoder(net, embed_dim=16, depth=1, num_heads=2, seed=0) for _ in range(2))
    other = MaskedDecoder(net, embed_dim=16, depth=1, num_heads=2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    weights = [m.blocks[0].mlp.fc1.weight for m in (net, one, other)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("norm_pixels", [True, False])
def test_a_reconstruction_keeps_what_was_shown(norm_pixels):
    model, images, visible = autoencoder(norm_pixels), some_images(), some_visible()
    mask, drawn = model.reconstruct(images, visible)
    assert mask.shape == (3, 1, 8, 12)
    assert mask.sum().item() == 3 * 7 * 8  # seven patches of eight pixels
    shown = ~mask.expand_as(images)
    assert torch.equal(drawn[shown], images[shown])
    assert not torch.isclose(drawn[~shown], images[~shown]).any(dim=0).all()
    if norm_pixels:  # a drawn patch is on the scale of the true one
        predicted, true = (patchify(x, (4, 2)) for x in (drawn, images))
        raw = model.predict(images, visible)
        hidden = torch.ones(3, 12, dtype=torch.bool).scatter(1, visible, False)
        mean, sd = true.mean(-1, keepdim=True), (true.var(-1, keepdim=True) + 1e-6).sqrt()
        assert torch.allclose(((predicted - mean) / sd)[hidden], raw[hidden], atol=1e-5)


@pytest.mark.parametrize(("ratio", "visible"), [(0.75, 16), (0.5, 32), (0.99, 1), (0.01, 63)])
def test_how_many_stay_visible(ratio, visible):
    assert visible_count(64, ratio) == visible


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: visible_count(64, 1.0), "--model.mask_ratio 1.0: must lie between 0 and 1"),
        (lambda: visible_count(4, 0.1), "none is masked"),
        (lambda: visible_count(4, 0.9), "none stays visible"),
        (lambda: MaskedDecoder(encoder(), embed_dim=18, num_heads=2), "--model.decoder_embed_dim 18"),
        (lambda: MaskedDecoder(encoder(), embed_dim=16, num_heads=3), "--model.decoder_num_heads 3 does not"),
        (lambda: MaskedDecoder(encoder(), depth=0), "--model.decoder_depth 0"),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_single_grey_pixel_has_no_contrast():
    net = VisionTransformer(4, 1, in_channels=1, **SMALL)
    with pytest.raises(ValueError, match="norm_pixels true: a patch of a single grey pixel"):
        MaskedAutoencoder(net, MaskedDecoder(net, embed_dim=8, num_heads=2))
