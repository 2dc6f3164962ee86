"""One model, many photos and threads: embeddings are shared, bounded and never mixed."""

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from backend.errors import NotReady
from backend.inference.predictor import Loaded, Predictor
from backend.metrics import Metrics
from semsam_model.checkpoints.header import Version
from semsam_model.config import read_model_config
from semsam_model.errors import CheckpointError, ImageError
from semsam_model.inference.candidates import CandidateOptions
from semsam_model.inference.preannotate import RegionOptions
from semsam_model.inference.predict import predict_candidates
from semsam_model.inference.zoom import crop_encoder
from semsam_model.network.model import SemanticSAM, build_model
from semsam_model.types import Click, Prompt

CLICK = Prompt((Click(20, 20),))


def tiny_model(seed: int = 0) -> SemanticSAM:
    torch.manual_seed(seed)
    return build_model(read_model_config("tiny")).eval()


@pytest.fixture(scope="module")
def model() -> SemanticSAM:
    return tiny_model()


@pytest.fixture(scope="module")
def everything() -> SemanticSAM:
    """One with object queries."""
    torch.manual_seed(0)
    return build_model(replace(read_model_config("tiny"), generic_queries=4, generic_layers=1)).eval()


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)


def started(model: SemanticSAM, cache_bytes: int = 10**9, digest: str = "a" * 64) -> Predictor:
    predictor = Predictor(lambda: Loaded(model, Version("tiny", digest)), cache_bytes=cache_bytes, metrics=Metrics())
    predictor.start()
    predictor.ready()
    return predictor


class Source:
    """Gives a photo's pixels and counts how often it was asked."""

    def __init__(self, rgb: np.ndarray) -> None:
        self.rgb, self.asked = rgb, 0

    def __call__(self) -> np.ndarray:
        self.asked += 1
        return self.rgb


def test_a_second_click_on_a_photo_does_not_decode_or_encode_it_again(model: SemanticSAM) -> None:
    predictor, source = started(model), Source(photo(1))
    first, version, cold = predictor.propose("1", source, CLICK)
    second, _, warm = predictor.propose("1", source, CLICK)
    assert source.asked == 1
    assert (cold.cache_hit, warm.cache_hit) == (False, True)
    assert str(version) == "tiny-" + "a" * 12
    assert all((a.mask == b.mask).all() for a, b in zip(first, second, strict=True))


def test_many_simultaneous_clicks_on_one_photo_encode_it_once(model: SemanticSAM) -> None:
    predictor, source = started(model), Source(photo(2))
    gate = threading.Barrier(8)

    def click(_: int) -> int:
        gate.wait()
        return len(predictor.propose("2", source, CLICK)[0])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(click, range(8)))) == 1
    assert source.asked == 1


def test_annotators_on_different_photos_never_get_each_others_masks(model: SemanticSAM) -> None:
    predictor = started(model)
    photos = [photo(i) for i in range(4)]
    expected = [predict_candidates(model, model.encode(rgb), CLICK) for rgb in photos]

    def click(i: int) -> bool:
        at = i % len(photos)
        got, _, _ = predictor.propose(str(at), lambda: photos[at], CLICK)
        return len(got) == len(expected[at]) and all(
            np.mean(a.mask != b.mask) < 0.01 for a, b in zip(got, expected[at], strict=True)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(click, range(40)))


def test_the_cache_keeps_no_more_bytes_than_allowed_and_forgets_the_oldest(model: SemanticSAM) -> None:
    one = model.encode(photo(0)).nbytes
    predictor = started(model, cache_bytes=2 * one)
    sources = [Source(photo(i)) for i in range(3)]
    for i in (0, 1, 2, 2, 1, 0):
        predictor.propose(str(i), sources[i], CLICK)
    assert [s.asked for s in sources] == [2, 1, 1]


def test_a_cache_too_small_for_one_photo_still_answers(model: SemanticSAM) -> None:
    predictor, source = started(model, cache_bytes=0), Source(photo(3))
    for _ in range(2):
        assert predictor.propose("3", source, CLICK)[0]
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
            predictor.propose("4", pixels, CLICK)
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
        predictor.propose("5", lambda: photo(5), CLICK)
    assert (predictor.state, predictor.problem) == ("failed", "mobile.safetensors: cut short")


def test_a_request_that_has_begun_is_finished_by_the_model_it_began_with(model: SemanticSAM) -> None:
    predictor, other = started(model), tiny_model(7)
    entered, leave = threading.Event(), threading.Event()

    def slow() -> np.ndarray:
        entered.set()
        leave.wait(10)
        return photo(7)

    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(predictor.propose, "7", slow, CLICK)
        assert entered.wait(10)
        assert predictor.switch(lambda: Loaded(other, Version("tiny", "b" * 64)))
        leave.set()
        old, version, _ = begun.result()
    assert version.digest == "a" * 64
    new, version, timings = predictor.propose("7", lambda: photo(7), CLICK)
    assert (version.digest, timings.cache_hit) == ("b" * 64, False)
    for got, network in ((old, model), (new, other)):
        expected = predict_candidates(network, network.encode(photo(7)), CLICK)
        assert [c.area for c in got] == [c.area for c in expected]
        assert [c.score for c in got] == pytest.approx([c.score for c in expected])


