"""Where the repository and its files lie, for tests."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Brush masks with a level and a note for each region: what a project may have, and the product does not suggest.
BRUSH_WITH_LEVELS = ROOT / "tests" / "backend" / "brush_with_levels.xml"
CONFIGS = ROOT / "configs"
SAMPLES = ROOT / "samples"
FIXTURES = ROOT / "tests" / "fixtures"
