"""Which font a text is drawn with: DejaVu Sans, unless it lacks characters and another installed font has them."""

import logging
from functools import cache
from string import ascii_letters, digits

logger = logging.getLogger(__name__)

DEFAULT = "DejaVu Sans"  # comes with matplotlib
_PLACEHOLDERS = {"Last Resort High-Efficiency", "Last Resort", ".LastResort"}  # a box for every character there is
_OF_LEGENDS = {*map(ord, ascii_letters + digits)}


def font_family(text: str) -> str:
    """The family that lacks the fewest characters of a text, `DEFAULT` if none is better; says once what it lacks."""
    family = _best_family(frozenset(map(ord, filter(str.isprintable, text))))
    if missing := missing_characters(text, family):
        _say_missing(missing)
    return family


def missing_characters(text: str, family: str = DEFAULT) -> str:
    """The characters of a text, each once and in order, that a family lacks: boxes stand for them."""
    known = _characters(font_file(family))
    return "".join(c for c in dict.fromkeys(text) if c.isprintable() and ord(c) not in known)


def font_file(family: str, bold: bool = False) -> str:
    """The file of a family; the regular one stands in for bold where there is none."""
    from matplotlib.font_manager import FontProperties, findfont

    return str(findfont(FontProperties(family=family, weight="bold" if bold else "normal")))


@cache
def _best_family(needed: frozenset[int]) -> str:
    best, fewest = DEFAULT, len(needed - _characters(font_file(DEFAULT)))
    if fewest:
        from matplotlib.font_manager import fontManager

        for family in sorted({font.name for font in fontManager.ttflist} - _PLACEHOLDERS):
            known = _characters(font_file(family))
            if known >= _OF_LEGENDS and len(needed - known) < fewest:
                best, fewest = family, len(needed - known)
            if not fewest:
                break
    return best


@cache
def _characters(path: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(path).get_charmap())


@cache
def _say_missing(characters: str) -> None:
    shown = " ".join(characters[:20]) + (" ..." if len(characters) > 20 else "")
    logger.warning(
        "No installed font has %s: boxes are drawn instead. Install one that does, such as Noto Sans CJK "
        "(fonts-noto-cjk) for Chinese, Japanese and Korean.",
        shown,
    )
