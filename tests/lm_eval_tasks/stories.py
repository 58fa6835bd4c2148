"""Questions about the built-in stories, for lm-evaluation-harness: which thing it was, and what comes next."""

from datasets import Dataset

from diffusion_mlm import story_language
from diffusion_mlm.story_language.grammar import VARIABLES

OBJECTS = sorted({value["object"] for value in VARIABLES["treasure"]})


def load(num_stories: int = 8, **others) -> dict[str, Dataset]:
    """Stories up to the last mention of the thing they are about, which was named before."""
    docs = []
    for story in story_language.sample(num_stories, seed=11):
        place, word = max((story.rfind(f" {word}"), word) for word in OBJECTS)
        docs.append({"story": story, "context": story[:place], "word": word, "objects": OBJECTS})
    return {"test": Dataset.from_list(docs)}
