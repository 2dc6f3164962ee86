"""One model, many photos and threads: embeddings are shared, bounded and never mixed."""

import gc
import re
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.errors import NotReady
from backend.inference.loaded import Loaded
from backend.inference.predictor import PhotoSource, Predictor, Result, predict_prompt
from backend.metrics import Metrics
from semsam_model.checkpoints.header import Version
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError, ImageError
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import CropEncoder, crop_encoder
from semsam_model.network.frame import Window
from semsam_model.network.model import ImageEmbedding, SemanticSAM, build_model
from semsam_model.types import Candidate, Click, Prompt
from tests.backend.models import loaded

CLICK = Prompt((Click(20, 20),))


def tiny_model(seed: int = 0) -> SemanticSAM:
    torch.manual_seed(seed)
    return build_model(read_model_config("tiny")).eval()


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return tiny_model()


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)


def another(model: SemanticSAM) -> Loaded:
    """A model under another version than `loaded` gives."""
    return loaded(model, Version("tiny", "b" * 64))


def started(model: SemanticSAM, cache_bytes: int = 10**9, metrics: Metrics | None = None) -> Predictor:
    predictor = Predictor(lambda: loaded(model), cache_bytes=cache_bytes, metrics=metrics or Metrics())
    predictor.start()
    predictor.ready()
    return predictor


def click(predictor: Predictor, sha256: str, pixels: Callable[[], np.ndarray]) -> Result[list[Candidate]]:
    return predict_prompt(predictor, PhotoSource(sha256, pixels), CLICK)


def kept(metrics: Metrics) -> tuple[int, int]:
    """Embeddings in the cache, and their bytes."""
    text = metrics.render().decode()
    names = ("semsam_embedding_cache_entries", "semsam_embedding_cache_bytes")
    entries, size = (re.search(rf"^{name} (.*)$", text, re.MULTILINE) for name in names)
    assert entries is not None and size is not None
    return int(float(entries[1])), int(float(size[1]))


class Source:
    """Gives a photo's pixels and counts how often it was asked."""

    def __init__(self, rgb: np.ndarray) -> None:
        self.rgb, self.asked = rgb, 0

    def __call__(self) -> np.ndarray:
        self.asked += 1
        return self.rgb


def test_a_second_click_on_a_photo_does_not_decode_or_encode_it_again(model: SemanticSAM) -> None:
    predictor, source = started(model), Source(photo(1))
    cold, warm = click(predictor, "1", source), click(predictor, "1", source)
    assert source.asked == 1
    assert (cold.timings.cache_hit, warm.timings.cache_hit) == (False, True)
    assert str(cold.version) == "tiny-" + "a" * 12
    assert all((a.mask == b.mask).all() for a, b in zip(cold.value, warm.value, strict=True))


def test_many_simultaneous_clicks_on_one_photo_encode_it_once(model: SemanticSAM) -> None:
    predictor, source = started(model), Source(photo(2))
    gate = threading.Barrier(8)

    def annotate(_: int) -> int:
        gate.wait()
        return len(click(predictor, "2", source).value)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(annotate, range(8)))) == 1
    assert source.asked == 1


