"""The colours of pages and pictures, which colour-blind readers tell apart: viridis, and Okabe and Ito 2008."""

INK, PALE_INK, RULE, BAR = "#1c1c1e", "#5d5d64", "#e3e1da", "#d3d0c7"
ORANGE, BLUE, GREEN, SKY, PURPLE, VERMILLION = "#e69f00", "#0072b2", "#009e73", "#56b4e9", "#cc79a7", "#d55e00"
# viridis, at ten even steps from dark to light: also an order in grey print.
RAMP = (
    *("#440154", "#482878", "#3e4989", "#31688e", "#26828e"),
    *("#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"),
)

Colour = tuple[int, int, int]


def rgb(code: str) -> Colour:
    """Red, green and blue, 0 to 255.

    >>> rgb("#e69f00")
    (230, 159, 0)
    """
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def ramp_colour(share: float) -> Colour:
    """The colour at `share` of the ramp, which is cut to [0, 1]."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    low = min(int(place), len(RAMP) - 2)
    return blend(rgb(RAMP[low]), rgb(RAMP[low + 1]), place - low)


def blend(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with a share of `second`."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever contrasts more by WCAG 2."""
    parts = [x / 255 / 12.92 if x / 255 <= 0.04045 else ((x / 255 + 0.055) / 1.055) ** 2.4 for x in colour]
    luminance = 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    return (17, 17, 17) if luminance > 0.18 else (255, 255, 255)


def code(colour: Colour) -> str:
    """As in CSS and SVG.

    >>> code((230, 159, 0))
    '#e69f00'
    """
    return "#{:02x}{:02x}{:02x}".format(*colour)
