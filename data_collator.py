"""The collator, importable as `from data_collator import DataCollatorForMaskedDiffusion`.

Run as a script it shows one batch at each mask rate: `python data_collator.py`.
"""

from diffusion_mlm import DataCollatorForMaskedDiffusion

__all__ = ["DataCollatorForMaskedDiffusion"]


def show_batches() -> None:
    """Prints a story as the collator hands it to the model at mask rates 1.0, 0.9, ... 0.1, five tokens kept."""
    from diffusion_mlm import story_language

    tokenizer = story_language.tokenizer()
    row = {"input_ids": tokenizer(story_language.sample(1, seed=0)[0])["input_ids"]}
    for tenths in range(10, 0, -1):
        collator = DataCollatorForMaskedDiffusion(
            tokenizer, masking="levels", levels=(tenths / 10,), prefix_length=5, return_mask_rate=True
        )
        batch = collator([row])
        scored = int((batch["labels"] != -100).sum())
        text = tokenizer.decode(batch["input_ids"][0, 1:-1]).replace(tokenizer.mask_token, " ___")
        print(f"mask rate {float(batch['mask_rate'][0]):.1f}, {scored} tokens to predict:\n  {text}\n")


if __name__ == "__main__":
    show_batches()
