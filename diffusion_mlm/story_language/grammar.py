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
    "hero": [value | GIRL for value in _values("name", "Lily Anna Rosa Clara Mia")]
    + [value | BOY for value in _values("name", "Tom Ben Leo Finn Max")],
    "friend": [
        {"friend": animal, "pet": name}
        for animal, name in (
            ("fox", "Rusty"),
            ("dog", "Biscuit"),
            ("cat", "Whiskers"),
            ("rabbit", "Clover"),
            ("duck", "Waddles"),
            ("goat", "Nibbles"),
            ("pony", "Star"),
            ("mouse", "Pip"),
        )
    ],
    "treasure": [
        {"colour": colour, "object": thing}
        for colour, things in (
            ("red", "kite scarf"),
            ("blue", "drum boat"),
            ("golden", "bell lantern"),
            ("silver", "flute whistle"),
            ("green", "hat blanket"),
        )
        for thing in things.split()
    ],
}

SLOTS: dict[str, str] = {
    # people and animals
    "Little": "Little Young Brave",
    "kind": "kind brave curious clever shy playful cheerful polite patient",
    "small": "small playful loyal sleepy clever shy brave curious gentle hungry",
    "cheeky": "cheeky greedy sly bold",
    "sad": "sad lonely tired",
    "elder": "grandmother grandfather mother father aunt uncle",
    # places and times
    "place": "lake river forest meadow mill bridge castle orchard harbour beach",
    "quiet": "quiet sunny windy misty",
    "tiny": "tiny cosy wooden",
    "cottage": "cottage house hut",
    "windy": "windy rainy sunny cloudy misty cold bright warm",
    "morning": "morning evening afternoon day",
    "April": "April May June October",
    "midnight": "midnight nightfall supper sunrise",
    "village": "village town market",
    "door": "door gate window",
    # the present
    "finest": "finest dearest favourite",
    "toy": "treasure toy present",
    "lovely": "lovely new little fine shiny wonderful pretty",
    "loved": "loved treasured adored",
    "sent": "bought made sent",
    "found": "made bought found",
    "slept": "slept played danced",
    # lost and found
    "gone": "gone missing lost broken",
    "everywhere": "everywhere together bravely",
    "bush": "bush bench stone",
    "cried": "cried sighed wept",
    "under": "under behind beside",
    "mossy": "mossy hollow warm",
    "nest": "nest log basket",
    "howled": "howled wept helped",
    "log": "log rock tree hedge chest",
    "pulled": "pulled dug",
    "leaves": "leaves hay straw",
    "saw": "saw spotted noticed",
    # the thief
    "stole": "stole took grabbed",
    "ran": "ran slipped flew",
    "chased": "chased followed",
    "cave": "cave tower cellar forest swamp",
    "gladly": "gladly quickly gently",
    "sweet": "sweet ripe juicy",
    "cherries": "cherries plums apples",
    "begged": "begged shouted called",
    "bowed": "bowed nodded smiled",
    # the friend goes astray
    "wandered": "wandered hopped",
    "waited": "waited searched listened",
    "farmer": "farmer baker miller",
    "raised": "raised lifted waved",
    "running": "running racing hurrying",
    # the stranger
    "home": "home money family bed",
    "hungry": "hungry thirsty frightened",
    "hold": "hold borrow keep",
    "laugh": "laugh smile sing",
    "laughed": "laughed smiled danced",
    # the end
    "hurried": "hurried skipped marched",
    "soundly": "soundly happily peacefully",
    "best": "best dear true close great",
    "baked": "baked made served bought",
    "pancakes": "pancakes pies biscuits cakes",
    "everyone": "everyone dinner breakfast supper",
    "always": "always proudly gladly carefully bravely",
    "so": "so very really truly",
}


