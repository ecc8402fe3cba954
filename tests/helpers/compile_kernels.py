"""Compiles every Triton program for a GPU that need not be there; run by test_kernels in a process of its own.

The interpreter forgives what the compiler refuses: types that change in a loop, tiles a matrix product cannot take.
Prints the shared memory that each program needs, in bytes.
"""

import sys
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pvcbench.engine.kernels import interface, triton_programs

FLOATS = {"factor", "cap", "share"}
ELEMENTS = {"query", "key", "value", "result"}
POINTERS = {"weights": "*fp32", "lse": "*fp32", "mass": "*fp32", "outputs": "*fp32", "norms": "*fp32"}
POINTERS |= {"logits": "*fp32", "lengths": "*i64", "sinks": "*fp32"}


def shared_memory(program, element, tiles, capability, **constants):
    """Compiles one program as the engine would launch it."""
    types = {}
    for parameter in program.params:
        name = parameter.name
        if parameter.is_constexpr:
            types[name] = "constexpr"
        elif name in ELEMENTS:
            types[name] = f"*{element}"
        else:
            types[name] = POINTERS.get(name, "fp32" if name in FLOATS else "i32")
    names = list(types)
    values = {(names.index(name),): value for name, value in constants.items() if name in types}
    strides = ("_batch", "_head", "_row", "_slot")
    aligned = [name for name in names if types[name][0] == "*" or (name.endswith(strides) and name != "length_head")]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(fn=program, signature=types, constexprs=values, attrs=attributes)
    options = {"num_warps": tiles[2], "num_stages": tiles[3], "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).metadata.shared


def main():
    """All programs at one head size and dtype, as plain attention runs them and with a cap and sinks."""
    dim, element, capability = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    width = triton.next_power_of_2(dim)
    size = 4 if element == "fp32" else 2
    exact, slots = size == 4, 64 if width * size <= 256 else 32
    column = interface.EXACT_TILES if exact else interface.COLUMN_TILES[max(128, width * size)]
    lse = interface.EXACT_TILES if exact else interface.LSE_TILES[max(128, width * size)]
    common = {"GROUP": 4, "DIM": dim, "WIDTH": width, "VALUE_DIM": dim, "VALUE_WIDTH": width, "TILE": 16}
    common |= {"SPLITS": 16, "WEIGHTS": True, "WIDEN": False}
    runs = [
        ("column_mass", triton_programs.column_mass_program, column, {"OWN": 1}),
        ("column_mass", triton_programs.column_mass_program, column, {"OWN": 4}),
        ("row_lse", triton_programs.row_lse_program, lse, {"ROWS": lse[0], "COLUMNS": lse[1]}),
        ("slot_decode", triton_programs.slot_decode_program, (0, 0, 4, 2), {"COLUMNS": slots}),
        ("combine", triton_programs.combine_program, (0, 0, 4, 3), {}),
        ("weights", triton_programs.weights_program, (0, 0, 4, 3), {"COLUMNS": 1024}),
    ]
    for rule, (name, program, tiles, own) in product((False, True), runs):
        constants = common | {"COLUMNS": tiles[0], "ROWS": tiles[1], "CAPPED": rule, "SINKS": rule} | own
        print(name, shared_memory(program, element, tiles, capability, **constants), flush=True)


if __name__ == "__main__":
    main()
