import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tiny import WITHOUT_KL, tiny_autoencoder
from tolerances import FLOAT32, assert_close
from torch import nn

from psa.errors import ConfigError, PsaError
from psa.inference.feature_extractors import dotted_callable, named_features, timm_features

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


class Network(nn.Module):
    """A timm network as far as it is used: weights of its own, an optional classifier, the settings of its training."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 5, 3)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(5, num_classes) if num_classes else nn.Identity()
        self.pretrained_cfg = {"mean": MEAN, "std": STD, "input_size": (3, 12, 10)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.body(images).mean((2, 3))))


@pytest.fixture
def timm(monkeypatch):
    """A stand-in for timm, which is optional."""

    def create_model(name: str, pretrained: bool, num_classes: int) -> Network:
        assert not pretrained
        return Network(num_classes)

    known = SimpleNamespace(is_model=lambda name: name == "small", create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", known)
    return known


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    network = Network(num_classes=7)
    path = tmp_path / "small.safetensors"
    save_file(network.state_dict(), path)
    return network, path


@pytest.fixture(scope="module")
def autoencoder():
    return tiny_autoencoder(WITHOUT_KL).eval()


def test_a_timm_network_gives_pooled_features_of_images_as_it_was_trained_on(timm, weights, autoencoder):
    network, path = weights
    images = torch.rand(4, 3, 16, 16)
    found = named_features(f"timm:small:{path}", autoencoder)(images)
    resized = nn.functional.interpolate(images, (12, 10), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(part)[:, None, None] for part in (MEAN, STD))
    assert_close(found, network.body((resized - mean) / std).mean((2, 3)), FLOAT32)
    assert not found.requires_grad


def test_timm_refuses_what_is_not_that_networks_safetensors_and_never_unpickles(timm, weights, tmp_path):
    _, path = weights
    with pytest.raises(ConfigError, match="an architecture that timm knows, got 'hf-hub'"):
        timm_features("hf-hub", path)
    with pytest.raises(ConfigError, match="a safetensors file of that network's weights"):
        timm_features("small", tmp_path / "none.safetensors")
    pickled = tmp_path / "weights.safetensors"
    torch.save(Network(0).state_dict(), pickled)
    with pytest.raises(ConfigError, match="a safetensors file of that network's weights"):
        timm_features("small", pickled)
    other = tmp_path / "other.safetensors"
    save_file({"body.bias": torch.zeros(5)}, other)
    with pytest.raises(ConfigError, match=r"1 are missing, first body\.weight"):
        timm_features("small", other)


def test_without_timm_the_line_says_what_to_install(monkeypatch, weights):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PsaError, match="pip install timm"):
        timm_features("small", weights[1])


def test_the_runs_encoder_averages_its_tokens(autoencoder):
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        expected = autoencoder.guide.encoder(images).mean(1)
    assert_close(named_features("run", autoencoder)(images), expected)


@pytest.mark.parametrize("name", ["torch.special:entr", "torch.special.entr"])
def test_a_dotted_name_is_a_callable(name):
    assert dotted_callable(name) is torch.special.entr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nodots", "expected a callable by dotted name"),
        ("no.such.module:f", "No module named 'no'"),
        ("torch:nothing", "has no attribute 'nothing'"),
        ("torch:pi", "expected a callable, got float"),
        (":f", "expected a callable by dotted name"),
        ("torch:", "expected a callable by dotted name"),
    ],
)
def test_a_name_of_nothing_callable_is_one_line(name, message, autoencoder):
    with pytest.raises(ConfigError, match=message) as caught:
        named_features(name, autoencoder)
    assert "\n" not in str(caught.value)