def for_each(placeholder: str, words: str, node: Node) -> list[Node]:
    """A choice with one copy of `node` per word: the word fills `{placeholder}` and stays the same in the copy."""

    def fill(part: Node, word: str) -> Node:
        if isinstance(part, str):
            return part.replace("{" + placeholder + "}", word)
        return type(part)(fill(inner, word) for inner in part)  # type: ignore[call-arg]

    return [fill(node, word) for word in words.split()]


OPENING = [
    "Once upon a time, {name} lived near the {place} with {pet} the {friend}.",
    "A {kind} {child} named {name} had a {small} {friend} called {pet}.",
    "{Little} {name} lived by the {quiet} {place} with {his} {friend}, {pet}.",
    "In a {tiny} {cottage} lived {name} and {his} {small} {friend}, {pet}.",
]

PRESENT = [
    "{His} {elder} had {sent} {him} a {lovely} {colour} {object}.",
    "{His} {finest} {toy} was a {colour} {object} from {his} {elder}.",
    "{He} {loved} the {lovely} {colour} {object} that {his} {elder} had {found}.",
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
        "{name} lost the {colour} {object} at the {village}.",
    ],
    [
        "{He} and {pet} the {friend} searched {everywhere} until {midnight}.",
        "{He} and {pet} looked under every {bush} and {log}.",
        "Poor {name} {cried}, and {pet} the {friend} {howled}.",
    ],
    [
        "At last, {pet} found the {colour} {object} {under} a {log}.",
        "Then {pet} {pulled} the {colour} {object} out of the {leaves}.",
        "Finally, {he} {saw} the {colour} {object} in a {mossy} {nest}.",
    ],
)

STOLEN = (
    [
        "a {cheeky} {thief} {stole} the {colour} {object}.",
        "a {cheeky} {thief} {ran} away with the {colour} {object}.",
    ],
    [
        "{He} and {pet} {chased} the {thief} until {midnight}.",
        "{pet} the {friend} {chased} the {thief} past the {village}.",
        "{name} and {pet} {chased} the {thief} into a {cave}.",
    ],
    [
        "The {thief} was only {sad} and gave it back {gladly}.",
        "So {he} traded {sweet} {cherries} for the {colour} {object}.",
        '"Give it back," {begged} {name}, and the {thief} {bowed}.',
    ],
)

ASTRAY = (
    [
        "{pet} the {friend} did not come home.",
        "{pet} the {friend} {wandered} off and got lost.",
        "{pet} got lost in the {village}.",
    ],
    [
        "{name} called for {pet} and {waited} until {midnight}.",
        "{He} waited for {pet} by the {door} until {midnight}.",
        "{He} asked every {farmer} in the {village} about {pet}.",
    ],
    [
        "When {he} {raised} the {colour} {object}, {pet} came {running}.",
        "At last, the {colour} {object} led {pet} the {friend} straight to {him}.",
        "Finally, {pet} {saw} the {colour} {object} and came {running}.",
    ],
)

STRANGER = (
    [
        "{he} met a {sad} {stranger} by the {door}.",
        "a {sad} {stranger} knocked on the {door}.",
    ],
    [
        "The {stranger} had no {home} and looked very {hungry}.",
        "{pet} the {friend} saw that the {stranger} was {hungry}.",
        "Nobody spoke to the {stranger}, but {name} and {pet} {bowed}.",
    ],
    [
        "So {he} shared the {colour} {object}, and the {stranger} {laughed}.",
        "{pet} and the {colour} {object} made the {stranger} {laugh}.",
        "{name} let the {stranger} {hold} the {colour} {object}.",
    ],
)

ENDING = [
    "{name} and {pet} {hurried} home to tell everyone everything.",
    "That night, {he} slept {soundly} beside {pet} and the {colour} {object}.",
    "From then on, {name} and {pet} the {friend} were {best} friends.",
    "The next day, {name} {baked} {sweet} {pancakes} for {everyone}.",
    "After that, {pet} the {friend} {always} guarded the {colour} {object}.",
    '"I am {so} proud of you," {name} told {pet}.',
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
