from __future__ import annotations

import datetime
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from semsam_model.checkpoints.checkpoint import (
    CALIBRATION,
    content_digest,
    load,
    load_model,
    save,
    with_query_calibration,
    with_ranker,
)
from semsam_model.checkpoints.header import FORMAT, read_header, weights_path
from semsam_model.checkpoints.run_weights import read_network
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError
from semsam_model.network.model import SemanticSAM
from semsam_model.network.query_calibration import Curve, QueryCalibration
from semsam_model.network.ranker import FEATURES, Ranker
from semsam_model.types import KINDS

TINY = read_model_config("tiny")


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> None:
    """Forge a file: other tensors or metadata, with a digest that fits unless one is given."""
    with safe_open(path, framework="pt") as file:
        old, found = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = found if tensors is None else tensors
    header = {**old, **metadata}
    if "digest" not in metadata:
        header["digest"] = content_digest(found, header["config"])
    save_file(found, path, header)


def state(path: Path) -> dict[str, Tensor]:
    return dict(load(path)[0].state_dict())


def test_what_is_saved_is_loaded_bit_for_bit_in_eval_mode(model: SemanticSAM, path: Path) -> None:
    loaded, version = load(path)
    assert not loaded.training
    assert loaded.config == TINY
    assert version.version == str(version) == f"tiny-{version.digest[:12]}"
    ours = model.state_dict()
    assert ours.keys() == loaded.state_dict().keys()
    assert all(torch.equal(value, ours[name]) for name, value in loaded.state_dict().items())


def test_a_calibration_and_a_ranker_are_stored_beside_the_network_and_replaced_each_alone(
    model: SemanticSAM, tmp_path: Path
) -> None:
    def calibration(threshold: float) -> QueryCalibration:
        return QueryCalibration(
            {(k, named): Curve(0.5, 0.75, -1.25) for k in KINDS for named in (True, False)}, threshold
        )

    ranker = Ranker(np.ones((len(FEATURES), 1), np.float32), *(np.ones(1, np.float32),) * 2, np.zeros((), np.float32))
    bare, ranked, both, again = (tmp_path / f"{name}.safetensors" for name in ("bare", "ranked", "both", "again"))
    save(bare, model, TINY, half=True)
    assert load(bare)[0].query_calibration is None
    with_ranker(bare, ranker, ranked)
    version = with_query_calibration(ranked, calibration(0.25), both, card={"calibrated": "here"})
    network, _ = load(both)
    assert network.query_calibration == calibration(0.25) and network.ranker is not None
    assert read_header(both).card == {"calibrated": "here"}
    assert with_ranker(both, ranker, again) == version  # the calibration stayed
    assert save(again, network, TINY, half=True) == version
    assert with_query_calibration(both, calibration(0.5), again) != version
    assert all(torch.equal(value, state(bare)[name]) for name, value in state(again).items())
    assert read_network(both).keys() == read_network(bare).keys()
    tensors = load_file(both)
    del tensors[f"{CALIBRATION}part.named"]
    rewrite(both, tensors)
    with pytest.raises(CheckpointError, match=r"part.named is missing; .*semsam calibrate-queries"):
        load(both)


def test_the_header_tells_config_version_and_card_without_the_tensors(path: Path) -> None:
    header = read_header(path)
    assert (header.config, header.version, header.card) == (TINY, load(path)[1], {"data": "none"})


