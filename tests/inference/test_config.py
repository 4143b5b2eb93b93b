from dataclasses import fields

import pytest
import tiny
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from psa.errors import ConfigError
from psa.inference.config import RECIPE, RunConfig, override, parse_config, published, read_config_file
from psa.inference.variants import VARIANTS, VariantSpec, specify

# A value other than every row's own, for each column of the table that a setting can hold.
COLUMNS = {
    "initialiser": "kmeans++",
    "agreement": "gaussian",
    "update": "moments",
    "neural": True,
    "gradient": "implicit",
    "readout": "query-mlp",
    "normalise": True,
    "projections": "qkv",
    "token_start": True,
    "bias": True,
    "epsilon": 1e-3,
    "power": 0.5,
    "variance_floor": 0.02,
    "hidden_dim": 9,
    "covariance": "full",
}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("training.steps=500", 500),
        ("training.steps = 500", 500),
        ("objective.sigma=0.5", 0.5),
        ("objective.sigma=1e-1", 0.1),
        ("objective.sample=true", True),
        ("data.source=sprites", "sprites"),
        ('data.source="sprites"', "sprites"),
        ("data.source=/a/b=c.h5", "/a/b=c.h5"),
        ("data.source=a folder", "a folder"),
        ("data.size=[8, 16]", [8, 16]),
        ("data.source=", ""),
        ("new.table.deep=1", 1),
    ],
)
def test_a_setting_is_read_as_toml_or_else_as_text(setting, value):
    result = override({}, [setting])
    for part in setting.partition("=")[0].strip().split("."):
        result = result[part]
    assert result == value
    assert type(result) is type(value)


def test_settings_leave_the_values_they_start_from_alone():
    values = {"slots": {"overrides": {"power": 0.5}}}
    assert override(values, ["slots.overrides.power=2.0"])["slots"]["overrides"] == {"power": 2.0}
    assert values == {"slots": {"overrides": {"power": 0.5}}}


def test_the_last_of_two_settings_counts():
    assert override({}, ["training.steps=1", "training.steps=2"]) == {"training": {"steps": 2}}


@pytest.mark.parametrize("setting", ["training.steps", "=3", ""])
def test_a_setting_without_key_or_value_is_refused(setting):
    with pytest.raises(ConfigError, match="expected key=value"):
        override({}, [setting])


def test_a_setting_through_a_value_is_refused():
    with pytest.raises(ConfigError, match="steps is a value, not a table"):
        override({"training": {"steps": 3}}, ["training.steps.more=1"])


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("training.steps=0", r"training\.steps"),
        ("training.steps=1.5", r"training\.steps"),
        ("training.learning_rate=nan", r"training\.learning_rate"),
        ("training.learning_rate=inf", r"training\.learning_rate"),
        ("training.clip_norm=0", r"training\.clip_norm"),
        ("encoder.channels=0", r"encoder\.channels"),
        ("decoder.kind=mlp", r"decoder\.kind"),
        ("data.crop=left", r"data\.crop"),
        ("objective.kl_weight=-1", r"objective\.kl_weight"),
        ("objective.sigma=0", r"objective\.sigma"),
        ("slots=3", "slots"),
    ],
)
def test_an_error_is_one_line_that_names_source_key_and_value(setting, key):
    with pytest.raises(ConfigError, match=rf"^a\.toml: {key}.*: .*, got ") as caught:
        parse_config(override({}, [setting]), "a.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.stepz=3", r"training\.stepz: no such key; there are steps, batch_size, .*"),
        ("trainig.steps=3", "trainig: no such key; there are data, encoder, slots, .*"),
    ],
)
def test_an_unknown_key_is_named_with_those_there_are(setting, message):
    with pytest.raises(ConfigError, match=rf"^a\.toml: {message}$"):
        parse_config(override({}, [setting]), "a.toml")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variant": "slot-attention"}, "variant must be one of sa, .*, got 'slot-attention'"),
        ({"overrides": {"powr": 1.0}}, "no column 'powr' to override; there are initialiser, .*"),
        ({"overrides": {"name": "x"}}, "no column 'name'"),
        ({"overrides": {"power": "high"}}, "power must be a finite number above 0, got 'high'"),
        ({"overrides": {"neural": 1}}, "neural must be true or false, got 1"),
        ({"overrides": {"initialiser": "zeros"}}, "initialiser must be one of .*, got 'zeros'"),
        ({"overrides": {"agreement": "variational"}}, "variational agreement needs the conjugate update"),
        ({"overrides": {"prior": 3}}, "prior must be a LocalMixturePrior, got 3"),
    ],
)
def test_a_member_or_column_that_does_not_exist_is_named(values, message):
    with pytest.raises(ConfigError, match=rf"configuration: slots: {message}"):
        parse_config({"slots": values})


