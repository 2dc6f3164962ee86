"""Fine-tuning jobs: asked for, run, judged, registered."""
