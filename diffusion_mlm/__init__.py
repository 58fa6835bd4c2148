"""Turn a masked language model into a text generator."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public names and where they live. They are imported when first used, so that `import diffusion_mlm` and `--help` are
# quick: transformers takes seconds.
_EXPORTS = {
    "CandidateGuidance": "guidance",
    "Constraints": "constraints",
    "DataCollatorForMaskedDiffusion": "data_collator",
    "DiffusionGenerationConfig": "generation_config",
    "DiffusionGenerationOutput": "generation",
    "DiffusionTrainer": "trainer",
    "DiffusionTrainingArguments": "training_args",
    "edit": "editing",
    "evaluate_texts": "evaluation.text_likelihood",
    "evaluation_report": "evaluation.report_measures",
    "generate": "generation",
    "infill": "infilling",
    "Judge": "evaluation.judge",
    "load_generator": "generation",
    "load_model": "modeling",
    "ReportOptions": "evaluation.report_measures",
    "sample_quality": "evaluation.sample_quality",
    "score": "evaluation.scoring",
    "stream": "generation",
    "TextDiffusionPipeline": "pipeline",
    "Trace": "visualization.trace",
    "TraceRecorder": "tracing",
}

__all__ = sorted([*_EXPORTS, "__version__"], key=str.casefold)

if TYPE_CHECKING:
    from .constraints import Constraints as Constraints
    from .data_collator import DataCollatorForMaskedDiffusion as DataCollatorForMaskedDiffusion
    from .editing import edit as edit
    from .evaluation.judge import Judge as Judge
    from .evaluation.report_measures import ReportOptions as ReportOptions
    from .evaluation.report_measures import evaluation_report as evaluation_report
    from .evaluation.sample_quality import sample_quality as sample_quality
    from .evaluation.scoring import score as score
    from .evaluation.text_likelihood import evaluate_texts as evaluate_texts
    from .generation import DiffusionGenerationOutput as DiffusionGenerationOutput
    from .generation import generate as generate
    from .generation import load_generator as load_generator
    from .generation import stream as stream
    from .generation_config import DiffusionGenerationConfig as DiffusionGenerationConfig
    from .guidance import CandidateGuidance as CandidateGuidance
    from .infilling import infill as infill
    from .modeling import load_model as load_model
    from .pipeline import TextDiffusionPipeline as TextDiffusionPipeline
    from .tracing import TraceRecorder as TraceRecorder
    from .trainer import DiffusionTrainer as DiffusionTrainer
    from .training_args import DiffusionTrainingArguments as DiffusionTrainingArguments
    from .visualization.trace import Trace as Trace


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
