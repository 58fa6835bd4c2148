"""Two small models carried by the package: a masked language model of the stories and the generator made from it."""

from pathlib import Path

STORIES_MLM = str(Path(__file__).parent / "stories-mlm")
STORIES_GENERATOR = str(Path(__file__).parent / "stories-generator")