def test_a_card_holds_dates_as_text_and_must_be_a_mapping(model: SemanticSAM, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save(path, model, TINY, card={"trained": datetime.date(2026, 1, 2), "figures": {"miou": [0.5]}})
    assert read_header(path).card == {"trained": "2026-01-02", "figures": {"miou": [0.5]}}
    with pytest.raises(CheckpointError, match="the card is list, expected a mapping"):
        save(path, model, TINY, card=["trained"])  # type: ignore[arg-type]


def test_half_precision_is_rounded_once_and_loads_as_float32(model: SemanticSAM, tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    full = save(tmp_path / "full.safetensors", model, TINY)
    half = save(path, model, TINY, half=True)
    assert half.digest != full.digest
    assert path.stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size
    for name, value in load(path)[0].state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[name].half().float())


def test_weights_are_cast_to_the_type_asked_for(path: Path) -> None:
    assert load(path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_the_version_depends_on_weights_and_config_and_on_nothing_else(model: SemanticSAM, tmp_path: Path) -> None:
    first = save(tmp_path / "a", model, TINY, card={"made": 1})
    assert save(tmp_path / "b", dict(reversed(model.state_dict().items())), TINY, card={"made": 2}) == first
    changed = {name: value.clone() for name, value in model.state_dict().items()}
    changed["decoder.content"][3] += 1e-6
    assert save(tmp_path / "c", changed, TINY).digest != first.digest
    assert save(tmp_path / "d", model, replace(TINY, click_box=0.006)).digest != first.digest


def test_a_failed_save_leaves_the_old_file_and_no_litter(model: SemanticSAM, path: Path) -> None:
    before = path.read_bytes()
    diverged = {**model.state_dict(), "decoder.content": torch.full((32,), float("nan"))}
    with pytest.raises(CheckpointError, match=r"not written, decoder\.content holds values that are not finite"):
        save(path, diverged, TINY)
    with pytest.raises(CheckpointError, match=r"not finite as torch.float16"):
        save(path, {**model.state_dict(), "decoder.content": torch.full((32,), 1e6)}, TINY, half=True)
    assert path.read_bytes() == before
    in_the_way = path.parent / "folder"
    in_the_way.mkdir()
    with pytest.raises(CheckpointError, match="folder: cannot be written"):
        save(in_the_way, model, TINY)
    assert sorted(p.name for p in path.parent.iterdir()) == ["folder", "tiny.safetensors"]


def test_a_weights_file_is_as_readable_as_any_new_file(path: Path) -> None:
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_folders_on_the_way_are_made(model: SemanticSAM, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.safetensors"
    assert save(path, model, TINY) == load(path)[1]


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=f"{path.name}: no such weights file"):
            load(path)


@pytest.mark.parametrize("share", [0.0, 0.00001, 0.01, 0.5, 0.999999])
def test_a_file_cut_short_is_refused(share: float, path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 a zip perhaps", b"\x80\x02}q\x00.", random.Random(0).randbytes(999)]
)
def test_another_kind_of_file_is_refused_with_the_way_out(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file.*semsam weights convert"):
        load(path)


def test_safetensors_of_others_are_refused(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=f"not written by semsam: expected format {FORMAT}.*got None"):
        load(path)
    save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="got pt"):
        load(path)


def test_a_later_format_is_refused(path: Path) -> None:
    rewrite(path, format="semsam-weights-99")
    with pytest.raises(CheckpointError, match="got semsam-weights-99"):
        load(path)


def test_a_changed_weight_does_not_match_the_digest(path: Path) -> None:
    tensors = state(path)
    tensors["decoder.content"] = tensors["decoder.content"] + 1
    rewrite(path, tensors, digest=read_header(path).version.digest)
    with pytest.raises(CheckpointError, match="altered after it was written"):
        load(path)


def test_a_changed_config_does_not_match_the_digest(path: Path) -> None:
    config = json.dumps({**TINY.to_dict(), "click_box": 0.1}, sort_keys=True)
    rewrite(path, config=config, digest=read_header(path).version.digest)
    with pytest.raises(CheckpointError, match="altered after it was written"):
        load(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("{", "metadata is damaged"),
        ("[]", "expected a mapping"),
        (json.dumps({**TINY.to_dict(), "future": 1}), "unknown key 'future'.*another release of semsam"),
        (json.dumps({**TINY.to_dict(), "width": "wide"}), "width: expected an integer"),
        (json.dumps({**TINY.to_dict(), "swin_depths": [1, 1]}), "can be built|does not fit"),
        (json.dumps({**TINY.to_dict(), "ffn": -1}), "can be built"),
        (json.dumps({**TINY.to_dict(), "ffn": 65}), "does not fit its own config"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config: str, words: str, path: Path) -> None:
    rewrite(path, config=config)
    with pytest.raises(CheckpointError, match=words):
        load(path)


def test_missing_unknown_and_misshapen_tensors_are_named(path: Path) -> None:
    tensors = state(path)
    del tensors["decoder.content"]
    tensors["decoder.kontent"] = torch.zeros(1)
    tensors["decoder.norm.bias"] = torch.zeros(31)
    rewrite(path, tensors)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    for words in (
        "decoder.content is missing",
        "decoder.kontent is unknown",
        "decoder.norm.bias has shape (31,), expected (32,)",
    ):
        assert words in str(caught.value)


def test_whole_numbers_in_place_of_weights_are_refused(path: Path) -> None:
    tensors = state(path)
    tensors["decoder.content"] = torch.zeros(32, dtype=torch.int32)
    rewrite(path, tensors)
    with pytest.raises(CheckpointError, match=r"decoder\.content holds torch\.int32, expected floats"):
        load(path)


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), early=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_changes_the_weights_unnoticed(where: float, bit: int, early: bool, path: Path) -> None:
    whole = path.read_bytes()
    broken = bytearray(whole)
    header = 8 + int.from_bytes(whole[:8], "little")
    broken[int(where * (header if early else len(whole)))] ^= 1 << bit
    other = path.with_name("flipped.safetensors")
    other.write_bytes(broken)
    try:
        loaded, version = load(other)
    except CheckpointError:
        return
    assert version == read_header(path).version
    expected = state(path)
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_a_model_is_found_by_name_in_the_folder_or_by_its_file(path: Path, tmp_path: Path) -> None:
    assert load_model("tiny", folder=tmp_path)[1] == load_model("tiny", path)[1] == load(path)[1]


def test_a_file_of_another_model_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds model tiny, expected swin_t"):
        load_model("swin_t", path)


def test_a_published_model_without_weights_tells_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"swin_t has no weights yet.*`semsam weights fetch swin_t`"):
        load_model("swin_t", folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"`semsam weights convert IN.pth --model swin_l_many2one"):
        load_model("swin_l_many2one")


@pytest.mark.parametrize("name", ["huge", "../tiny", "/etc/passwd", "tiny.safetensors", ""])
def test_a_name_that_is_no_model_is_refused(name: str, path: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    with pytest.raises(CheckpointError, match=r"expected one of .*mobile"):
        load_model(name, folder=tmp_path / "sub")


def test_the_embedded_model_is_the_default() -> None:
    embedded = weights_path("mobile")
    assert embedded.parts[-3:] == ("semsam_model", "weights", "mobile.safetensors")
    assert load_model()[1] == load(embedded)[1]
    assert load_model()[0].config == read_model_config("mobile")
