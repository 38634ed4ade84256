"""Names that need a download: from a local server, from the cache, and where there is no network."""

import hashlib
import json
import re
import socket

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub import constants

from tests.models.checkpoints import assert_same_logits, images, scrambled, timm_folder
from tests.models.hub import COMMIT, serve
from vit_gelu.models.pretrained import build_pretrained, read_pretrained
from vit_gelu.models.timm_model import TimmModel

NAME = "test_vit.r160_in1k"  # timm's smallest ViT
REPOSITORY = f"timm/{NAME}"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Point the client at a server that has a folder of timm's for ``NAME``."""
    theirs = scrambled(timm.create_model(NAME))
    folder = timm_folder(theirs, NAME.partition(".")[0], {}, tmp_path / "served")
    with serve({REPOSITORY: folder}) as (endpoint, asked):
        point_at(monkeypatch, endpoint, tmp_path / "cache")
        yield theirs, folder, asked


def point_at(monkeypatch, endpoint, cache):
    # The client reads the environment once, when it is imported.
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))


@pytest.fixture
def closed_port(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    point_at(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "cache")
    return port


def test_a_name_is_downloaded_once_and_then_read_from_the_cache(hub):
    theirs, _, asked = hub
    pretrained = read_pretrained(NAME)
    assert pretrained.record() == {
        "source": NAME,
        "name": NAME,
        "origin": "timm",
        "sha256": hashlib.sha256((hub[1] / "model.safetensors").read_bytes()).hexdigest(),
        "notes": [],
    }
    ours, changes = build_pretrained(pretrained)
    assert not changes
    assert_same_logits(ours, theirs, images((160, 160)))
    assert any(path.startswith("GET") for path in asked)
    asked.clear()
    assert read_pretrained(NAME).sha256 == pretrained.sha256
    assert not asked  # offline, too


def test_reading_draws_nothing_from_the_runs_generator(hub):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    pretrained = read_pretrained(NAME)
    assert torch.equal(torch.get_rng_state(), before)
    build_pretrained(pretrained, num_classes=3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_name_without_tag_is_timms_default_and_says_so(hub):
    pretrained = read_pretrained("test_vit")
    assert pretrained.name == NAME
    assert pretrained.notes == ("tag: r160_in1k, timm's default for test_vit",)


@pytest.mark.parametrize("prefix", ["hf-hub:", "hf_hub:"])
@pytest.mark.parametrize("revision", ["", f"@{COMMIT}"])
def test_a_repository(hub, prefix, revision):
    pretrained = read_pretrained(f"{prefix}{REPOSITORY}{revision}")
    assert pretrained.name == REPOSITORY + revision
    assert_same_logits(build_pretrained(pretrained)[0], hub[0], images((160, 160)))


def test_pytorch_model_bin_where_there_is_no_safetensors(hub):
    theirs, folder, _ = hub
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    for source in (NAME, f"hf-hub:{REPOSITORY}"):
        assert_same_logits(build_pretrained(read_pretrained(source))[0], theirs, images((160, 160)))


def test_what_a_repository_lacks(hub):
    _, folder, _ = hub
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{REPOSITORY} has no model.safetensors and no pytorch_model.bin"):
        read_pretrained(NAME)
    with pytest.raises(ValueError, match="'v9'"):
        read_pretrained(f"hf-hub:{REPOSITORY}@v9")
    with pytest.raises(ValueError, match="no repository nobody/nothing on the hub"):
        read_pretrained("hf-hub:nobody/nothing")
    for bad in ("hf-hub:a/b/c", "hf-hub:a b", "hf-hub:-x/y"):
        with pytest.raises(ValueError, match="is no name of a repository"):
            read_pretrained(bad)
    with pytest.raises(ValueError, match="needs a repository after the colon"):
        read_pretrained("hf-hub:")


def test_a_repository_of_another_library(hub):
    _, folder, asked = hub
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    with pytest.raises(ValueError, match=r"not timm's .of the transformers library, model_type vit"):
        read_pretrained(f"hf-hub:{REPOSITORY}")
    assert not any("model.safetensors" in path for path in asked)  # nothing large was downloaded in vain


def test_an_architecture_that_is_refused_downloads_nothing(hub):
    with pytest.raises(ValueError, match="timm's distilled"):
        read_pretrained("deit_tiny_distilled_patch16_224.fb_in1k")
    assert not hub[2]


@pytest.mark.parametrize("source", [NAME, f"hf-hub:{REPOSITORY}"])
@pytest.mark.parametrize("offline", [False, True])
def test_offline_says_what_where_and_how(closed_port, source, offline, tmp_path, monkeypatch):
    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # The client's own download goes on trying for minutes: it must not be asked.
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(ValueError, match="the hub cannot be reached") as caught:
        read_pretrained(source)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 5  # as many as a command prints
    assert lines[0].startswith(f"--model.pretrained {source}: needs ")
    assert ("HF_HUB_OFFLINE is set" if offline else f"127.0.0.1:{closed_port}") in lines[0]
    assert str(tmp_path / "cache") in lines[1]
    assert f"hf download {REPOSITORY} config.json" in lines[2]
    assert "model.safetensors" in lines[2]
    assert lines[3].endswith(f"--model.pretrained path/to/{NAME}")


def test_what_the_message_tells_to_do_works(hub, closed_port, tmp_path):
    """The folder that `hf download … --local-dir` leaves is read without any network."""
    theirs, folder, _ = hub
    brought = folder.rename(tmp_path / NAME)
    assert_same_logits(build_pretrained(read_pretrained(str(brought)))[0], theirs, images((160, 160)))


def test_a_server_that_fails_after_it_was_reached(hub, monkeypatch):
    def fails(*_, **__):
        raise ConnectionError("connection reset by peer")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fails)
    with pytest.raises(ValueError, match=r"cannot be reached .connection reset by peer") as caught:
        read_pretrained(NAME)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("vit_base_patch16_224.augreg_in12k", r"unknown tag. Did you mean vit_base_patch16_224.augreg_in\w+"),
        ("vit_bose_patch16_224.augreg_in21k", "Did you mean vit_base_patch16_224.augreg_in21k"),
        ("vit_base_patch16_225", "Did you mean vit_base_patch16_224"),
        ("relu", "neither a file, a folder, nor a model that timm knows"),
        (
            "vit_base_patch16_224_in21k",
            "a name that timm has given up; it is vit_base_patch16_224.augreg_in21k now",
        ),
        ("vit_base_patch16_18x2_224", "timm's block_fn|no pretrained weights"),
        ("resnet18.a1_in1k", "no plain Vision Transformer.*--model.name timm/resnet18"),
        ("timm/vit_base", "a repository of the hub is hf-hub:timm/vit_base"),
        ("./weights.pth", "no such file or folder"),
        ("weights.safetensors", "no such file or folder"),
        ("", "empty"),
    ],
)
def test_words_that_are_not_understood(source, match):
    with pytest.raises(ValueError, match=match) as caught:
        read_pretrained(source)
    assert str(caught.value).startswith(f"--model.pretrained{' ' * bool(source)}{source}:")
    assert len(str(caught.value)) < 400


