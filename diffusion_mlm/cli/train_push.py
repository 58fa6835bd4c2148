"""What `train --push-to-hub` does beside training: the question beforehand, the facts for the card, the last push."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HubUnavailableError, NotAllowedError
from ..hub import HubRepository
from .push import PushArguments, files_to_push

if TYPE_CHECKING:
    from ..trainer import DiffusionTrainer
    from .train_arguments import DataArguments, ModelArguments, TrainCommandArguments


def require_pushable(args: "TrainCommandArguments") -> None:
    """Asks whether the model may be pushed, if it shall be; nothing is loaded or made yet.

    Raises:
        ValueError: a token stands on the command line, or the id is none.
        NotAllowedError, HubUnavailableError: see `HubRepository.require_writable`.
    """
    if args.hub_token:
        raise ValueError(
            "`--hub-token` would be seen by everybody who lists processes: leave it out, and set HF_TOKEN or use "
            "`hf auth login`."
        )
    if not args.push_to_hub or args.process_index != 0:
        return
    name = args.hub_model_id or Path(str(args.output_dir)).absolute().name
    repository = HubRepository(name, argument="--hub-model-id")
    repository.require_writable()
    args.hub_model_id = repository.id


def source_facts(
    model_args: "ModelArguments", data_args: "DataArguments", args: "TrainCommandArguments"
) -> dict[str, Any]:
    """Where model and text come from, and the recipe, by names that anybody may read: no path of this machine."""
    is_hub_model = model_args.model_name is not None and not Path(model_args.model_name).exists()
    is_hub_dataset = data_args.dataset is not None and not Path(data_args.dataset).exists()
    if data_args.is_stories:
        text = f"{data_args.num_stories:,} stories of the language that diffusion_mlm carries"
    elif is_hub_dataset:
        text = str(data_args.dataset)
    else:
        text = "Local text"
    return {
        "base_model": model_args.model_name if is_hub_model else None,
        "dataset": data_args.dataset if is_hub_dataset else None,
        "dataset_config": data_args.dataset_config if is_hub_dataset else None,
        "dataset_split": data_args.dataset_split if is_hub_dataset else None,
        "text": text,
        "recipe": {
            "learning_rate": args.learning_rate,
            "optimizer": str(getattr(args.optim, "value", args.optim)),
            "seed": args.seed,
        },
    }


def push_final(trainer: "DiffusionTrainer", directory: Path) -> None:
    """Pushes the final model with all that has been measured, once it is saved and evaluated.

    Raises:
        NotAllowedError, HubUnavailableError: it is not there; the message says where the model is, and how to repeat.
    """
    repository = trainer._repository
    if repository is None or not trainer.is_world_process_zero():
        return
    trainer._finish_current_push()
    args = PushArguments([str(directory), repository.id], sample_prefix=trainer.args.sample_prefixes[0])
    try:
        repository.publish(files_to_push(args, repository.id), "End of training", revision=trainer.args.hub_revision)
    except (HubUnavailableError, NotAllowedError) as error:
        raise type(error)(
            f"{error} The model is saved in {directory}. Push it: {args.command(repository.id)}"
        ) from error
