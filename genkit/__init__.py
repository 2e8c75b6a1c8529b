"""Train, sample, invert, edit and measure generative image models: the library behind the `genkit`
command."""

__version__ = "0.1.0"
