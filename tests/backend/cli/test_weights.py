"""`semsam weights` on what is no checkpoint."""

from pathlib import Path

from tests.backend.cli.semsam import semsam


def test_convert_refuses_what_is_no_checkpoint(tmp_path: Path) -> None:
    source = tmp_path / "in.pth"
    source.write_bytes(b"not a checkpoint")
    result = semsam("weights", "convert", source, "--model", "swin_t", "--out", tmp_path / "out.safetensors")
    assert result.code == 1 and str(source) in result.stderr
    assert not (tmp_path / "out.safetensors").exists()
