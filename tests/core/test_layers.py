"""The direction of imports between the layers of genkit."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = {"errors"}
ALLOWED = {
    "errors": set(),
    "cache": set(),
    "native": {"cache"},
    "config": set(),
    "noise": {"native"},
    "dist": set(),
    "machine": set(),
    "registry": {"data", "train"},  # for type checking only
    "diffusion": {"noise", "dist"},
    "codecs": {"native", "noise", "dist", "nn"},
    "nn": {"noise", "native"},
    "data": {"config", "noise", "io"},
    "io": {"config", "dist"},
    "train": {"config", "dist", "noise", "io", "data", "machine", "nn"},
    "objectives": {"native", "diffusion", "codecs", "nn", "train", "noise", "data", "dist"},
    "plots": set(),
    "evaluate": {"cache", "data", "io", "models", "dist", "noise", "config", "diffusion"},
}
ALLOWED["models"] = set(ALLOWED) | {"models"}
ALLOWED["interop"] = set(ALLOWED["models"])


def imports(path: Path) -> set[str]:
    """The parts of genkit that a file imports."""
    depth = len(path.relative_to(ROOT / "genkit").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {(node.module or a.name).split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("genkit."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "genkit" and node.level == 0:
            found |= {a.name for a in node.names}
    return found


@pytest.mark.parametrize(
    "path", sorted((ROOT / "genkit").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_dependency_direction(path):
    """Oracle: the table of layers; also, the library knows no command line."""
    layer = path.relative_to(ROOT / "genkit").parts[0].removesuffix(".py")
    if layer == "__init__":
        return
    found = imports(path) - {layer, "__version__"}
    assert found <= ALLOWED[layer] | BASE, f"{layer} must not import {found - ALLOWED[layer] - BASE}"
    text = path.read_text("utf-8")
    assert "import typer" not in text
    assert "genkit_cli" not in text
