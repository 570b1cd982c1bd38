"""Writes the generated code of the wire from protos/ssd/v1, or checks that it is current.

`python -m ssd_protos.generate` writes; with `--check` it exits with 1 when the code in the tree is stale. Needs
grpcio-tools and mypy-protobuf (the `dev` extra). The virtual root `ssd_protos` makes protoc write right imports.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
SOURCES = PACKAGE.parent
PROTO = "ssd/v1/ssd.proto"
INIT = '"""Generated; see protos/ssd/v1."""\n'


class GenerationError(Exception):
    """The code could not be generated; the message says what to do."""


def generate(out: Path) -> None:
    """Write the package tree `ssd/v1` of generated modules and stubs under `out`.

    Raises:
        GenerationError: the sources or the tools are missing, or protoc refuses the sources.
    """
    if not (SOURCES / PROTO).is_file():
        raise GenerationError(f"there is no {SOURCES / PROTO}: run this in a checkout, not in an installed package")
    try:
        protoc: Any = importlib.import_module("grpc_tools.protoc")
    except ImportError as error:
        raise GenerationError("grpcio-tools is missing: pip install -e '.[dev]'") from error
    bin_dir = Path(sys.executable).parent
    well_known = resources.files("grpc_tools") / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        status = protoc.main([
            "protoc",
            f"--plugin=protoc-gen-mypy={bin_dir / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={bin_dir / 'protoc-gen-mypy_grpc'}",
            f"--proto_path=ssd_protos={SOURCES}",
            f"--proto_path={well_known}",
            f"--python_out={scratch}",
            f"--grpc_python_out={scratch}",
            f"--mypy_out={scratch}",
            f"--mypy_grpc_out={scratch}",
            f"ssd_protos/{PROTO}",
        ])  # fmt: skip
        if status != 0:
            raise GenerationError("protoc refused the sources; its own message above says where")
        _collect(Path(scratch) / "ssd_protos", out)


def stale() -> list[str]:
    """Names of generated files in the tree that are missing, different, or no longer generated."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = {p.relative_to(scratch).as_posix(): p.read_bytes() for p in Path(scratch).rglob("*.py*")}
    kept = {
        p.relative_to(PACKAGE).as_posix(): p.read_bytes()
        for p in (PACKAGE / "ssd").rglob("*.py*")
        if p.suffix in (".py", ".pyi")
    }
    return sorted(name for name in fresh.keys() | kept.keys() if fresh.get(name) != kept.get(name))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ssd_protos.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the generated code is current")
    given = parser.parse_args(arguments)
    try:
        if not given.check:
            generate(PACKAGE)
            return 0
        names = stale()
    except GenerationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if names:
        sys.stderr.write(f"stale: {', '.join(names)}; run python -m ssd_protos.generate\n")
        return 1
    return 0


def _collect(made: Path, out: Path) -> None:
    for source in sorted(made.rglob("*.py*")):
        target = out / source.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    for folder in ("ssd", "ssd/v1"):
        (out / folder / "__init__.py").write_text(INIT)


if __name__ == "__main__":
    sys.exit(main())
