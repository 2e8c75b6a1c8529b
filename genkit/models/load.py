"""From a checkpoint file back to a working model."""

from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..config import from_dict
from ..data.source import Info, info_from_json
from ..errors import InputError, with_article
from ..io import Checkpoint, load_checkpoint
from ..registry import Entry, find


class Loaded(NamedTuple):
    """A trained model with what its file says of it."""

    module: nn.Module  # in eval mode, on the CPU
    entry: Entry
    config: Any
    info: Info
    checkpoint: Checkpoint

    def what(self) -> str:
        """The file and its family, for a refusal to begin with."""
        return f"{self.checkpoint.path} is {with_article(self.checkpoint.model)}"


def load_model(path: Path | str, verb: str | None = None) -> Loaded:
    """The model in a checkpoint file or run folder.

    Raises:
        InputError: when the file is damaged, of an unknown model, or the model does not serve `verb`.
    """
    checkpoint = load_checkpoint(Path(path))
    entry = find(checkpoint.model)
    if verb is not None and verb not in entry.verbs:
        raise InputError(
            f"{checkpoint.path} is {with_article(checkpoint.model)}, which does not serve `{verb}` "
            f"(it serves {', '.join(entry.verbs)})"
        )
    try:
        info = info_from_json(checkpoint.data)
        config: Any = from_dict(entry.config, _in_todays_words(checkpoint.config["model"]))
    except InputError as error:
        raise InputError(f"{checkpoint.path}: its settings are not of this version ({error})") from None
    except (TypeError, KeyError) as error:
        raise InputError(f"{checkpoint.path} lacks what is needed to rebuild its model ({error})") from None
    module = entry.build(config, info)
    try:
        module.load_state_dict(checkpoint.tensors)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:200]
        raise InputError(f"{checkpoint.path}: weights and configuration disagree ({line})") from None
    return Loaded(module.eval(), entry, config, info, checkpoint)


def _in_todays_words(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model, also those that an earlier version wrote otherwise."""
    if isinstance(config.get("binarise"), bool):  # there was one way to do it
        config = {**config, "binarise": "threshold" if config["binarise"] else "none"}
    if "prior" in config:  # the critic of an aae had a pace of its own
        config = {k: v for k, v in config.items() if k != "critic_lr"}
    if "arch" in config:  # there was no such layer
        config = {"dense": 0, **config}
    return config
