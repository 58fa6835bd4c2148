"""What became of the texts, in numbers, for whoever has to tell the user."""

from dataclasses import dataclass


@dataclass
class DataReport:
    """Counts of what became of the texts; each function that is given it adds its own. Streams are counted as 0.

    Attributes:
        num_texts (`int`): texts, or pairs of prompt and response, that were tokenised.
        num_null (`int`): rows left out because they hold no value.
        num_blank (`int`): rows left out because they hold nothing but white space.
        num_literal (`int`): texts with the string of a special token in them, which is read as plain characters.
        num_tokens (`int`): tokens of the texts, before anything is cut or added.
        num_rows (`int`): rows to train on.
        num_cut (`int`): texts too long for a row, whose end is left out (`one_per_row`, prompts).
        num_dropped (`int`): pairs left out because the prompt leaves no room for a response.
        num_dropped_tokens (`int`): tokens of the texts (packed: and separators) that are in no row.
        num_fill (`int`): `</s>` behind the first one of a row, there only to fill it.
    """

    num_texts: int = 0
    num_null: int = 0
    num_blank: int = 0
    num_literal: int = 0
    num_tokens: int = 0
    num_rows: int = 0
    num_cut: int = 0
    num_dropped: int = 0
    num_dropped_tokens: int = 0
    num_fill: int = 0

    def __str__(self) -> str:
        """Says what is there and what was left out, and leaves out what is 0."""
        parts = [f"{self.num_texts:,} texts", f"{self.num_tokens:,} tokens", f"{self.num_rows:,} rows"]
        for count, words in (
            (self.num_null, "null rows left out"),
            (self.num_blank, "blank rows left out"),
            (self.num_literal, "texts with special tokens read as plain characters"),
            (self.num_cut, "texts cut to the length of a row"),
            (self.num_dropped, "pairs left out, their prompt being too long"),
            (self.num_dropped_tokens, "tokens in no row"),
            (self.num_fill, "</s> as fill"),
        ):
            if count:
                parts.append(f"{count:,} {words}")
        return ", ".join(parts)

    def add(self, other: "DataReport") -> None:
        """Adds the counts of `other` to these."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
