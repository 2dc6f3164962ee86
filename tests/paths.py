"""Where the repository and its files lie, for tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
SAMPLES = ROOT / "samples"
FIXTURES = ROOT / "tests" / "fixtures"
