"""Published checkpoints are converted key by key, or refused with the reason."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from semsam_model.checkpoints.checkpoint import load, load_model
from semsam_model.checkpoints.header import read_header
from semsam_model.checkpoints.published import UNTRAINED, Report, fetch, file_sha256, published_names, published_shapes
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError, ConfigError
from tests.semsam_model.checkpoints.conversions import (
    INDEX,
    LABEL_ENC,
    MASK_TOKENS,
    PREDICTOR,
    TINY,
    State,
    converted,
    refused,
    refused_keeping,
    statuses,
    telling,
)
from tests.semsam_model.file_server import FileServer
from tests.semsam_model.published_rule import rule_weights


def test_a_whole_swin_t_is_accounted_for_key_by_key(converted_swin_t: Report) -> None:
    # 648 published keys, the buffer of the training loss, and two entries beside 'model'
    assert converted_swin_t.counts == {"loaded": 525, "tied": 110, "ignored": 1 + 12 + 1 + 2, "missing": 0}
    assert len(statuses(converted_swin_t)) == len(converted_swin_t.entries) == 648 + 3
    assert (
        statuses(converted_swin_t)["optimizer"]
        == statuses(converted_swin_t)["model.criterion.empty_weight"]
        == "ignored"
    )
    assert converted_swin_t.version == read_header(converted_swin_t.path).version


def test_values_arrive_under_our_names_and_published_rows_keep_their_meaning(state: State, out: Path) -> None:
    report = converted({"model": state}, out)
    ours = load(report.path)[0].state_dict()
    for name, aliases in published_names(TINY).items():
        for alias in aliases:
            value = state[f"model.{alias}"]
            assert torch.equal(ours[name], value[0] if f"model.{alias}" == LABEL_ENC else value)
    # row 0 is what published inference adds for clicks
    assert torch.equal(ours["decoder.kind_embed"], state[PREDICTOR + "pb_embedding.weight"])


def test_the_report_prints_with_counts_reasons_and_what_was_never_trained(state: State, out: Path) -> None:
    state[MASK_TOKENS] = state[MASK_TOKENS].half()
    console = Console(file=io.StringIO(), width=160)
    console.print(converted({"model": state, "iteration": 7}, out))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in (
        "loaded",
        "tied",
        "text queries",
        "row 1 is never used",
        "training state",
        "float16 to float32",
        "decoder.object_projection",
        "decoder.part_projection",
        "decoder.kind_embed[1]",
    ):
        assert words in shown


def test_the_file_written_remembers_what_it_came_from(state: State, out: Path) -> None:
    report = converted({"model": state}, out)
    card = read_header(out).card
    assert card["source"] == "in.pth"
    assert card["source_sha256"] == report.sha256 == file_sha256(out.parent.parent / "in.pth")
    assert card["untrained"] == UNTRAINED


def test_a_bare_state_without_model_around_it_is_taken(state: State, out: Path) -> None:
    bare = converted(state, out)
    assert bare.version == converted({"model": state}, out).version


def test_other_names_of_a_tied_tensor_may_be_missing_and_are_reported(state: State, out: Path) -> None:
    whole = converted({"model": dict(state)}, out)
    gone = [
        PREDICTOR + "decoder_norm.weight",
        PREDICTOR + "bbox_embed.0.layers.0.bias",
        PREDICTOR + "lang_mapper",
        INDEX,
    ]
    for key in gone:
        del state[key]
    report = converted({"model": state}, out)
    assert report.version == whole.version
    assert report.counts["missing"] == len(gone)
    assert all(statuses(report)[key] == "missing" for key in gone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_cast_and_reported(dtype: torch.dtype, state: State, out: Path) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    report = converted({"model": state}, out)
    name = str(dtype).removeprefix("torch.")
    assert dict(report.casts) == {k: name for k, v in state.items() if v.is_floating_point()}
    found = load(out)[0].state_dict()["decoder.level_tokens"]
    assert torch.equal(found, state[MASK_TOKENS].float())


def test_float32_needs_no_cast(state: State, out: Path) -> None:
    assert converted({"model": state}, out).casts == ()


def test_every_name_in_the_report_is_one_of_the_file(state: State, out: Path) -> None:
    content = {"model": {**state, "model.criterion.empty_weight": torch.ones(2)}, "iteration": 7}
    assert {key for key, fate in statuses(converted(content, out)).items() if fate != "missing"} == {
        *content["model"],
        "iteration",
    }


def test_a_config_of_other_sizes_is_converted_by_its_file(state: State, out: Path, tmp_path: Path) -> None:
    mine = replace(TINY, name="mine", ffn=96)
    (tmp_path / "mine.yaml").write_text(json.dumps(mine.to_dict()))  # JSON is YAML
    report = converted({"model": rule_weights(published_shapes(mine), 4)}, out, str(tmp_path / "mine.yaml"))
    assert report.version.name == "mine"
    assert "linear1.weight has shape (64, 32), expected (96, 32)" in refused_keeping(
        state, out, str(tmp_path / "mine.yaml")
    )


@pytest.mark.parametrize(
    ("channels", "tokens", "asked", "looks"),
    [
        (96, 6, "swin_l", "swin_t"),
        (192, 6, "swin_t", "swin_l"),
        (192, 6, "swin_l_many2one", "swin_l"),
        (192, 3, "swin_l", "swin_l_many2one"),
        (192, 3, "swin_t", "swin_l_many2one"),
        (96, 3, "swin_t", "no published variant"),
    ],
)
def test_another_variant_is_recognised(channels: int, tokens: int, asked: str, looks: str, out: Path) -> None:
    message = refused({"model": telling(channels, tokens)}, out, asked)
    assert f"looks like {looks} ({channels} backbone channels, {tokens} level tokens), expected {asked} (" in message


def test_a_model_that_was_never_published_is_refused(state: State, out: Path) -> None:
    assert "expected one of swin_t, swin_l, swin_l_many2one" in refused({"model": state}, out, "mobile")
    with pytest.raises(ConfigError, match="'swin_x': expected one of"):
        converted({"model": state}, out, "swin_x")


Edit = Callable[[State], Any]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda s: s.pop(MASK_TOKENS),
            "1 of 200 parameters of tiny are missing, first sem_seg_head.predictor.mask_tokens",
        ),
        (lambda s: s.pop(LABEL_ENC), "parameters of tiny are missing, first sem_seg_head.predictor.label_enc"),
        (lambda s: s.update({"model.extra": torch.zeros(1)}), "1 keys that tiny does not have, first extra"),
        (lambda s: s.update({"model.criterion.other": torch.zeros(1)}), "first criterion.other"),
        (
            lambda s: s.update({"sem_seg_head.x": torch.zeros(1)}),
            "key sem_seg_head.x: expected every name to begin with",
        ),
        (lambda s: s.update({"module." + INDEX: s.pop(INDEX)}), "expected every name to begin with 'model.'"),
        (lambda s: s.update({LABEL_ENC: s[LABEL_ENC][:1]}), r"label_enc.weight has shape (1, 32), expected (2, 32)"),
        (lambda s: s.update({LABEL_ENC: torch.tensor(1.0)}), r"label_enc.weight has shape (), expected (2, 32)"),
        (lambda s: s.update({MASK_TOKENS: torch.tensor(1.0)}), r"mask_tokens.weight has shape ()"),
        (lambda s: s.update({LABEL_ENC: s[LABEL_ENC].int()}), "label_enc.weight holds torch.int32, expected floats"),
        (lambda s: s.update({LABEL_ENC: s[LABEL_ENC].tolist()}), "label_enc.weight is list, expected a dense tensor"),
        (
            lambda s: s.update({LABEL_ENC: s[LABEL_ENC].to_sparse()}),
            "label_enc.weight is Tensor, expected a dense tensor",
        ),
        (lambda s: s.update({INDEX: s[INDEX].flip(0)}), "relative_position_index is not the index of a window of 4"),
        (lambda s: s.update({LABEL_ENC: s[LABEL_ENC] / 0}), "label_enc.weight holds values that are not finite"),
        (
            lambda s: s.update({MASK_TOKENS: s[MASK_TOKENS].double() * 1e300}),
            "mask_tokens.weight holds values that are",
        ),
        (lambda s: s.clear(), "expected a dictionary of tensors"),
    ],
)
def test_a_wrong_key_is_named_and_nothing_is_written(edit: Edit, words: str, state: State, out: Path) -> None:
    edit(state)
    assert words in refused({"model": state}, out)


@pytest.mark.parametrize(
    "key", ["_bbox_embed.layers.1.weight", "decoder.bbox_embed.1.layers.2.bias", "decoder.norm.bias"]
)
def test_tied_names_must_agree(key: str, state: State, out: Path) -> None:
    state[PREDICTOR + key] = state[PREDICTOR + key] + 1e-6
    assert f"predictor.{key} differs from sem_seg_head.predictor." in refused({"model": state}, out)


@pytest.fixture(scope="module")
def swin_t_pth(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Swin-T checkpoint of zeros; each tensor is one stored number, seen many times."""
    config = read_model_config("swin_t")
    indices = rule_weights(
        {k: v for k, v in published_shapes(config).items() if k.endswith("_index")}, config.swin_window
    )
    zeros = {f"model.{key}": torch.zeros(1).expand(shape) for key, shape in published_shapes(config).items()}
    file = io.BytesIO()
    torch.save({"model": {**zeros, **indices}}, file)
    return file.getvalue()


