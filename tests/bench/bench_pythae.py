"""pythae's side of the benchmarks: any encoder and decoder inside its models, and the trainer of each."""

import math
import tempfile
from typing import Any

import torch
from bench_duel import Budget, Turns, repeat
from bench_networks import count
from pythae.data.datasets import BaseDataset
from pythae.models import (
    AE,
    VAE,
    VAEGAN,
    VQVAE,
    Adversarial_AE,
    Adversarial_AE_Config,
    AEConfig,
    VAEConfig,
    VAEGANConfig,
    VQVAEConfig,
)
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseDiscriminator, BaseEncoder
from pythae.trainers import (
    AdversarialTrainer,
    AdversarialTrainerConfig,
    BaseTrainer,
    BaseTrainerConfig,
    CoupledOptimizerAdversarialTrainer,
    CoupledOptimizerAdversarialTrainerConfig,
)
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn

Shape = tuple[int, ...]


class Encoder(BaseEncoder):
    """`layers` as pythae's encoder.

    gives: "codes", (B, *code) as they are; "vectors", the same flat, with a log variance that is not used; or
    "posteriors", flat, from two halves of the channels.
    """

    def __init__(self, layers: nn.Module, gives: str) -> None:
        BaseEncoder.__init__(self)
        self.layers, self.gives = layers, gives

    def forward(self, x: Tensor) -> ModelOutput:
        """x: (B, C, H, W) in [0, 1], as pythae gives them."""
        h = self.layers(x)
        if self.gives == "codes":
            return ModelOutput(embedding=h)
        if self.gives == "vectors":
            flat = h.flatten(1)
            return ModelOutput(embedding=flat, log_covariance=torch.zeros_like(flat))
        mean, log_var = h.chunk(2, dim=1)
        return ModelOutput(embedding=mean.flatten(1), log_covariance=log_var.flatten(1))


class Decoder(BaseDecoder):
    """`layers` from (B, *code) to logits as pythae's decoder of codes or flat codes; its losses take
    probabilities."""

    def __init__(self, layers: nn.Module, code: Shape, image: Shape) -> None:
        BaseDecoder.__init__(self)
        self.layers, self.code, self.image = layers, code, image

    def forward(self, z: Tensor) -> ModelOutput:
        """The images of z, in [0, 1]."""
        logits = self.layers(z.reshape(-1, *self.code))
        return ModelOutput(reconstruction=logits.sigmoid().view(-1, *self.image))


class Discriminator(BaseDiscriminator):
    """`stages` in turn, the last one's score made a probability."""

    def __init__(self, stages: list[nn.Module]) -> None:
        BaseDiscriminator.__init__(self)
        *first, last = stages
        self.layers = nn.ModuleList([*first, nn.Sequential(last, nn.Sigmoid())])
        self.depth = len(stages)

    def forward(self, x: Tensor, output_layer_levels: list[int] | None = None) -> ModelOutput:
        """The probability as `embedding`; with levels, what the stages up to the highest of them give."""
        output = ModelOutput()
        for level, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if output_layer_levels is not None:
                output[f"embedding_layer_{level}"] = x
                if level == max(output_layer_levels):
                    return output
        output["embedding"] = x
        return output


def patch_stages(critic: nn.Module) -> list[nn.Module]:
    """The `layers` of a critic of patches in stages that end with an activation.

    The scores of the last stage are averaged, as pythae wants one an image.
    """
    stages: list[list[nn.Module]] = [[]]
    for layer in critic.get_submodule("layers").children():
        stages[-1].append(layer)
        if isinstance(layer, nn.LeakyReLU):
            stages.append([])
    stages[-1] += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return [nn.Sequential(*stage) for stage in stages]


