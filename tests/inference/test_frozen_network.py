"""Frozen networks: maps of their features in place, their weights by checksum, and what is refused."""

import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from tolerances import FLOAT32, assert_close
from torch import Tensor, nn

from psa.errors import ConfigError
from psa.inference.config import FeaturesConfig
from psa.inference.frozen_network import PatchTransformer, feature_maps, open_network, weights_checksum

SMALL = FeaturesConfig(options={"size": 16, "hidden_dim": 8, "num_layers": 1})


class VisionTransformer(nn.Module):
    """A timm vision transformer as far as it is used: two tokens before its patches, a size it was built for."""

    def __init__(self, img_size: tuple[int, int] = (8, 12)) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "input_size": (3, 224, 224)}
        self.patch_embed = nn.Conv2d(3, 5, 4, stride=4)
        self.patch_embed.img_size = img_size
        self.num_prefix_tokens = 2
        self.prefix = nn.Parameter(torch.randn(2, 5))

    def forward_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        return torch.cat([self.prefix.expand(len(images), -1, -1), patches], 1)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "input_size": (3, 8, 8)}
        self.body = nn.Conv2d(3, 5, 2, stride=2)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body(images)


@pytest.fixture
def timm(monkeypatch):
    """A stand-in for timm, which is optional."""

    def create_model(name: str, pretrained: bool, num_classes: int, **options: object) -> nn.Module:
        assert not pretrained
        assert num_classes == 0
        return VisionTransformer(**options)

    known = SimpleNamespace(is_model=lambda name: name == "vit", create_model=create_model)
    monkeypatch.setitem(sys.modules, "timm", known)


def test_features_of_patches_lie_where_the_patches_do_and_other_tokens_are_left_out():
    torch.manual_seed(0)
    network, images = VisionTransformer(), torch.rand(2, 3, 8, 12)
    found = feature_maps(network, images)
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    assert found.shape == (2, 5, 2, 3)
    assert_close(found, network.patch_embed((images - mean) / std), FLOAT32)
    assert not found.requires_grad


def test_a_convolutional_networks_features_are_a_map_already():
    torch.manual_seed(0)
    network, images = Convolutions(), torch.rand(2, 3, 8, 8)
    assert_close(feature_maps(network, images), network.body(images), FLOAT32)


def test_the_small_transformer_has_the_same_random_weights_each_time_and_leaves_the_generator():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, other = open_network(SMALL), open_network(SMALL)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.checksum == other.checksum
    assert one.shape == (8, 4, 4)
    images = torch.rand(2, 3, 20, 20)
    assert torch.equal(one.maps(images), other.maps(images))
    assert one.maps(images).std() > 0.1


def test_a_patch_of_the_small_transformer_answers_to_its_place_first():
    torch.manual_seed(0)
    network = PatchTransformer(16, 8, 1)
    images = torch.rand(1, 3, 16, 16)
    changed = images.clone()
    changed[:, :, 4:8, 8:12] = 1 - changed[:, :, 4:8, 8:12]
    moved = (feature_maps(network, changed) - feature_maps(network, images)).norm(dim=1)[0]
    assert int(moved.argmax()) == 6  # row 1, column 2


def test_the_small_transformer_takes_weights_of_its_own_options(tmp_path):
    torch.manual_seed(1)
    network, path = PatchTransformer(16, 8, 1), tmp_path / "small.safetensors"
    save_file(network.state_dict(), path)
    options = {"size": 16, "hidden_dim": 8, "num_layers": 1}
    found = open_network(FeaturesConfig(options=options, weights=str(path)))
    assert found.checksum == weights_checksum(network.state_dict())
    images = torch.rand(2, 3, 16, 16)
    assert_close(found.maps(images), feature_maps(network.eval(), images), FLOAT32)
    with pytest.raises(ConfigError, match="expected a safetensors file of the small network"):
        open_network(FeaturesConfig(options=options | {"num_layers": 2}, weights=str(path)))


def test_a_timm_network_has_its_weights_from_the_users_file(timm, tmp_path):
    torch.manual_seed(0)
    network, path = VisionTransformer((8, 8)), tmp_path / "vit.safetensors"
    save_file(network.state_dict(), path)
    settings = FeaturesConfig(architecture="vit", weights=str(path), options={"img_size": 8})
    with pytest.raises(ConfigError, match=r"expected options that it takes, got \{'patches': 1\}"):
        open_network(settings.model_copy(update={"options": {"patches": 1}}))
    found = open_network(settings.model_copy(update={"options": {}}))
    assert found.shape == (5, 2, 3)
    assert found.checksum == weights_checksum(network.state_dict())


def test_other_weights_than_the_runs_are_refused(timm, tmp_path):
    path = tmp_path / "vit.safetensors"
    save_file(VisionTransformer().state_dict(), path)
    settings = FeaturesConfig(architecture="vit", weights=str(path))
    known = settings.model_copy(update={"checksum": open_network(settings).checksum})
    open_network(known)
    save_file(VisionTransformer().state_dict(), path)
    with pytest.raises(ConfigError, match="expected the weights that the run was made with"):
        open_network(known)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"weights": "vit.safetensors"},
            r"file of the small network of features\.options, got vit",
        ),
        ({"architecture": "vit"}, "expected a safetensors file of vit, got none"),
        ({"options": {"depth": 2}}, "features.options: expected those of small"),
        ({"options": {"size": 18}}, "size and hidden_dim must be multiples of 4, got 18, 32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        open_network(FeaturesConfig(**settings))


def test_the_checksum_tells_values_shapes_types_and_names():
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3).double(), "b": torch.ones(1)},
        {"c": torch.zeros(2, 3), "b": torch.ones(1)},
        {"a": torch.zeros(2, 3), "b": torch.ones(1) + 1e-6},
    ]
    assert weights_checksum(dict(reversed(base.items()))) == weights_checksum(base)
    assert len({weights_checksum(one) for one in [base, *others]}) == 5
