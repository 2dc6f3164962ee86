"""A sample reads its photo and masks, or says what is wrong with them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from semsam_model.data.readers.coco import read_coco
from semsam_model.data.samples import CocoMask, PhotoFile, Sample
from semsam_model.errors import DataError
from tests.semsam_model.data.readers.files import SIZE, WHOLE, coco_file


@settings(max_examples=60, deadline=None)
@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=8)))
def test_whatever_stands_where_a_mask_should_gives_a_mask_or_an_error_that_names_it(segmentation: object) -> None:
    from semsam_model.data.samples import Annotation, Region

    region = Region(CocoMask(segmentation), "object", "cup")  # type: ignore[arg-type]
    sample = Sample(PhotoFile(Path("a.png")), "set", Annotation(SIZE[1], SIZE[0], (region,)))
    try:
        assert sample.mask(0).shape == SIZE
    except DataError as error:
        assert "a.png, region 0 (cup)" in str(error)


def test_a_photo_turned_by_exif_is_read_turned(tmp_path: Path) -> None:
    path = coco_file(tmp_path, [{"id": 1, "name": "cup"}], [{"mask": WHOLE, "category_id": 1}], file_name="turned.png")
    pixels = np.random.default_rng(4).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned clockwise
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(pixels)).save(buffer, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(buffer.getvalue())
    assert np.array_equal(read_coco(path).samples[0].image(), pixels)
