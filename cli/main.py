"""The `genkit` command: a table of verbs whose modules, and torch with them, are imported only when one
runs."""

import importlib
import signal
import sys
from types import FrameType
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from genkit.errors import unknown

from .console import exit_code, open_streams, say

ClickException = typer.BadParameter.__mro__[
    2
]  # typer carries its own click; this is its base of usage errors


class Verb(NamedTuple):
    """A line of the table: the module of genkit_cli that has `command(name)`, and the line of help."""

    module: str
    help: str
    panel: str = ""


VERBS = {
    "train": Verb("train", "Train a model: autoencoders, GAN, diffusion, classifier.", "Make"),
    "sample": Verb("sample", "Draw new images or latents from a model.", "Make"),
    "encode": Verb("encode", "Images to the latents of a codec.", "Convert"),
    "decode": Verb("decode", "Latents back to images.", "Convert"),
    "reconstruct": Verb("reconstruct", "Images through a codec and back, with their PSNR.", "Convert"),
    "invert": Verb("invert", "Images to the noise that regenerates them.", "Convert"),
    "import": Verb("import_", "A diffusers model to a checkpoint.", "Convert"),
    "export": Verb("export", "A checkpoint to a folder that diffusers loads.", "Convert"),
    "inpaint": Verb("inpaint", "Fill in a part of images.", "Make"),
    "interpolate": Verb("interpolate", "A path between two images, latents or seeds.", "Make"),
    "eval-fid": Verb(
        "eval_fid", "How close images are to real ones: FID, KID, precision and recall, IS.", "Measure"
    ),
    "eval-nll": Verb("eval_nll", "How likely a diffusion model or a VAE finds images.", "Measure"),
    "fit-prior": Verb("fit_prior", "Fit a prior to a codec's codes, and measure them.", "Make"),
    "sweep": Verb("sweep", "A table of FIDs over sampler settings.", "Measure"),
    "plot": Verb("plot", "Figures: latents, curves, reconstructions, what a code's units do.", "Measure"),
    "info": Verb("info", "What a genkit file is, and the command that made it.", "Measure"),
}
MODELS = {
    "ae": Verb("train", "An autoencoder: plain, denoising or sparse."),
    "vae": Verb("train", "A variational autoencoder: generates, and is the codec of latent models."),
    "hvae": Verb("train", "A hierarchical VAE: levels of latents, each explained by the one above."),
    "aae": Verb("train", "An adversarial autoencoder: codes shaped like a prior of your choice."),
    "vqvae": Verb("train", "A VQ-VAE: images as grids of tokens from a learned codebook."),
    "vqgan": Verb("train", "A VQGAN: the same with a patch critic and a perceptual loss."),
    "gan": Verb("train", "A generative adversarial network: one step from noise to an image."),
    "ddpm": Verb("train", "A diffusion model of images, or of latents."),
    "classifier": Verb("train", "A classifier: features for eval-fid, guidance for sampling."),
}
METHODS = {
    "ddim": Verb("sample", "Denoising diffusion implicit model: few steps, deterministic at --eta 0."),
    "ddpm": Verb("sample", "Ancestral sampling with fresh noise at every step."),
    "dpmpp": Verb("sample", "DPM-Solver++ 2M: good pictures in a dozen steps."),
    "heun": Verb("sample", "Heun's method of second order, with churn."),
    "euler": Verb("sample", "Euler's method, with churn."),
    "prior": Verb("sample_prior", "From the prior of an autoencoder or a GAN, in one step."),
}
SWEPT = {name: verb._replace(module="sweep") for name, verb in METHODS.items() if name != "prior"}
KINDS = {
    "latents": Verb("plot", "Codes in the plane, coloured by class, with their k-NN accuracy."),
    "curves": Verb("plot", "The training curves of one or many runs."),
    "manifold": Verb("plot", "Images decoded over the plane of the first two latent units."),
    "traversal": Verb("plot", "What each latent unit does to an image, the busiest first."),
    "reconstructions": Verb("reconstruct", "Images through a codec and back, with their PSNR."),
    "nll": Verb("plot", "The bounds of eval-nll, step by step, of one or many models."),
    "sweep": Verb("plot", "Tables of sweep as lines: FID against network evaluations."),
}
GROUPS = {"train": MODELS, "sample": METHODS, "sweep": SWEPT, "plot": KINDS}


class Lazy(TyperGroup):
    """A group whose commands are imported when they are called, not when they are listed."""

    table: dict[str, Verb]
    prefix: str = ""

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the table's order."""
        return list(self.table)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A stand-in that knows the command's help line."""
        if cmd_name not in self.table:
            return None
        verb = self.table[cmd_name]
        stand_in = TyperCommand(
            cmd_name, help=verb.help, short_help=verb.help, rich_help_panel=verb.panel or None
        )
        return stand_in

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command."""
        if args and not args[0].startswith("-") and args[0] not in self.table:
            raise unknown("command", args[0], self.table)
        name, found, rest = super().resolve_command(ctx, args)
        if name in GROUPS and not self.prefix:
            return name, group(GROUPS[name], f"{VERBS[name].help}", name), rest
        if name is None or found is None:
            return name, found, rest
        module = importlib.import_module(f".{self.table[name].module}", __package__)
        return name, module.command(name), rest


def group(table: dict[str, Verb], help: str, prefix: str = "") -> Lazy:
    """A lazy group over `table`."""
    lazy = Lazy(name=prefix or "genkit", help=help, rich_markup_mode="rich", no_args_is_help=True)
    lazy.table, lazy.prefix = table, prefix
    return lazy


def root() -> Any:
    """The whole command."""
    app = typer.Typer(cls=Lazy, no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
    app.callback()(genkit)
    command = typer.main.get_command(app)
    command.table, command.prefix = VERBS, ""  # type: ignore[attr-defined]
    return command


def _version(wanted: bool) -> None:
    if wanted:
        from genkit import __version__

        print(f"genkit {__version__}")
        raise typer.Exit


def genkit(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Train, sample, invert, edit and measure generative image models from a shell.

    Verbs exchange .safetensors files and folders of PNGs, or streams with `-`.
    Results go to stdout, remarks to stderr.

    Start with: genkit train vae
    """


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End as Ctrl-C would, also in the background, where shells have SIGINT ignored."""
    raise KeyboardInterrupt


def _remark(error: Any) -> str:
    """What typer has to say of a request; of a mistyped option, the closest name alone."""
    if getattr(error, "possibilities", None):
        return f"no such option {error.option_name!r}; did you mean {error.possibilities[0]!r}?"
    return str(error.format_message())


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""

    def work() -> None:
        code = root().main(args=arguments, prog_name="genkit", standalone_mode=False)
        if code == 130:  # what typer makes of an interrupt, without a word
            raise KeyboardInterrupt
        if isinstance(code, int) and code:
            raise SystemExit(code)

    open_streams()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return exit_code(work)
    except ClickException as error:  # type: ignore[misc]
        message = _remark(error)
        if message:  # without arguments the help itself is the message, and is printed already
            print(f"genkit: {message}", file=sys.stderr)
        return 2
    except typer.Abort:
        say("genkit: interrupted")
        return 130


def run() -> None:
    """The entry point of the `genkit` script."""
    sys.exit(main())
