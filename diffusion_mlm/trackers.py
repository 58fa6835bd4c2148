"""Programs that draw the curves of a run: whether those that `report_to` names are known and installed."""

from collections.abc import Iterable
from importlib.util import find_spec

# Where the module, or what pip calls it, has another name than the tracker.
_MODULES = {"tensorboard": ("tensorboard", "tensorboardX"), "azure_ml": ("azureml",), "flyte": ("flytekit",)}
_PACKAGES = {
    "tensorboard": "'diffusion-mlm[track]'",
    "trackio": "'diffusion-mlm[track]'",
    "azure_ml": "azureml-sdk",
    "comet_ml": "comet-ml",
    "flyte": "flytekit",
}
_NOT_PACKAGES = ("kubeflow",)  # it is there or not, no pip could help


def require_trackers(names: Iterable[str]) -> None:
    """Returns if a run can report to all of these; nothing is imported.

    Raises:
        ValueError: transformers knows no such tracker, or its package is not installed.
    """
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"`report_to` is {name!r}, which is no tracker: choose of {', '.join(INTEGRATION_TO_CALLBACK)}, "
                f"all (those that are installed) or none."
            )
        modules = () if name in _NOT_PACKAGES else _MODULES.get(name, (name,))
        if modules and not any(find_spec(module) for module in modules):
            raise ValueError(
                f"`report_to` is {name!r}, and the package {modules[0]} is not installed: pip install "
                f"{_PACKAGES.get(name, name)}."
            )