def test_annotators_on_different_photos_never_get_each_others_masks(model: SemanticSAM) -> None:
    predictor = started(model)
    photos = [photo(i) for i in range(4)]
    expected = [predict_candidates(model, model.encode(rgb), CLICK) for rgb in photos]

    def annotate(i: int) -> bool:
        at = i % len(photos)
        got = click(predictor, str(at), lambda: photos[at]).value
        return len(got) == len(expected[at]) and all(
            np.mean(a.mask != b.mask) < 0.01 for a, b in zip(got, expected[at], strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(annotate, range(40)))


def test_the_cache_keeps_no_more_bytes_than_allowed_and_forgets_the_oldest(model: SemanticSAM) -> None:
    one = model.encode(photo(0)).nbytes
    predictor = started(model, cache_bytes=2 * one)
    sources = [Source(photo(i)) for i in range(3)]
    for i in (0, 1, 2, 2, 1, 0):
        click(predictor, str(i), sources[i])
    assert [s.asked for s in sources] == [2, 1, 1]


def test_a_cache_too_small_for_one_photo_still_answers(model: SemanticSAM) -> None:
    predictor, source = started(model, cache_bytes=0), Source(photo(3))
    for _ in range(2):
        assert click(predictor, "3", source).value
    assert source.asked == 2


def test_a_photo_that_fails_is_not_remembered_and_the_error_reaches_everyone_who_waits(model: SemanticSAM) -> None:
    predictor = started(model)
    entered, leave = threading.Event(), threading.Event()

    def broken() -> np.ndarray:
        entered.set()
        leave.wait(10)
        raise ImageError("picture: cut short")

    def ask(pixels: Callable[[], np.ndarray]) -> str:
        try:
            click(predictor, "4", pixels)
        except ImageError as error:
            return str(error)
        return "answered"

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, broken)
        assert entered.wait(10)
        second = pool.submit(ask, broken)
        leave.set()
        assert {first.result(), second.result()} == {"picture: cut short"}
    assert ask(lambda: photo(4)) == "answered"


def test_a_model_that_cannot_be_loaded_is_said_at_once_and_to_every_click() -> None:
    def load() -> Loaded:
        raise CheckpointError("mobile.safetensors: cut short")

    predictor = Predictor(load, cache_bytes=1, metrics=Metrics())
    predictor.start()
    with pytest.raises(NotReady, match="cut short"):
        click(predictor, "5", lambda: photo(5))
    assert (predictor.state, predictor.problem) == ("failed", "mobile.safetensors: cut short")


def test_a_request_that_has_begun_is_finished_by_the_model_it_began_with(model: SemanticSAM) -> None:
    predictor, other = started(model), tiny_model(7)
    entered, leave = threading.Event(), threading.Event()

    def slow() -> np.ndarray:
        entered.set()
        leave.wait(10)
        return photo(7)

    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(click, predictor, "7", slow)
        assert entered.wait(10)
        assert predictor.switch(lambda: another(other))
        leave.set()
        old = begun.result()
    assert old.version == f"tiny-{'a' * 12}"
    new = click(predictor, "7", lambda: photo(7))
    assert (new.version, new.timings.cache_hit) == (f"tiny-{'b' * 12}", False)
    for got, network in ((old.value, model), (new.value, other)):
        expected = predict_candidates(network, network.encode(photo(7)), CLICK)
        assert [c.area for c in got] == [c.area for c in expected]
        assert [c.score for c in got] == pytest.approx([c.score for c in expected])


def test_a_switch_lets_go_of_the_old_model_and_its_embeddings() -> None:
    models, metrics = [tiny_model()], Metrics()
    gone = weakref.ref(models[0])
    predictor = Predictor(lambda: loaded(models.pop()), cache_bytes=10**9, metrics=metrics)
    predictor.start()
    click(predictor, "8", lambda: photo(8))
    assert kept(metrics)[0] == 1
    assert predictor.switch(lambda: another(tiny_model(7)))
    gc.collect()
    assert gone() is None
    assert kept(metrics) == (0, 0)


def test_when_the_new_model_cannot_be_loaded_the_old_one_goes_on_and_says_why(model: SemanticSAM) -> None:
    predictor = started(model)

    def broken() -> Loaded:
        raise CheckpointError("new.safetensors: cut short")

    assert not predictor.switch(broken)
    assert (predictor.state, predictor.problem) == ("ready", "new.safetensors: cut short")
    assert click(predictor, "9", lambda: photo(9)).version == f"tiny-{'a' * 12}"
    assert predictor.switch(lambda: another(model))
    assert predictor.problem is None


