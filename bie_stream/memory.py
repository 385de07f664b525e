"""Memory as a compiled function sees it: addresses, what will be read, and whole lines written past the cache.

For functions that are compiled by `bie_stream.compiled` only. Reading rows of a crop, a processor waits for each: they
are too far apart for it to guess the next one, so it is told (`will_read`). Writing a batch, it would read each line of
the batch before it overwrites it, and push out of the cache what is needed: whole lines need neither (`write_lines`).
On one core of an AMD EPYC (Zen 4) both together made the pass from 1.5 to 3 times as fast.
"""

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

LINE = 64  # bytes that a processor moves between cache and memory at a time

_INT = ir.IntType(32)
_BYTES = ir.IntType(8).as_pointer()


def _at(context: Any, number: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return numba.types.voidptr(number), build


def _address(context: Any, array: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(array)(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return numba.types.uint64(array), build


def _will_read(context: Any, number: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_BYTES, _INT, _INT, _INT])
        hint = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        read, keep, data = _INT(0), _INT(3), _INT(1)
        builder.call(hint, [builder.inttoptr(arguments[0], _BYTES), read, keep, data])
        return context.get_dummy_value()

    return numba.types.void(numba.types.uint64), build


def _write_lines(context: Any, into: Any, source: Any, lines: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(_INT, LINE // 4)
        to, of = (builder.inttoptr(argument, line.as_pointer()) for argument in arguments[:2])
        with cgutils.for_range(builder, arguments[2]) as loop:
            _store(builder, builder.load(builder.gep(of, [loop.index]), align=4), builder.gep(to, [loop.index]))
        return context.get_dummy_value()

    return numba.types.void(numba.types.uint64, numba.types.uint64, numba.types.int64), build


def _write_turned(context: Any, array: Any, into: Any, stride: Any, source: Any, source_stride: Any) -> Any:
    bits = array.dtype.bitwidth

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, into, stride, source, source_stride = arguments
        count = 8 * LINE // bits
        kind = ir.VectorType(ir.IntType(bits), count).as_pointer()

        def place(start: Any, step: Any, number: int) -> Any:
            return builder.inttoptr(builder.add(start, builder.mul(step, step.type(number))), kind)

        rows = [builder.load(place(source, source_stride, i), align=bits // 8) for i in range(count)]
        for number, column in enumerate(_transposed(builder, rows)):
            _store(builder, column, place(into, stride, number))
        return context.get_dummy_value()

    number = numba.types.uint64
    return numba.types.void(array, number, number, number, number), build


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """Of n vectors of n numbers: each step exchanges one bit of the number of a row for that of a column."""
    count = len(rows)
    numbers = range(count)
    step = count // 2
    while step:
        low = _mask(count + k - step if k & step else k for k in numbers)  # of a row and the one `step` after it
        high = _mask(count + k if k & step else k + step for k in numbers)
        for i in numbers:
            if not i & step:
                one, other = rows[i], rows[i + step]
                rows[i] = builder.shuffle_vector(one, other, low)
                rows[i + step] = builder.shuffle_vector(one, other, high)
        step //= 2
    return rows


def _mask(places: Iterator[int]) -> Any:
    numbers = list(places)
    return ir.Constant(ir.VectorType(_INT, len(numbers)), numbers)


def _store(builder: Any, line: Any, place: Any) -> None:
    store = builder.store(line, place, align=LINE)
    store.set_metadata("nontemporal", builder.module.add_metadata([_INT(1)]))


def _lines_are_there(context: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return numba.types.void(), build


def _bits_of(context: Any, value: Any) -> Any:
    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INT)

    return numba.types.uint32(numba.types.float32), build


at: Any = intrinsic(_at)  # (address) → pointer
address: Any = intrinsic(_address)  # (array) → where its first number lies
bits_of: Any = intrinsic(_bits_of)  # (float32) → its 32 bits
will_read: Any = intrinsic(_will_read)  # (address): the line there
write_lines: Any = intrinsic(_write_lines)  # (into, source, lines): addresses, the first at the begin of a line
# (array, into, stride, source, source_stride): a square block of as many numbers of the array's type as a line holds,
# transposed; addresses and bytes, into at the begin of a line.
write_turned: Any = intrinsic(_write_turned)
lines_are_there: Any = intrinsic(_lines_are_there)  # (): for other threads, after lines were written
array_at: Any = numba.carray  # type: ignore[attr-defined]  # public, though not in its list
U = np.uint64  # an index that cannot be below 0: the compiler need not ask, and may use vectors
