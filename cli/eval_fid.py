"""genkit eval-fid FAKE REAL: how close images are to real ones, with the uncertainty of the answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit import dist, machine
from genkit.config import REQUIRED, arg
from genkit.errors import InputError
from genkit.evaluate.cache import statistics_of
from genkit.evaluate.extractors import Extractor, classifier, inception
from genkit.evaluate.score import METRICS, Scores, score
from genkit.evaluate.statistics import Statistics, is_statistics, load_statistics, save_statistics
from genkit.models.load import load_model

from .common import DataConfig, open_data
from .console import Meter, emit, say
from .options import make


@dataclass(frozen=True)
class FeatureConfig:
    """What turns images into features."""

    features: str = arg(
        "inception", "inception, or a genkit classifier: run folder or checkpoint.", panel="Features"
    )
    weights: Path | None = arg(
        None, "torch-fidelity's Inception weights; default: downloaded once.", panel="Features"
    )
    cache: bool = arg(True, "Keep statistics of real data for the next time.", panel="Features")


@dataclass(frozen=True)
class EvalConfig:
    """What is compared with what, and through which features."""

    fake: str = arg(
        REQUIRED, "Generated images: folder, zip, data set name, or statistics file.", positional=True
    )
    real: str = arg(
        REQUIRED, "Real images, in the same forms; NAME:test is a data set's test split.", positional=True
    )
    metrics: str = arg("fid,kid", f"Comma-separated: {', '.join(METRICS)}.", panel="Features")
    count: int | None = arg(
        None, "So many images of each, spread over them; default: all.", min=2, short="-n"
    )
    save_real: Path | None = arg(
        None, "Also write the real statistics to this .safetensors.", panel="Features"
    )
    seed: int = arg(0, "Decides the bootstrap and KID's subsets.", min=0, max=2**63 - 1)
    batch_size: int = arg(128, "Images at a time.", min=1, panel="Machine")
    device: str = arg("auto", "auto, cpu, cuda, cuda:1, …", panel="Machine")
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit eval-fid` command."""
    help = "How close images are to real ones: FID with its interval, KID, precision and recall, IS."
    return make(_eval, EvalConfig, FeatureConfig, DataConfig, command="eval-fid", help=help)


def _eval(config: EvalConfig, features: FeatureConfig, data: DataConfig) -> None:
    machine.tune()
    device = machine.pick_device(config.device)
    metrics = tuple(m.strip() for m in config.metrics.split(",") if m.strip())
    fake, real = (_side(text, data) for text in (config.fake, config.real))
    if config.save_real is not None and (
        isinstance(real, Statistics) or config.save_real.suffix != ".safetensors"
    ):
        raise InputError("--save-real writes statistics of images to a .safetensors file")
    extractor: Extractor | None = None
    if not (isinstance(fake, Statistics) and isinstance(real, Statistics)):
        extractor = make_extractor(features, device)
    dist.start(device)
    try:
        with _Bars() as progress:
            scores = score(
                fake,
                real,
                extractor,
                metrics,
                limit=config.count,
                cache=features.cache,
                seed=config.seed,
                batch_size=config.batch_size,
                progress=progress,
            )
        if config.save_real is not None and extractor is not None:
            _save_real(config, features, real, extractor)
    finally:
        dist.stop()
    if scores is not None:
        _print(scores, config.json)


def _side(text: str, data: DataConfig) -> Any:
    """FAKE or REAL: statistics, or a source of images."""
    if is_statistics(Path(text)):
        return load_statistics(Path(text))
    source = open_data(text, data)
    if source.info.kind != "images":
        raise InputError(f"{text} holds {source.info.kind}; decode them first, eval-fid compares images")
    return source


def _save_real(config: EvalConfig, features: FeatureConfig, real: Any, extractor: Extractor) -> None:
    """Write the real side's statistics; with the cache on they are not measured twice."""
    assert config.save_real is not None
    found = statistics_of(
        real, extractor, limit=config.count, cache=features.cache, batch_size=config.batch_size
    )
    if found is not None and dist.is_main():
        save_statistics(config.save_real, found.statistics)


def make_extractor(config: FeatureConfig, device: Any) -> Extractor:
    """The extractor that --features names."""
    if config.features == "inception":
        return inception(device, config.weights)
    if config.weights is not None:
        raise InputError("--weights are Inception's; with --features a classifier brings its own")
    loaded = load_model(Path(config.features), "eval-fid")
    return classifier(loaded.module, loaded.info, loaded.checkpoint.sha256, device)


class _Bars:
    """A meter for each set that is measured, one after the other."""

    def __init__(self) -> None:
        self.meter: Meter | None = None
        self.name = ""

    def __enter__(self) -> "_Bars":
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.meter is not None:
            self.meter.__exit__(None, None, None)
            self.meter = None

    def __call__(self, name: str, done: int, total: int) -> None:
        if self.meter is None or name != self.name:
            self._close()
            self.name = name
            self.meter = Meter(f"features of {name}", total).__enter__()
        self.meter.update(done)


def _print(scores: Scores, as_json: bool) -> None:
    for note in scores.notes:
        say(f"note: {note}")
    for warning in scores.warnings:
        say(f"warning: {warning}")
    if as_json:
        emit({k: v for k, v in scores._asdict().items() if v is not None}, True)
        return
    for key, value in _lines(scores):
        emit(f"{key:<10} {value}")


def _lines(s: Scores) -> list[tuple[str, str]]:
    """What a person reads, in order."""
    lines = [
        ("fake", f"{s.fake}  {_count(s.n_fake)}  {_shape(s.size_fake)}"),
        ("real", f"{s.real}  {_count(s.n_real)}  {_shape(s.size_real)}"),
        ("features", s.extractor),
        ("resize", s.resize),
    ]
    if s.fid is not None:
        interval = (
            f"  (95 % of resamples: {s.fid_low:.4g} to {s.fid_high:.4g})" if s.fid_low is not None else ""
        )
        lines.append(("fid", f"{s.fid:.4f}{interval}"))
    if s.kid is not None:
        lines.append(("kid", f"{s.kid:.6f}" + (f" ± {s.kid_std:.6f}" if s.kid_std else "")))
    if s.precision is not None:
        lines.append(("precision", f"{s.precision:.4f}"))
        lines.append(("recall", f"{s.recall:.4f}"))
    if s.isc is not None:
        lines.append(("isc", f"{s.isc:.3f} ± {s.isc_std or 0:.3f}"))
    if s.confident is not None:
        lines.append(
            ("confident", f"{100 * s.confident:.2f} % of the fake images classified with confidence > 0.9")
        )
    if s.accuracy is not None:
        lines.append(("accuracy", f"{100 * s.accuracy:.2f} % of the fake images classified as their label"))
    return lines


def _count(n: int | None) -> str:
    """How many images; published statistics do not always say it."""
    return "n unknown" if n is None else f"n = {n}"


def _shape(size: tuple[int, int, int] | None) -> str:
    return f"{size[2]}x{size[1]} {'grey' if size[0] == 1 else 'RGB'}" if size else ""
