"""The grammar of the built-in stories: six sentences about a child, an animal friend and a thing worth keeping.

How to read it:

* a string is a template, a tuple is a sequence, a list is a choice;
* `{weather}` is a slot filled anew each time from `SLOTS`;
* `{name}`, `{he}`, `{place}`, ... are forms of the `VARIABLES`: drawn once for a story and the same ever after;
* in every list and slot the first option is the likeliest: option r (from 0) has weight 1 / (r + 5). The values of a
  variable are equally likely.

Everything else (states, probabilities, the denoiser) is compiled from this page by `automaton.py`, which refuses a
grammar whose probabilities would not be exact.
"""

from collections.abc import Sequence
from typing import Any

Node = str | Sequence[Any]  # a template (str), a sequence (tuple of nodes) or a choice (list of nodes)

GIRL = {"child": "girl", "he": "she", "He": "She", "him": "her", "his": "her", "His": "Her"}
BOY = {"child": "boy", "he": "he", "He": "He", "him": "him", "his": "his", "His": "His"}


def _values(form: str, words: str) -> list[dict[str, str]]:
    return [{form: word} for word in words.split()]


# variable -> its values; each value says which word it puts into each form.
VARIABLES: dict[str, list[dict[str, str]]] = {
    "hero": [value | GIRL for value in _values("name", "Lily Anna Rosa Clara Nora Mia")]
    + [value | BOY for value in _values("name", "Tom Ben Leo Finn Jack Max")],
    "friend": _values("friend", "fox dog cat rabbit duck goat pony mouse donkey bear"),
    "place": _values("place", "lake river forest meadow mill bridge castle orchard harbour beach"),
    "colour": _values("colour", "red blue green yellow white purple golden silver"),
    "object": _values("object", "kite lantern drum scarf hat ball bell book flute blanket"),
    "elder": _values("elder", "grandmother grandfather mother father aunt uncle"),
}

SLOTS: dict[str, str] = {
    # people and animals
    "Little": "Little Young Brave",
    "kind": "kind brave curious clever shy playful",
    "small": "small playful loyal sleepy clever shy brave curious",
    "cheeky": "cheeky greedy sly bold",
    "sad": "sad lonely tired",
    # places and times
    "quiet": "quiet sunny windy misty",
    "tiny": "tiny cosy wooden",
    "cottage": "cottage house hut",
    "windy": "windy rainy sunny cloudy misty cold bright warm",
    "morning": "morning evening afternoon day",
    "April": "April May June October",
    "midnight": "midnight nightfall supper sunrise",
    "village": "village town",
    "door": "door gate",
    # the present
    "finest": "finest dearest favourite",
    "treasure": "treasure toy",
    "lovely": "lovely new little fine bright",
    "loved": "loved treasured adored",
    "sent": "bought made sent",
    "found": "made bought found",
    "slept": "slept played",
    # lost and found
    "gone": "gone missing lost",
    "everywhere": "everywhere together bravely",
    "bush": "bush bench log",
    "tree": "tree rock",
    "cried": "cried sighed",
    "under": "under behind beside",
    "mossy": "mossy hollow big",
    "log": "log rock bush bench",
    "pulled": "pulled dug",
    "leaves": "leaves hay",
    "saw": "saw spotted",
    # the thief
    "stole": "stole took grabbed",
    "ran": "ran slipped",
    "chased": "chased followed",
    "dark": "dark cold",
    "cave": "cave tower hut",
    "lonely": "lonely playing",
    "gladly": "gladly quickly",
    "sweet": "sweet ripe",
    "cherries": "cherries plums",
    "begged": "begged cried shouted",
    "bowed": "bowed nodded smiled",
    # the friend goes astray
    "wandered": "wandered ran",
    "called": "called shouted",
    "waited": "waited searched",
    "answered": "answered came",
    "farmer": "farmer baker",
    "raised": "raised lifted",
    "running": "running racing",
    # the stranger
    "home": "home supper",
    "cold": "cold hungry sleepy",
    "smiled": "smiled nodded",
    "hold": "hold borrow",
    "laugh": "laugh smile",
    "laughed": "laughed smiled danced",
    # the end
    "hurried": "hurried ran skipped danced",
    "whole": "whole happy funny strange",
    "soundly": "soundly happily",
    "best": "best dear true",
    "baked": "baked made",
    "warm": "warm sweet",
    "pancakes": "pancakes pies biscuits",
    "always": "always proudly gladly",
    "so": "so very",
}


