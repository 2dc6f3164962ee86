"""The Python examples of docs/develop/model.md run, one after another, on a sample photo with the default model."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.paths import ROOT, SAMPLES

EXAMPLES = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/develop/model.md").read_text("utf-8"), re.M | re.S)


@pytest.mark.slow
def test_the_examples_of_the_model_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"rgb": np.asarray(Image.open(SAMPLES / "astronaut.jpg").convert("RGB"))}
    for example in EXAMPLES:
        exec(example, names)
    printed = capsys.readouterr().out
    assert "person" in printed
    assert names["label_map"].shape == (512, 512)
