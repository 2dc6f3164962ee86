"""What Prometheus reads."""

from backend.metrics import Metrics
from backend.records import ProjectKey


def test_metrics_tell_stages_cache_model_and_events_and_keep_unknown_events_together() -> None:
    metrics = Metrics()
    metrics.stage("encode", 0.5)
    metrics.cache_hit()
    metrics.cache_miss()
    metrics.cache_size(1000, 2)
    metrics.model_ready("mobile", "v1")
    for action in ("ANNOTATION_CREATED", "x1", "x2"):
        metrics.event(action)
    text = metrics.render().decode()
    for line in (
        'semsam_predict_seconds_sum{stage="encode"} 0.5',
        "semsam_embedding_cache_hits_total 1.0",
        "semsam_embedding_cache_misses_total 1.0",
        "semsam_embedding_cache_bytes 1000.0",
        "semsam_embedding_cache_entries 2.0",
        'semsam_model_info{name="mobile",version="v1"} 1.0',
        'semsam_events_total{action="ANNOTATION_CREATED"} 1.0',
        'semsam_events_total{action="other"} 2.0',
    ):
        assert line in text


def test_empty_answers_are_told_by_project_and_those_of_very_many_projects_together() -> None:
    metrics = Metrics()
    mine = ProjectKey("http://ls:8080", 1)
    for reason in ("busy", "no_mask", "no_mask"):
        metrics.empty_answer(reason, mine)
    assert list(metrics.empty_answers()[mine].items()) == [("no_mask", 2), ("busy", 1)]
    for number in range(1000):
        metrics.empty_answer("busy", ProjectKey("http://ls:8080", number))
    metrics.empty_answer("busy", None)
    found = metrics.empty_answers()
    assert len(found) == 101
    assert found[mine] == {"no_mask": 2, "busy": 2}
    assert sum(number for numbers in found.values() for number in numbers.values()) == 3 + 1000 + 1
    assert metrics.render().decode().count("semsam_empty_answers_total{") == 102