def test_starting_does_not_wait_for_the_model_and_a_click_does(model: SemanticSAM) -> None:
    go = threading.Event()

    def load() -> Loaded:
        go.wait(10)
        return another(model)

    predictor = Predictor(load, cache_bytes=10**8, metrics=Metrics(), first_version="tiny-bbb")
    predictor.start()
    assert (predictor.state, predictor.version, predictor.version_name) == ("loading", None, "tiny-bbb")
    with pytest.raises(NotReady, match="still loading"):
        predictor.ready(wait_s=0.01)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(click, predictor, "6", lambda: photo(6))
        go.set()
        assert answer.result().value
    assert (predictor.state, predictor.version_name) == ("ready", "tiny-" + "b" * 12)


def test_a_window_opens_the_photo_once_and_the_next_time_it_is_neither_opened_nor_encoded(model: SemanticSAM) -> None:
    metrics = Metrics()
    predictor, source = started(model, metrics=metrics), Source(photo(8))
    windows: list[Window] = [(10, 5, 30, 25), (0, 0, 20, 20)]

    def work(_: SemanticSAM, embedding: ImageEmbedding, encode_crop: CropEncoder) -> list[ImageEmbedding]:
        return [embedding, *map(encode_crop, windows)]

    cold, warm = (predictor.run(PhotoSource("8", source), work) for _ in range(2))
    assert source.asked == 1
    assert (cold.timings.cache_hit, warm.timings.cache_hit) == (False, True)
    assert "encode" not in warm.timings.stages
    assert kept(metrics) == (3, sum(embedding.nbytes for embedding in cold.value))
    for result in (cold, warm):
        for got, window in zip(result.value, [None, *windows], strict=True):
            expected = model.encode(source.rgb, window)
            assert torch.equal(got.features.memory, expected.features.memory) and got.frame == expected.frame


def test_a_click_is_answered_from_a_magnified_window_too() -> None:
    always = CandidateOptions(magnify_below=2.0)  # random weights propose large masks
    closer, metrics = build_model(replace(read_model_config("tiny"), zoom=4.0)).eval(), Metrics()
    predictor, source = started(closer, metrics=metrics), Source(photo(8))
    cold, warm = (predict_prompt(predictor, PhotoSource("8", source), CLICK, options=always) for _ in range(2))
    assert source.asked == 1
    assert (cold.timings.cache_hit, warm.timings.cache_hit) == (False, True)
    assert kept(metrics)[0] == 2  # the photo and the window
    expected = predict_candidates(
        closer, closer.encode(source.rgb), CLICK, always, encode_crop=crop_encoder(closer, source.rgb)
    )
    for answer in (cold, warm):
        assert [c.bbox for c in answer.value] == [c.bbox for c in expected]


def nothing(model: SemanticSAM, embedding: ImageEmbedding, encode_crop: CropEncoder) -> None:
    """Work that does nothing with the embedded photo."""


def test_background_work_waits_until_the_click_that_came_before_it_is_answered(model: SemanticSAM) -> None:
    predictor, begun, may_end = started(model), threading.Event(), threading.Event()
    background, order = threading.Event(), list[str]()

    def clicked() -> np.ndarray:
        begun.set()
        assert may_end.wait(60)
        order.append("click")
        return photo(0)

    def unclicked() -> np.ndarray:
        order.append("background")
        background.set()
        return photo(1)

    with ThreadPoolExecutor(2) as pool:
        clicking = pool.submit(click, predictor, "0" * 64, clicked)
        assert begun.wait(60)
        working = pool.submit(predictor.run, PhotoSource("1" * 64, unclicked), nothing, "background")
        assert not background.wait(0.3)
        may_end.set()
        clicking.result(60)
        working.result(60)
    assert order == ["click", "background"]


def test_work_that_may_evict_nothing_puts_no_other_photo_out_of_the_cache(model: SemanticSAM) -> None:
    predictor = started(model, cache_bytes=model.encode(photo(0)).nbytes)
    click(predictor, "0" * 64, lambda: photo(0))
    for may_evict, hit in ((False, True), (True, False)):
        predictor.run(PhotoSource("1" * 64, lambda: photo(1)), nothing, "background", may_evict=may_evict)
        assert click(predictor, "0" * 64, lambda: photo(0)).timings.cache_hit is hit