def test_an_unknown_member_is_not_published():
    with pytest.raises(ConfigError, match=r"variant must be one of sa, .*, got 'xyz'"):
        published("xyz")


def test_every_column_of_the_table_but_the_prior_is_listed_here():
    assert {field.name for field in fields(VariantSpec)} == {*COLUMNS, "name", "source", "prior"}


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_of_the_table_is_reachable_by_a_setting_and_reaches_the_member(column):
    value = COLUMNS[column]
    variant = {"agreement": "sa", "update": "sa", "covariance": "em"}.get(column, "psa")
    base = {"slots": {"variant": variant}}
    assert getattr(VARIANTS[base["slots"]["variant"]], column) != value
    text = tomli_w.dumps({"v": value}).partition("=")[2].strip()
    settings = (f"slots.overrides.{column}={text}", "objective.sample=true")
    spec = tiny.tiny_autoencoder(base, *settings).guide.inference.spec
    assert getattr(spec, column) == value


@given(power=st.floats(1e-3, 1e3), steps=st.integers(1, 10**6), source=st.text(max_size=20))
def test_a_configuration_comes_back_from_its_toml(power, steps, source, tmp_path_factory):
    if any(0xD800 <= ord(letter) <= 0xDFFF for letter in source):
        return
    config = parse_config(
        {
            "slots": {"overrides": {"power": power}},
            "training": {"steps": steps},
            "data": {"source": source, "size": (8, 9)},
        }
    )
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_text(tomli_w.dumps(config.to_toml()), encoding="utf-8")
    assert parse_config(read_config_file(path)) == config


def test_the_schema_of_a_written_configuration_is_no_key(tmp_path):
    (tmp_path / "config.toml").write_text("schema = 2\nrun = '0a1b2c3d'\n[training]\nsteps = 3\n")
    assert read_config_file(tmp_path / "config.toml") == {"training": {"steps": 3}}


@pytest.mark.parametrize("content", [b"slots = [", b"\xff\xfe", None])
def test_a_file_that_is_no_toml_is_named(tmp_path, content):
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.toml: expected a TOML file"):
        read_config_file(path)


def test_the_default_configuration_is_valid():
    assert parse_config({}) == RunConfig()


def test_the_recipe_builds_and_trains():
    trainer = tiny.tiny_trainer(dict(RECIPE))
    trainer.train_steps(2)
    assert trainer.step == 2


@pytest.mark.parametrize("name", VARIANTS)
def test_every_member_as_published_builds_trains_and_is_scored(name):
    trainer = tiny.tiny_trainer(published(name))
    trainer.train_steps(2)
    assert trainer.evaluate(0.0)["mse"] < 10
    assert trainer.config.steps == 20
    assert trainer.autoencoder.guide.kl_weight == 0
    assert trainer.autoencoder.guide.draws == (specify(name).readout == "normal")


@pytest.mark.parametrize("kind", ["patch", "broadcast"])
def test_every_decoder_builds_and_trains(kind):
    tiny.tiny_trainer(tiny.WITH_KL, f"decoder.kind={kind}").train_steps(2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("decoder.patch=5", "multiple of decoder.patch 5"),
        ("encoder.token_dim=5", "slot_dim must equal input_dim"),
        ("objective.sample=false", r"needs objective\.sample = true"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        tiny.tiny_autoencoder(tiny.WITH_KL, setting)
