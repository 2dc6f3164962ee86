"""What Prometheus reads."""

from backend.metrics import Metrics


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
