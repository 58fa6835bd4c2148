"""`diffusion-mlm train`: everything is checked, then model and data are loaded, trained, evaluated and saved."""

import contextlib
import logging
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from .. import __version__, story_language
from ..callbacks import LastEvaluationCallback, LogFileCallback, LogLineCallback, SampleTextCallback
from ..canvas import is_gaussian
from ..data import (
    DataReport,
    load_prompts,
    load_stories,
    load_texts,
    tokenize_and_pack,
    tokenize_prompts,
    train_validation_split,
)
from ..data_sampler import WholeBatchSampler
from ..embedding_diffusion.trainer import EmbeddingDiffusionTrainer
from ..errors import CheckpointError, OutputDirectoryError, SaveError
from ..generation_config import DiffusionGenerationConfig
from ..hub_access import require_repository
from ..lora import add_lora, merge_lora
from ..modeling import require_mask_token
from ..output_directory import require_writable
from ..run_lock import require_unlocked, run_lock
from ..sealed_checkpoints import checkpoints_in, read_facts, replace_directory
from ..sharding import whole_state_dict
from ..trainer import DiffusionTrainer
from . import VERBS
from .parsing import parse
from .run_summary import run_summary, write_summary
from .train_arguments import DataArguments, ModelArguments, TrainCommandArguments
from .train_model import make_model
from .train_push import push_final, require_pushable, source_facts

logger = logging.getLogger("diffusion_mlm")

_STORY_SEED, _STORY_EVAL_SEED, _NUM_EVAL_STORIES = 1, 2, 512


def run(argv: list[str]) -> int:
    """Runs `train` with these arguments and returns the exit status 0; errors are raised."""
    model_args, data_args, args = parse([ModelArguments, DataArguments, TrainCommandArguments], argv, "train")
    show_progress(args)
    train(model_args, data_args, args)
    if torch.distributed.is_initialized():  # a process that ends with its threads alive may be aborted
        torch.distributed.destroy_process_group()
    return 0


