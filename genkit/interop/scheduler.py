"""A diffusers scheduler configuration and the schedule fields of `ImportedUnetConfig`."""

from collections.abc import Mapping
from typing import Any

from ..models.imported_unet import ImportedUnetConfig
from .settings import Key, Keys, refuse, settings

CLASSES = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}
BETAS = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "cosine"}
TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# the log variants give the same variance; fixed_large_log and learned are not among those that diffusers
# itself samples with
VARIANCES = {
    "fixed_small": "small",
    "fixed_large": "large",
    "learned_range": "learned",
    "fixed_small_log": "small",
}
KEYS: Keys = {
    "num_train_timesteps": Key(1000, (int,)),
    "beta_start": Key(0.0001, (int, float)),
    "beta_end": Key(0.02, (int, float)),
    "beta_schedule": Key("linear", allowed=tuple(BETAS)),
    "trained_betas": Key(None, allowed=(None,)),
    "clip_sample": Key(True, (bool,)),
    "clip_sample_range": Key(1.0, (int, float)),
    "prediction_type": Key("epsilon", allowed=tuple(TARGETS)),
    "thresholding": Key(False, allowed=(False,)),
    "dynamic_thresholding_ratio": Key(0.995, (int, float)),  # of thresholding, which is off
    "sample_max_value": Key(1.0, (int, float)),  # the same
    "timestep_spacing": Key("leading", allowed=("leading", "trailing", "linspace")),
    "steps_offset": Key(0, allowed=(0,)),
    "rescale_betas_zero_snr": Key(False, allowed=(False,)),
    "variance_type": Key("fixed_small", allowed=tuple(VARIANCES)),  # DDPM's
    "set_alpha_to_one": Key(True, allowed=(True,)),  # DDIM's
}
LEGACY = ("timesteps", "timestep_values", "tensor_format", "predict_epsilon")


def read_scheduler(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The schedule fields of an `ImportedUnetConfig`, from a scheduler_config.json.

    Raises:
        InputError: a setting that genkit cannot reproduce, by name.
    """
    kind = values.get("_class_name", "DDPMScheduler")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise refuse(where, "_class_name", kind, f"genkit reads {' and '.join(CLASSES)}")
    if values.get("predict_epsilon") is False:
        raise refuse(where, "predict_epsilon", False, 'write "prediction_type": "sample" instead')
    found = settings({k: v for k, v in values.items() if k not in LEGACY}, KEYS, where)
    if found["clip_sample"] and found["clip_sample_range"] != 1:
        raise refuse(where, "clip_sample_range", found["clip_sample_range"], "genkit clips to [-1, 1]")
    return {
        "sampler": CLASSES[kind],
        "schedule": BETAS[found["beta_schedule"]],
        "chain": found["num_train_timesteps"],
        "beta_min": float(found["beta_start"]),
        "beta_max": float(found["beta_end"]),
        "target": TARGETS[found["prediction_type"]],
        "clip": found["clip_sample"],
        "variance": VARIANCES[found["variance_type"]],
        "spacing": found["timestep_spacing"],
    }


def write_scheduler(config: ImportedUnetConfig) -> dict[str, Any]:
    """The scheduler_config.json of an `ImportedUnetConfig`."""
    ddpm = config.sampler == "ddpm"
    made = {
        "_class_name": _back(CLASSES, config.sampler),
        "num_train_timesteps": config.chain,
        "beta_start": config.beta_min,
        "beta_end": config.beta_max,
        "beta_schedule": _back(BETAS, config.schedule),
        "prediction_type": _back(TARGETS, config.target),
        "clip_sample": config.clip,
        "clip_sample_range": 1.0,
        "timestep_spacing": config.spacing,
    }
    own = {"variance_type": _back(VARIANCES, config.variance)} if ddpm else {"set_alpha_to_one": True}
    return {**made, **own}


def _back(table: Mapping[str, str], ours: str) -> str:
    return next(theirs for theirs, name in table.items() if name == ours)
