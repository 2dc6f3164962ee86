from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import pytest

from semsam_model.config import ModelConfig, config_root, model_names, parse_config, read_model_config, read_yaml
from semsam_model.errors import ConfigError
from semsam_model.training.config import LossConfig, TrainConfig


def config(**values: Any) -> ModelConfig:
    return parse_config(ModelConfig, {"name": "m", "backbone": "swin", **values}, "model config")


@pytest.mark.parametrize("name", model_names())
def test_a_shipped_config_is_named_as_its_file_and_survives_a_round_trip(name: str) -> None:
    shipped = read_model_config(name)
    assert shipped.name == name
    assert parse_config(ModelConfig, shipped.to_dict(), "model config") == shipped


def test_published_sizes_are_the_defaults_and_swin_l_has_its_own() -> None:
    small, large = read_model_config("swin_t"), read_model_config("swin_l")
    assert (small.swin_dim, small.swin_depths, small.swin_window) == (96, (2, 2, 6, 2), 7)
    assert (large.swin_dim, large.swin_depths, large.swin_window) == (192, (2, 2, 18, 2), 12)
    assert read_model_config("swin_l_many2one").tokens == 3


def test_an_unknown_key_is_named_and_the_known_ones_listed() -> None:
    with pytest.raises(ConfigError, match=r"model config: unknown key 'widht'; known keys: name, backbone, width"):
        config(widht=256)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="model config: backbone: expected a value, got nothing"):
        parse_config(ModelConfig, {"name": "m"}, "model config")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("width", "256", "width: expected an integer, got '256'"),
        ("width", 256.0, "width: expected an integer, got 256.0"),
        ("width", True, "width: expected an integer, got True"),
        ("learned_boxes", 1, "learned_boxes: expected true or false, got 1"),
        ("click_box", "small", "click_box: expected a number, got 'small'"),
        ("click_box", False, "click_box: expected a number, got False"),
        ("swin_depths", 2, "swin_depths: expected a list, got 2"),
        ("swin_depths", [2, "2"], "swin_depths[1]: expected an integer, got '2'"),
        ("pixel_mean", [1, 2, 3, 4], "pixel_mean: expected at most 3 values, got [1, 2, 3, 4]"),
        ("name", 7, "name: expected text, got 7"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{key: value})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "resnet"),
        ("resize_side", "left"),
        ("width", 100),
        ("heads", 7),
        ("tokens", 4),
        ("pixel_mean", [0.0, 0.0]),
    ],
)
def test_an_impossible_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"model config: .*{key}"):
        config(**{key: value})


def test_every_problem_is_told_with_the_way_to_its_key() -> None:
    stage = {"steps": 0, "size": 65, "batch": 1, "sze": 64}
    with pytest.raises(ConfigError) as caught:
        parse_config(TrainConfig, {"model": "tiny", "stages": [stage], "loss": {"dice": 3}}, "run.yaml")
    assert str(caught.value).split("; run.yaml: ") == [
        "run.yaml: stages[0]: steps: expected at least 1, got 0",
        "stages[0]: size: expected a multiple of 32, got 65",
        "stages[0]: unknown key 'sze'; known keys: steps, size, batch",
        f"loss: unknown key 'dice'; known keys: {', '.join(f.name for f in dataclasses.fields(LossConfig))}",
    ]


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="model config: names: expected text as a key, got 1"):
        config(names={1: "house"})
    with pytest.raises(ConfigError, match="date is not JSON serializable"):
        config(swin_depths=[datetime.date(2020, 1, 1)])


def test_whole_numbers_are_taken_for_floats() -> None:
    taken = config(pixel_mean=[128, 128, 128], click_box=1)
    assert taken.pixel_mean == (128.0, 128.0, 128.0)
    assert isinstance(taken.click_box, float)


def test_a_yaml_file_is_read_by_path_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nbackbone: swin\nswin_depths: [1, 1, 1, 1]\n")
    assert read_model_config(path).swin_depths == (1, 1, 1, 1)
    path.write_text("- name\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: expected a mapping of settings, got \['name'\]"):
        read_model_config(path)
    path.write_text("name: [")
    with pytest.raises(ConfigError, match=r"mine.yaml: cannot be read as YAML"):
        read_model_config(path)


def test_a_missing_file_and_an_unknown_name_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration file"):
        read_model_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"'huge': expected one of .*mobile.*swin_t"):
        read_model_config("huge")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 1\n", r"line 3: key 'a' is there already, in line 1"),
        ("top:\n  - {b: 1}\n  - b: 1\n    b: 2\n", r"line 4: key 'b' is there already, in line 3"),
    ],
)
def test_a_key_that_is_there_twice_is_refused_with_its_lines(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_yaml(path)


def test_the_same_key_in_different_mappings_is_no_twin(tmp_path: Path) -> None:
    path = tmp_path / "once.yaml"
    path.write_text("one: &x {a: 1}\ntwo: {<<: *x, b: 2}\nthree: [{a: 1}, {a: 2}, *x]\n")
    assert read_yaml(path) == {"one": {"a": 1}, "two": {"a": 1, "b": 2}, "three": [{"a": 1}, {"a": 2}, {"a": 1}]}


@pytest.mark.parametrize("path", sorted(config_root().rglob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_file_of_the_repository_can_be_read(path: Path) -> None:
    assert read_yaml(path)