def test_folders(tmp_path):
    with pytest.raises(ValueError, match=r"neither a folder of timm's .* nor one of our runs"):
        read_pretrained(str(tmp_path))
    (tmp_path / "model.pth").touch()
    with pytest.raises(ValueError, match=re.escape("give one of its files: model.pth")):
        read_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(f"did you mean {tmp_path}/model.pth?")):
        read_pretrained(str(tmp_path / "modle.pth"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"has a config.json, but none of model.safetensors"):
        read_pretrained(str(tmp_path))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        read_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_huge_patch16"}))
    with pytest.raises(ValueError, match="vit_huge_patch16: neither"):
        read_pretrained(str(tmp_path))
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": {"no_such": 1}})
    )
    with pytest.raises(ValueError, match=r"timm cannot build it: .*no_such"):
        read_pretrained(str(tmp_path))


def test_a_model_of_timm_gets_its_weights_by_the_same_way(hub):
    theirs, _, asked = hub
    net = TimmModel(f"timm/{NAME}", 1000, 160, pretrained=True).eval()
    x = images((160, 160))
    torch.testing.assert_close(net(x), theirs.eval()(x))
    asked.clear()
    TimmModel(f"timm/{NAME}", 1000, 160, pretrained=True)
    assert not asked


def test_a_model_of_timm_without_a_network(closed_port):
    with pytest.raises(
        ValueError, match=r"--model.name timm/test_vit.r160_in1k: needs model.safetensors"
    ) as error:
        TimmModel(f"timm/{NAME}", 1000, 160, pretrained=True)
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert str(constants.HF_HUB_CACHE) in lines[1]
    assert "copy models--timm--test_vit.r160_in1k from its cache into this one" in lines[2]
