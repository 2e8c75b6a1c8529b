"""What a model is asked for: classes, and how strongly. Shared by sample, invert, inpaint and interpolate."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit.config import arg
from genkit.diffusion.denoiser import Denoise, Denoiser, bind
from genkit.diffusion.guidance import Null, classifier, classifier_free, label_log_prob
from genkit.errors import InputError, unknown, with_article
from genkit.models.load import Loaded, load_model


@dataclass(frozen=True)
class ConditionConfig:
    """Which classes, and how strongly they are meant."""

    label: str | None = arg(
        None,
        "Classes to draw, in turn: 3, or 0-9, or 1,3,5, or their names; default: all that the model knows, "
        "or those of the images given.",
        panel="Guidance",
    )
    guidance: float | None = arg(
        None,
        "How strongly the class is meant: 1 as trained, 0 not at all, above 1 more than real; "
        "with --classifier the scale of its gradient; default: 1.",
        min=0.0,
        panel="Guidance",
    )
    guidance_interval: tuple[float, ...] = arg(
        (0.0, 1.0), "Times between which guidance acts; 0 is data, 1 noise.", min=0, max=1, panel="Guidance"
    )
    classifier: Path | None = arg(
        None,
        "Guide by this classifier (trained with --noise-conditioned) instead; a model that knows the classes "
        "is told them too, and --guidance 0 is as trained.",
        panel="Guidance",
    )


def strength(config: ConditionConfig) -> float:
    """The scale of the guidance."""
    return 1.0 if config.guidance is None else config.guidance


def parse_labels(text: str, classes: tuple[str, ...]) -> list[int]:
    """The classes that `3`, `0-9`, `1,3,5` or their names write, as numbers.

    A name comes first where it is also a number: the classes of MNIST are called 0 … 9.

    Raises:
        InputError: for a class that is not there.
    """

    def number(text: str) -> int:
        if int(text) >= len(classes):
            raise InputError(
                f"--label {text} is out of range: the model knows the classes 0 to {len(classes) - 1}"
            )
        return int(text)

    found: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        ends = re.fullmatch(r"(\d+)-(\d+)", part)
        if part in classes:
            found.append(classes.index(part))
        elif ends:
            span = range(number(ends[1]), number(ends[2]) + 1)
            if not span:
                raise InputError(f"--label {part} names no class; write it as 0-9 or 1,3,5")
            found += span
        elif part.isdecimal():
            found.append(number(part))
        else:
            raise unknown("class", part, classes)
    return found


def classes_of(loaded: Loaded, config: ConditionConfig) -> tuple[str, ...]:
    """The names of the classes that can be asked for; empty without any.

    Raises:
        InputError: classes or guidance are asked of a model that has none, or the interval is no interval.
    """
    low_high = config.guidance_interval
    if len(low_high) != 2 or low_high[0] > low_high[1]:
        raise InputError(f"--guidance-interval must be two rising times such as 0.2,0.8, got {low_high}")
    if config.classifier is not None:
        return load_guide(config.classifier, loaded).info.classes
    model = loaded.module
    if isinstance(model, Denoiser) and model.classes:
        return loaded.info.classes or tuple(str(i) for i in range(model.classes))
    given = {
        "--label": config.label is not None,
        "--guidance": strength(config) != 1,
        "--guidance-interval": low_high != (0, 1),
    }
    if asked := next((option for option, there in given.items() if there), None):
        raise InputError(
            f"{asked} needs a class-conditional model and {loaded.checkpoint.path} is none; train one with "
            "--class-conditional, or guide by --classifier"
        )
    return ()


def labels_of(loaded: Loaded, config: ConditionConfig, index: Tensor) -> Tensor | None:
    """(B,) classes of images `index` (B,): those asked for, in turn; None for a model without classes."""
    classes = classes_of(loaded, config)
    if not classes:
        return None
    return in_turn(config.label, classes, index)


def in_turn(label: str | None, classes: tuple[str, ...], index: Tensor) -> Tensor:
    """(B,) classes of images `index` (B,): those of `chosen`, in turn."""
    asked = chosen(label, classes)
    return torch.tensor(asked)[index.cpu() % len(asked)]


def chosen(label: str | None, classes: tuple[str, ...]) -> list[int]:
    """The classes that `label` writes, as numbers; all of them for None."""
    return list(range(len(classes))) if label is None else parse_labels(label, classes)


def check_null(loaded: Loaded, why: str) -> None:
    """Refuse what needs a null class that training never showed.

    why: what needs it, to begin the sentence.

    Raises:
        InputError: the model has classes and was trained without dropping any.
    """
    if getattr(loaded.module, "classes", 0) and getattr(loaded.config, "label_dropout", None) == 0:
        raise InputError(
            f"{why} needs the null class, which {loaded.checkpoint.path} never saw (--label-dropout 0); "
            "train with --label-dropout 0.1"
        )


def denoise_of(
    loaded: Loaded,
    config: ConditionConfig,
    labels: Tensor | None,
    device: torch.device,
    null: Null | None = None,
) -> Denoise:
    """The model with its condition bound and guided as asked, for a batch of images of classes `labels` (B,).

    A classifier guides the unconditional model, or one of the same classes given `labels`, as both the models
    of Dhariwal & Nichol 2021 (table 4).

    null: what stands for no class, where it is not the model's own (null-text inversion).

    Raises:
        InputError: see `classes_of`, `load_guide` and `check_null`.
    """
    model: Any = loaded.module
    classes_of(loaded, config)
    if labels is None:
        return bind(model)
    if config.classifier is None and strength(config) != 1:
        check_null(loaded, f"--guidance {strength(config):g}")
    cond = labels.to(device)
    nothing: Tensor | None = model.null(len(labels)).to(device) if model.classes else None
    interval = (config.guidance_interval[0], config.guidance_interval[1])
    if config.classifier is None:
        empty = nothing if null is None else null
        assert empty is not None  # labels without a classifier are those of a class-conditional model
        return classifier_free(model, cond, empty, strength(config), interval)
    guide = load_guide(config.classifier, loaded)
    network: Any = guide.module.to(device)
    log_prob = label_log_prob(network, model.schedule, cond)
    # a model that knows the same classes is told them, too: guidance then sharpens what it knows
    if knows(loaded, guide):
        base: Tensor | None = cond
    else:
        check_null(loaded, "--classifier of other classes")
        base = nothing
    return classifier(bind(model, base), model.schedule, log_prob, strength(config), interval)


def parted(loaded: Loaded) -> bool:
    """Whether the classes of a codec have parts of its prior (`train aae --class-conditional`)."""
    return not isinstance(loaded.module, Denoiser) and getattr(loaded.config, "class_conditional", False)


def knows(loaded: Loaded, guide: Loaded) -> bool:
    """Whether the model was trained with the classes that the guide tells apart."""
    model = loaded.module
    assert isinstance(model, Denoiser)
    return bool(model.classes) and loaded.info.classes == guide.info.classes


@functools.lru_cache(maxsize=4)
def _load(path: Path) -> Loaded:
    return load_model(path)


def load_guide(path: Path, loaded: Loaded) -> Loaded:
    """The classifier at `path`, which can guide `loaded`.

    Raises:
        InputError: it is no classifier, not conditioned on noise, or of other data.
    """
    guide = _load(path)
    if guide.checkpoint.model != "classifier":
        raise InputError(f"--classifier {path} is {with_article(guide.checkpoint.model)}, not a classifier")
    if not guide.config.noise_conditioned:
        raise InputError(
            f"--classifier {path} has seen clean images only; train one with --noise-conditioned"
        )
    mine, theirs = loaded.info, guide.info
    if (mine.kind, mine.shape) != (theirs.kind, theirs.shape):
        raise InputError(
            f"--classifier {path} knows {theirs.kind} of shape {theirs.shape}, and the model makes "
            f"{mine.kind} of shape {mine.shape}; train it on the model's data ({mine.name})"
        )
    if (mine.codec, mine.shift, mine.scale) != (theirs.codec, theirs.shift, theirs.scale):
        raise InputError(
            f"--classifier {path} knows other latents than the model's; train it on the model's data "
            f"({mine.name})"
        )
    return guide