@pytest.mark.slow
def test_a_release_is_fetched_over_a_broken_connection_converted_and_loads(swin_t_pth: bytes, tmp_path: Path) -> None:
    with FileServer(swin_t_pth, cut_after=len(swin_t_pth) // 2).running() as server:
        with pytest.raises(CheckpointError, match="run the same command again"):
            fetch("swin_t", tmp_path, url=server.url, progress=False)
        assert not list(tmp_path.glob("*.safetensors"))
        server.cut_after = None
        report = fetch("swin_t", tmp_path, url=server.url + "?token=s3cr3t", progress=False)
        assert server.asked[1]["Range"] != "bytes=0-"
        again = fetch("swin_t", tmp_path, url=server.url, progress=False)
        assert len(server.asked) == 2, "what is there with its sha256 is not downloaded again"
    assert report.version == again.version == load_model("swin_t", folder=tmp_path)[1]
    pth = tmp_path / "swint_only_sam_many2many.pth"
    assert pth.read_bytes() == swin_t_pth
    assert (tmp_path / f"{pth.name}.sha256").read_text() == f"{report.sha256}  {pth.name}\n"
    card = read_header(report.path).card
    assert card["source_sha256"] == report.sha256 == file_sha256(pth)
    assert card["source_url"] == server.url


def test_a_download_that_is_no_checkpoint_is_fetched_anew_next_time(tmp_path: Path) -> None:
    with FileServer(b"<html>try later</html>").running() as server:
        for count in (1, 2):
            with pytest.raises(CheckpointError, match="not a PyTorch checkpoint"):
                fetch("swin_t", tmp_path, url=server.url, progress=False)
            assert len(server.asked) == count


def test_a_download_with_another_sha256_than_asked_for_is_removed(tmp_path: Path) -> None:
    with (
        FileServer(b"something else").running() as server,
        pytest.raises(CheckpointError, match="expected 00ff; the download was removed"),
    ):
        fetch("swin_l", tmp_path, url=server.url, sha256="00ff", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["swin_l_many2one", "mobile", "../swin_t"])
def test_only_released_models_can_be_fetched(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected swin_t or swin_l"):
        fetch(name, tmp_path, progress=False)
