"""Compiles every Triton kernel for a card of the Hopper generation, which needs no card; prints a line for each."""

import sys

import triton
from ssd_kernels.gpu import combine, draw, embed, noise
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

F32, F64, I64, I32 = "*fp32", "*fp64", "*i64", "*i32"
FAST_MEMORY = 232_448
"""Bytes that one program may have on such a card."""
SOURCES = [
    (noise._normals, [I64, F32, "i32"], {"QUADS": noise._QUADS}),
    (draw._sample, [F32, I64, F64, F64, I64, I32, "i32"], {"BLOCK": draw._BLOCK}),
    (combine._log_softmax, [F32, F32, "i32"], {"BLOCK": combine._BLOCK}),
    *(
        (combine._fuse, [F32, F32, F32, I64, F32, "i32", F64, F64, F64],
         {"HAS_CORE": core, "HAS_PUBLIC": public, "BLOCK": combine._BLOCK})
        for core in (True, False) for public in (True, False)
    ),
    *(
        (embed._stretches, [I64, F32, table, F32, F32, "i32", "i32", "i32", "i32"],
         {"ROWS": embed._ROWS, "QUADS": embed._QUADS, "WIDTH": embed._WIDTH, "EXACT": False})
        for table in ("*bf16", "*fp32")
    ),
    *(
        (embed._finish, [I64, F32, F32, I32, I32, table, F32, F32, F32, "i32", "i32", "i32"], {"WIDTH": embed._WIDTH})
        for table in ("*bf16", "*fp32")
    ),
]  # fmt: skip

for kernel, types, constants in SOURCES:
    signature = dict(zip(kernel.arg_names, [*types, *["constexpr"] * len(constants)], strict=True))
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(name),): v for name, v in constants.items()})
    options = {"num_stages": 1} if kernel is embed._stretches and types[2] == "*fp32" else {}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    if built.metadata.shared > FAST_MEMORY:
        sys.exit(f"{kernel.__name__} needs {built.metadata.shared} bytes of a program's fast memory")
    sys.stdout.write(f"{kernel.__name__} {len(built.asm['cubin'])} bytes, {built.metadata.shared} shared\n")