def show_progress(args: TrainCommandArguments) -> None:
    """Sends what the package says to standard error, from the first process only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if args.process_index == 0 else logging.ERROR)
    transformers_logging.disable_progress_bar()  # of loading and saving files; training keeps its own
    if args.process_index != 0:
        datasets.disable_progress_bars()


def train(model_args: ModelArguments, data_args: DataArguments, args: TrainCommandArguments) -> dict[str, float]:
    """Trains and saves; returns the metrics of the final evaluation."""
    with contextlib.ExitStack() as lock:  # held from the first byte that is written to the last
        return _train(model_args, data_args, args, lock)


def _train(
    model_args: ModelArguments, data_args: DataArguments, args: TrainCommandArguments, lock: contextlib.ExitStack
) -> dict[str, float]:
    resume_from = resume_directory(args)
    check_output(args)
    require_reachable(model_args, data_args)
    require_pushable(args)
    texts, eval_texts = load_both_texts(data_args, args.seed)
    if eval_texts is None and args.load_best_model_at_end:
        raise ValueError(
            "`--early-stopping-patience` and `--load-best-model-at-end` need text to evaluate on: set `--validation` "
            "above 0, or name `--eval-file`."
        )
    model, tokenizer, max_length = make_model(model_args, data_args, texts, args.seed)
    require_mask_token(tokenizer)
    args.mask_end_token = data_args.packing == "one_per_row"
    if args.prefix != "random" and int(args.prefix) >= max_length - 2:
        raise ValueError(
            f"`--prefix-length` is {args.prefix}, which leaves nothing to mask in rows of {max_length} tokens. Use "
            f"less than {max_length - 2}, or longer rows."
        )
    report = DataReport()
    train_rows = make_rows(texts, tokenizer, data_args, max_length, report)
    eval_rows = make_rows(eval_texts, tokenizer, data_args, max_length) if eval_texts is not None else None
    logger.info("training text: %s", report)
    logger.info("model: %s, %s parameters", type(model).__name__, f"{model.num_parameters():,}")

    model.config.diffusion = training_facts(args, max_length, model_args.lora_rank)
    if is_gaussian(model):
        model.config.diffusion |= {"process": "gaussian", "objective": model.config.objective}
    if model_args.lora_rank is not None:
        model = add_lora(model, model_args.lora_rank, model_args.lora_alpha, model_args.lora_targets, args.seed)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        logger.info("LoRA: %s parameters are trained", f"{trained:,}")

    if hasattr(train_rows, "__len__"):  # not streamed
        global_batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        WholeBatchSampler(len(train_rows), global_batch, args.seed)  # refuses data smaller than one global batch
    elif args.token_weights is not None:
        raise ValueError(
            "`--token-weights` are counted before training, which `--streaming` does not allow: drop one."
        )
    final_directory = make_output(args, lock)  # nothing is written before this

    if args.run_name is None:  # trackers that end with training would begin another run for the last evaluation
        args.run_name = f"{Path(str(args.output_dir)).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if Path(model.config._name_or_path).is_absolute():  # trackers are given the configuration
        model.config._name_or_path = Path(model.config._name_or_path).name
    generation_config = DiffusionGenerationConfig()
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # there is nothing to pin memory for
    if eval_rows is None:
        args.eval_strategy = "no"
    samples = SampleTextCallback(tokenizer, args.sample_prefixes, generation_config, args.seed)
    last = LastEvaluationCallback()
    trainer = (EmbeddingDiffusionTrainer if is_gaussian(model) else DiffusionTrainer)(
        model,
        args,
        processing_class=tokenizer,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        callbacks=[samples, last, LogFileCallback(final_directory.with_name("log.jsonl"))],
    )
    trainer.card_facts = {"source": source_facts(model_args, data_args, args), "training_text": str(report)}
    samples.log = trainer.log
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LogLineCallback)
    trainer.train(resume_from_checkpoint=resume_from)
    save_final(trainer, tokenizer, generation_config, final_directory)  # before the evaluation, which may take long
    metrics = {}
    if eval_rows is not None:
        metrics = last.of_the_end(args, trainer.state) or trainer.evaluate()
    if metrics:
        line = f"likelihood bound: {metrics['eval_loss']:.4f} nats per token on held-out text"
        if data_args.is_stories:
            line += f" (the language itself: {story_language.entropy_per_token():.4f})"
        logger.info(line)
    if trainer.is_world_process_zero():
        summary = write_summary(final_directory.with_name("summary.json"), trainer, metrics, report)
        eval_file = data_args.eval_file[0] if data_args.eval_file else None
        logger.info(run_summary(final_directory.parent, summary, verbs=VERBS, eval_file=eval_file))
    push_final(trainer, final_directory)
    return metrics


def check_output(args: TrainCommandArguments) -> None:
    """Refuses an output directory that holds something else or that another run uses; writes nothing.

    Raises:
        OutputDirectoryError: it is a file, or in use.
        ValueError: it holds checkpoints, and what to do with them is not said.
    """
    output = Path(str(args.output_dir))
    if output.exists() and not output.is_dir():
        raise OutputDirectoryError(f"`--output-dir` is {str(output)!r}, which is a file. Name a directory.")
    if args.process_index == 0:
        require_unlocked(output)
    checkpoints = checkpoints_in(output)
    if checkpoints and not args.resume_from_checkpoint and not args.overwrite_output:
        raise ValueError(
            f"`--output-dir` {str(output)!r} holds checkpoints of a run before ({checkpoints[0][1].name}). Add "
            f"`--resume-from-checkpoint true` to go on with it, `--overwrite-output true` to replace it, or name "
            f"another directory."
        )


def make_output(args: TrainCommandArguments, lock: contextlib.ExitStack) -> Path:
    """Makes the output directory and holds it, without the checkpoints that are to be replaced.

    Returns:
        Where the model goes.

    Raises:
        OutputDirectoryError: it cannot be written to, or another run uses it.
    """
    output = Path(str(args.output_dir))
    if args.process_index == 0:
        require_writable(output)
        lock.enter_context(run_lock(output))
        if not args.resume_from_checkpoint:
            for _, checkpoint in checkpoints_in(output):
                shutil.rmtree(checkpoint)
    return output / "final-model"


def resume_directory(args: TrainCommandArguments) -> str | bool | None:
    """What the trainer resumes from: a path, the newest complete checkpoint (True), it or none ("auto"), or none.

    Raises:
        ValueError: there is no such checkpoint, or its manifest says that it is damaged. The trainer reads the rest.
    """
    wanted = str(args.resume_from_checkpoint or "false")
    output = Path(str(args.output_dir))
    if wanted.lower() in ("false", "true", "auto"):
        args.resume_from_checkpoint = None if wanted.lower() == "false" else wanted.lower()
    if args.resume_from_checkpoint is None or wanted.lower() == "auto":
        return args.resume_from_checkpoint
    if wanted.lower() == "true":
        if not checkpoints_in(output):
            raise ValueError(
                f"`--resume-from-checkpoint` found no checkpoint in {args.output_dir!r}. Leave it out to begin."
            )
        return True
    if not Path(wanted).is_dir():
        raise ValueError(f"`--resume-from-checkpoint` is {wanted!r}, and there is no such directory.")
    if not args.allow_inexact_resume:
        try:
            read_facts(Path(wanted), contents=False)
        except CheckpointError as error:
            raise ValueError(f"`--resume-from-checkpoint` {wanted!r} cannot be used: {error}.") from error
    return wanted


def require_reachable(model_args: ModelArguments, data_args: DataArguments) -> None:
    """Asks the Hub for everything by name before anything heavy is loaded."""
    if model_args.model_name is not None:
        require_repository(model_args.model_name, "model", "--model-name")
    if model_args.tokenizer not in (None, "bpe", "char"):
        require_repository(str(model_args.tokenizer), "model", "--tokenizer", probe_file="tokenizer_config.json")
    if data_args.dataset is not None:
        require_repository(data_args.dataset, "dataset", "--dataset", probe_file="README.md")


def load_both_texts(data_args: DataArguments, seed: int) -> tuple[Any, Any]:
    """The texts to train and to evaluate on; the second is None if nothing is held out."""
    if data_args.is_stories:
        held_out = load_stories(_NUM_EVAL_STORIES, _STORY_EVAL_SEED) if data_args.validation else None
        return load_stories(data_args.num_stories, _STORY_SEED), held_out
    report = DataReport()
    texts = _load(data_args, data_args.train_file, data_args.dataset_split, report)
    if report.num_null or report.num_blank:
        logger.info("left out: %d null and %d blank texts", report.num_null, report.num_blank)
    if data_args.eval_file:
        return texts, _load(data_args, data_args.eval_file, data_args.dataset_split)
    if data_args.eval_split and data_args.dataset:
        return texts, _load(data_args, None, data_args.eval_split)
    return train_validation_split(texts, data_args.validation, seed)


def _load(data_args: DataArguments, files: list[str] | None, split: str, report: DataReport | None = None) -> Any:
    if data_args.prompt_column is not None and files:
        return load_prompts(
            files,
            prompt_column=data_args.prompt_column,
            response_column=data_args.text_column,
            encoding=data_args.encoding,
            report=report,
        )
    return load_texts(
        None if files else data_args.dataset,
        files=files,
        config=data_args.dataset_config,
        split=split,
        streaming=data_args.streaming,
        text_column=data_args.text_column,
        text_unit=data_args.text_unit,
        encoding=data_args.encoding,
        report=report,
    )


def make_rows(
    texts: Any,
    tokenizer: PreTrainedTokenizerBase,
    data_args: DataArguments,
    max_length: int,
    report: DataReport | None = None,
) -> Any:
    """Rows of token ids."""
    if data_args.prompt_column is not None:
        return tokenize_prompts(texts, tokenizer, max_length, report=report)
    return tokenize_and_pack(
        texts,
        tokenizer,
        max_length,
        data_args.packing,  # type: ignore[arg-type]  # the parser has checked it
        separate_texts=not data_args.join_texts,
        report=report,
    )


def training_facts(args: TrainCommandArguments, max_length: int, lora_rank: int | None = None) -> dict[str, Any]:
    """How the model was trained, for `config.json`; `recipe` holds what is not as usual, if anything is."""
    recipe = {
        "rate_distribution": args.rate_distribution if args.rate_distribution != "uniform" else None,
        "rate_parameters": args.rate_parameters,
        "max_mask_rate": args.max_mask_rate if args.max_mask_rate < 1 else None,
        "independent_times": not args.stratified_times,
        "token_weights": args.token_weights,
        "random_length_share": args.random_length_share,
        "ema_decay": args.ema_decay,
        "lora_rank": lora_rank,
    }
    recipe = {name: value for name, value in recipe.items() if value}
    return {
        "version": __version__,
        "process": "masked",
        "objective": args.objective,
        "schedule": args.schedule,
        "masking": args.masking,
        "prefix_length": args.prefix,
        "row_length": max_length,
        "generates_end": args.mask_end_token,
        **({"recipe": recipe} if recipe else {}),
    }


def save_final(
    trainer: DiffusionTrainer,
    tokenizer: PreTrainedTokenizerBase,
    generation_config: DiffusionGenerationConfig,
    directory: Path,
) -> None:
    """Writes model, tokenizer and generation config beside the target, then puts them in its place."""
    weights = whole_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return
    for left in directory.parent.glob(f"{directory.name}.tmp-*"):  # of a run that was killed here
        shutil.rmtree(left)
    fresh = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    try:
        with torch.no_grad():
            merge_lora(trainer.accelerator.unwrap_model(trainer.model)).save_pretrained(fresh, state_dict=weights)
        tokenizer.save_pretrained(fresh)
        generation_config.save_pretrained(fresh)
        replace_directory(fresh, directory)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise SaveError(
            f"{directory} could not be saved ({error}). Make room; `--resume-from-checkpoint true` goes on from the "
            f"last checkpoint, if there is one, and saves again."
        ) from error