def model_of(
    family: str,
    encoder: nn.Module,
    decoder: nn.Module,
    code: Shape,
    image: Shape,
    critic: nn.Module | None = None,
    codes: int = 0,
    ema: bool = True,
) -> Any:
    """pythae's model of a family around these networks.

    code: of the decoder's input; critic: of vectors (aae) or of patches (vqgan, which is VAEGAN here);
    codes, ema: size of the codebook (vqvae) and whether it learns by running means.
    """
    taken = Decoder(decoder, code, image)
    units = math.prod(code)
    if family == "ae":
        return AE(AEConfig(input_dim=image, latent_dim=units), Encoder(encoder, "codes"), taken)
    if family == "vae":
        config = VAEConfig(input_dim=image, latent_dim=units, reconstruction_loss="bce")
        return VAE(config, Encoder(encoder, "posteriors"), taken)
    if family == "vqvae":
        config = VQVAEConfig(input_dim=image, latent_dim=units, num_embeddings=codes, use_ema=ema)
        return VQVAE(config, Encoder(encoder, "codes"), taken)
    assert critic is not None
    if family == "aae":
        config = Adversarial_AE_Config(
            input_dim=image, latent_dim=units, reconstruction_loss="bce", deterministic_posterior=True
        )
        return Adversarial_AE(config, Encoder(encoder, "vectors"), taken, Discriminator([critic]))
    stages = patch_stages(critic)
    # its default compares images by the last score alone, by which none would come back
    config = VAEGANConfig(input_dim=image, latent_dim=units, reconstruction_layer=len(stages) - 1)
    return VAEGAN(config, Encoder(encoder, "posteriors"), taken, Discriminator(stages))


def _trainer(model_name: str) -> tuple[type, type, tuple[str, ...]]:
    """The trainer for a model, its configuration, and the parts that have a learning rate of their own."""
    if model_name == "Adversarial_AE":
        return AdversarialTrainer, AdversarialTrainerConfig, ("autoencoder", "discriminator")
    if model_name == "VAEGAN":
        parts = ("encoder", "decoder", "discriminator")
        return CoupledOptimizerAdversarialTrainer, CoupledOptimizerAdversarialTrainerConfig, parts
    return BaseTrainer, BaseTrainerConfig, ()


def trainer_of(
    model: Any,
    pixels: Tensor,
    batch: int,
    lr: float,
    out: str,
    callbacks: list[TrainingCallback] | None = None,
) -> BaseTrainer:
    """The trainer that pythae has for `model`, ready, with all its learning rates at `lr`.

    pixels: (N, C, H, W) uint8.
    """
    data = BaseDataset(pixels.float() / 255, torch.zeros(len(pixels)))
    shared = {"output_dir": out, "num_epochs": 1, "per_device_train_batch_size": batch}
    kind, settings, parts = _trainer(model.model_name)
    rates = {f"{part}_learning_rate": lr for part in parts} or {"learning_rate": lr}
    config = settings(**shared, **rates)
    trainer = kind(model, train_dataset=data, training_config=config, callbacks=callbacks)
    trainer.prepare_training()
    return trainer


def train_in_turns(model: Any, pixels: Tensor, batch: int, lr: float, clock: str) -> None:
    """Train for as long as the turns go on, each a pass over `pixels`."""
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(model, pixels, batch, lr, out)
        turns = Turns(1, 1, len(pixels), clock)
        turns.about = {"parameters": count(model), "precision": "fp32"}
        repeat(lambda: trainer.train_step(1), turns)


class _Over(Exception):
    """Ends pythae's pass over the data."""


class _Asking(TrainingCallback):
    """Asks after every step whether the time is spent."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget

    def on_train_step_end(self, training_config: BaseTrainerConfig, **kwargs: Any) -> None:
        """The end of a step."""
        if self.budget.spent():
            raise _Over


def train(model: Any, pixels: Tensor, batch: int, lr: float, budget: Budget) -> None:
    """Train until the budget is spent."""
    with tempfile.TemporaryDirectory() as out:
        trainer = trainer_of(model, pixels, batch, lr, out, [_Asking(budget)])
        budget.begin()
        try:
            while True:
                trainer.train_step(1)
        except _Over:
            return


def restored(model: Any, x: Tensor) -> Tensor:
    """x: (B, C, H, W) in [0, 1] there and back, by the mean of its code where that is random."""
    # `predict` forgets to quantise, `reconstruct` draws from the posterior
    return model.reconstruct(x) if model.model_name == "VQVAE" else model.predict(x).recon_x