def test_a_switch_lets_go_of_the_old_model_and_its_embeddings() -> None:
    models = [tiny_model()]
    gone = weakref.ref(models[0])
    predictor = Predictor(lambda: Loaded(models.pop(), Version("tiny", "a" * 64)), cache_bytes=10**9, metrics=Metrics())
    predictor.start()
    predictor.propose("8", lambda: photo(8), CLICK)
    assert predictor.switch(lambda: Loaded(tiny_model(7), Version("tiny", "b" * 64)))
    gc.collect()
    assert gone() is None
    assert (len(predictor._cache), predictor._cache.currsize) == (0, 0)


def test_when_the_new_model_cannot_be_loaded_the_old_one_goes_on_and_says_why(model: SemanticSAM) -> None:
    predictor = started(model)

    def broken() -> Loaded:
        raise CheckpointError("new.safetensors: cut short")

    assert not predictor.switch(broken)
    assert (predictor.state, predictor.problem) == ("ready", "new.safetensors: cut short")
    _, version, _ = predictor.propose("9", lambda: photo(9), CLICK)
    assert version.digest == "a" * 64
    assert predictor.switch(lambda: Loaded(model, Version("tiny", "b" * 64)))
    assert predictor.problem is None


def test_who_listens_hears_of_every_model_that_begins_to_answer(model: SemanticSAM) -> None:
    first, second = (Loaded(model, Version("tiny", digit * 64)) for digit in "ab")
    predictor = Predictor(lambda: first, cache_bytes=1, metrics=Metrics())
    heard = []

    def listener(loaded: Loaded) -> None:
        heard.append((loaded.version.digest[0], predictor.version == loaded.version))
        raise RuntimeError("a listener that fails changes nothing")

    predictor.listen(listener)
    predictor.start()
    predictor.ready()
    assert predictor.switch(lambda: second)
    assert heard == [("a", True), ("b", True)]


def test_starting_does_not_wait_for_the_model_and_a_click_does(model: SemanticSAM) -> None:
    go = threading.Event()

    def load() -> Loaded:
        go.wait(10)
        return Loaded(model, Version("tiny", "b" * 64))

    predictor = Predictor(load, cache_bytes=10**8, metrics=Metrics())
    predictor.start()
    assert (predictor.state, predictor.version) == ("loading", None)
    with pytest.raises(NotReady, match="still loading"):
        predictor.ready(wait_s=0.01)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(predictor.propose, "6", lambda: photo(6), CLICK)
        go.set()
        assert answer.result()[0]
    assert predictor.state == "ready"


def test_a_magnified_crop_opens_the_photo_once_and_the_next_click_there_neither_opens_nor_encodes() -> None:
    always = CandidateOptions(magnify_below=2.0)  # random weights propose large masks
    closer = build_model(replace(read_model_config("tiny"), zoom=4.0)).eval()
    predictor, source = started(closer), Source(photo(8))
    first, _, cold = predictor.propose("8", source, CLICK, options=always)
    second, _, warm = predictor.propose("8", source, CLICK, options=always)
    assert source.asked == 1
    assert (cold.cache_hit, warm.cache_hit) == (False, True)
    assert "encode" not in warm.stages
    assert len(predictor._cache) == 2  # the photo and the window
    expected = predict_candidates(
        closer, closer.encode(source.rgb), CLICK, always, encode_crop=crop_encoder(closer, source.rgb)
    )
    for answer in (first, second):
        assert [c.bbox for c in answer] == [c.bbox for c in expected]


def test_a_photo_without_a_click_waits_until_the_click_that_came_before_it_is_answered(everything: SemanticSAM) -> None:
    predictor, begun, may_end = started(everything), threading.Event(), threading.Event()
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
        click = pool.submit(predictor.propose, "0" * 64, clicked, CLICK)
        assert begun.wait(60)
        regions = pool.submit(predictor.preannotate, "1" * 64, unclicked, None, RegionOptions())
        assert not background.wait(0.3)
        may_end.set()
        click.result(60)
        regions.result(60)
    assert order == ["click", "background"]


def test_photos_without_a_click_put_no_clicked_photo_out_of_the_cache(everything: SemanticSAM) -> None:
    predictor = started(everything, cache_bytes=everything.encode(photo(0)).nbytes)
    predictor.propose("0" * 64, lambda: photo(0), CLICK)
    for keep, hit in ((False, True), (True, False)):
        predictor.preannotate("1" * 64, lambda: photo(1), None, RegionOptions(), keep=keep)
        assert predictor.propose("0" * 64, lambda: photo(0), CLICK)[2].cache_hit is hit