def for_each(placeholder: str, words: str, node: Node) -> list[Node]:
    """A choice with one copy of `node` per word: the word fills `{placeholder}` and stays the same in the copy."""

    def fill(part: Node, word: str) -> Node:
        if isinstance(part, str):
            return part.replace("{" + placeholder + "}", word)
        return type(part)(fill(inner, word) for inner in part)  # type: ignore[call-arg]

    return [fill(node, word) for word in words.split()]


OPENING = [
    "Once upon a time, {name} lived near the {place} with a {small} {friend}.",
    "A {kind} {child} named {name} lived near the {place} with a {small} {friend}.",
    "{Little} {name} lived near the {quiet} {place} with {his} {small} {friend}.",
    "In a {tiny} {cottage} by the {place} lived {name} and {his} {small} {friend}.",
]

PRESENT = [
    "{His} {elder} had {sent} {him} a {lovely} {colour} {object}.",
    "{His} {finest} {treasure} was a {colour} {object} from {his} {elder}.",
    "{He} {loved} the {colour} {object} that {his} {elder} had {found}.",
    "{He} never {slept} without the {colour} {object} from {his} {elder}.",
]

ONE_DAY = [
    "But one {windy} {morning},",
    "Then one {windy} {morning},",
    "One {windy} {April} {morning},",
    "One {April} {morning},",
]

LOST = (
    [
        "the {colour} {object} was {gone}.",
        "{he} could not find the {colour} {object}.",
        "{he} lost the {colour} {object} by the {place}.",
    ],
    [
        "{He} and the {friend} searched {everywhere} until {midnight}.",
        "{He} looked under every {bush} and behind every {tree}.",
        "Poor {name} {cried} and asked everyone in the {village}.",
    ],
    [
        "At last, the {friend} found it {under} a {mossy} {log}.",
        "Then the {friend} {pulled} it out of a pile of {leaves}.",
        "Finally, {he} {saw} it {under} a {mossy} {log}.",
    ],
)

STOLEN = (
    [
        "a {cheeky} {thief} {stole} the {colour} {object}.",
        "a {cheeky} {thief} {ran} away with it.",
    ],
    [
        "{He} and the {friend} {chased} the {thief} until {midnight}.",
        "The {friend} {chased} the {thief} past the {place}.",
        "{name} {chased} the {thief} into a {dark} {cave}.",
    ],
    [
        "The {thief} was only {lonely} and gave it back {gladly}.",
        "So {he} traded {sweet} {cherries} for it, and the {thief} {bowed}.",
        '"Give it back," {begged} {name}, and the {thief} {bowed}.',
    ],
)

ASTRAY = (
    [
        "the {friend} did not come home.",
        "the {friend} {wandered} off and got lost.",
        "the {friend} got lost near the {place}.",
    ],
    [
        "{name} {called} and {waited}, but nobody {answered}.",
        "{He} waited by the {door} with a heavy heart.",
        "{He} asked every {farmer} in the {village} for help.",
    ],
    [
        "When {he} {raised} the {colour} {object}, the {friend} came {running}.",
        "At last, the {colour} {object} led the {friend} straight home.",
        "Finally, the {friend} {saw} the {colour} {object} and came {running}.",
    ],
)

STRANGER = (
    [
        "{he} met a {sad} {stranger} by the {place}.",
        "a {sad} {stranger} knocked on the {door}.",
    ],
    [
        "The {stranger} had no {home} and looked very {cold}.",
        "The {stranger} was {cold} and far from home.",
        "Nobody spoke to the {stranger}, but {name} {smiled}.",
    ],
    [
        "So {he} shared the {colour} {object}, and the {stranger} {laughed}.",
        "The {friend} and the {colour} {object} made the {stranger} {laugh}.",
        "{name} let the {stranger} {hold} the {colour} {object} until {midnight}.",
    ],
)

ENDING = [
    "{name} {hurried} home and told {his} {elder} the {whole} story.",
    "That night, {he} slept {soundly} beside the {colour} {object}.",
    "From then on, {name} and the {friend} were {best} friends.",
    "The next day, {his} {elder} {baked} {warm} {pancakes} for everyone.",
    "After that, the {friend} {always} guarded the {colour} {object}.",
    '"I am {so} proud of you," said {his} {elder}.',
]

STORY: Node = (
    OPENING,
    PRESENT,
    ONE_DAY,
    [
        LOST,
        for_each("thief", "goblin monkey pirate", STOLEN),
        ASTRAY,
        for_each("stranger", "sailor shepherd wizard", STRANGER),
    ],
    ENDING,
)
