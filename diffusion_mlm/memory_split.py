"""A global batch in smaller pieces: what to set when a step does not fit into memory."""

from transformers import TrainingArguments


def smaller_split(args: TrainingArguments) -> tuple[int, int] | None:
    """Rows per device and accumulation steps of the same global batch with half the rows at a time.

    Where the rows cannot be halved, they are divided by their smallest factor: 9 rows and 1 step become 3 and 3.

    Returns:
        The two numbers, or None for a single row, which cannot be split.
    """
    rows, steps = args.per_device_train_batch_size, args.gradient_accumulation_steps
    if rows < 2:
        return None
    factor = next(number for number in range(2, rows + 1) if rows % number == 0)
    return rows // factor, steps * factor


def memory_advice(args: TrainingArguments, step: int) -> str:
    """One sentence on what failed and the settings to change, as flags with values."""
    failed = f"Out of memory at step {step} with {args.per_device_train_batch_size} rows per device."
    split = smaller_split(args)
    if split is None:
        return f"{failed} Shorten the rows, or add --bf16 true or --activation-checkpointing true."
    rows, steps = split
    return (
        f"{failed} Use --per-device-train-batch-size {rows} --gradient-accumulation-steps {steps}: the global batch, "
        f"and with it the result, stays the same (but for rounding and for what dropout draws). "
        f"--auto-find-batch-size true does so by itself, on one process."
    )
