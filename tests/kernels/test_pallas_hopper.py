"""The Hopper kernels against the specification, threads in place of warpgroups (~40 s).

jax 0.10 cannot interpret these kernels on CPU: its simulator of Mosaic GPU knows
neither `run_state` nor layouts. So the few functions they use are replaced by NumPy
ones. Copies really are asynchronous and spoil their target until they land; barriers
count arrivals and phases; a deadlock is an error. What this cannot show, that layouts
fit and that it compiles, the CUDA compiler shows (`cuda_targets`).
"""

import threading
import time
import types

import attention_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels.reference_attention import (
    pallas_hopper,
    pallas_hopper_vjp,
    warpgroups,
)
from avatar_kernels.reference_attention.block_sizes import BlockSizes, KernelSizes
from jax.experimental import pallas as pl

SIZES = KernelSizes(
    BlockSizes(128, 64, 64), BlockSizes(128, 64, 64), BlockSizes(64, 128, 128)
)
CASES = {
    name: case._replace(heads=2 if name == "segments" else 1, dtype=jnp.bfloat16)
    for name, case in attention_cases.CASES.items()
}
CASES["float16"] = CASES["empty reference"]._replace(dtype=jnp.float16)
pytestmark = pytest.mark.slow  # barriers wait in real time
PATIENCE = 30.0  # seconds until a barrier counts as a deadlock
thread = threading.local()  # where the thread works: axis name -> index


class Ref:
    """A window of an array in memory; what lies outside reads as zero."""

    def __init__(self, array, window=None):
        self.array = array
        self.window = window or tuple(slice(0, size) for size in array.shape)
        self.dtype = array.dtype
        self.shape = tuple(
            w.stop - w.start for w in self.window if isinstance(w, slice)
        )

    @property
    def at(self):
        return self

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        if index == (Ellipsis,):
            return jnp.asarray(self.read())
        ref = Ref(self.array, self._narrow(index))
        return ref if ref.shape else jnp.asarray(ref.read())

    def _narrow(self, index):
        index, window = list(index), []
        for old in self.window:
            new = index.pop(0) if isinstance(old, slice) and index else None
            if new is None:
                window.append(old)
            elif isinstance(new, pl.Slice):
                start = old.start + int(new.start)
                window.append(slice(start, start + new.size))
            else:
                window.append(old.start + int(new))
        return tuple(window)

    def __setitem__(self, index, value):
        ref = self if index is Ellipsis else Ref(self.array, self._narrow((index,)))
        ref.write(np.asarray(value))

    def transpose(self, _):
        return lambda: self.read().T

    def read(self):
        inside = self.array[self.window]
        out = np.zeros(self.shape, self.dtype)
        out[tuple(slice(0, size) for size in inside.shape)] = inside
        return out

    def write(self, value):
        inside = self.array[self.window]
        inside[...] = value[tuple(slice(0, size) for size in inside.shape)]


class Barrier:
    """Completes a phase at every so many arrivals; each thread awaits each phase."""

    def __init__(self, num_arrivals=1, num_barriers=1):
        self.one_of = [types.SimpleNamespace() for _ in range(num_barriers)]
        for one in self.one_of:
            one.arrivals, one.waits = 0, {}
        self.num_arrivals, self.changed = num_arrivals, threading.Condition()
        self.place = 0

    @property
    def at(self):
        return self

    def __getitem__(self, place):
        part = Barrier.__new__(Barrier)
        part.__dict__.update(self.__dict__, place=int(place))
        return part

    def arrive(self):
        with self.changed:
            self.one_of[self.place].arrivals += 1
            self.changed.notify_all()

    def wait(self):
        one, me = self.one_of[self.place], threading.get_ident()
        with self.changed:
            phase = one.waits[me] = one.waits.get(me, 0) + 1
            target = phase * self.num_arrivals
            if not self.changed.wait_for(lambda: one.arrivals >= target, PATIENCE):
                raise TimeoutError("deadlock")
            # The hardware tells a phase from the next only, not from the one after.
            assert one.arrivals < target + self.num_arrivals, "missed a phase"


class Accumulator:
    def __init__(self, shape, dtype):
        self.value = np.zeros(shape, dtype)

    @staticmethod
    def init(value):
        total = Accumulator((), value.dtype)
        total.value = np.asarray(value)
        return total

    def __getitem__(self, _):
        return jnp.asarray(self.value)


def value_of(x):
    return np.asarray(x.read() if isinstance(x, Ref) else x).astype(np.float32)


def copy_gmem_to_smem(source, target, barrier):
    assert source.shape == target.shape
    target.write(np.full(target.shape, np.nan, target.dtype))

    def land():
        time.sleep(np.random.default_rng().choice((0, 2e-2)))  # late at times
        target.write(source.read())
        barrier.arrive()

    threading.Thread(target=land).start()


def wgmma(total, a, b):
    a, b = value_of(a), b() if callable(b) else value_of(b)
    total.value = total.value + a @ b


def run_state(function):
    def run(totals):
        function(totals)
        return tuple(total[...] for total in totals)

    return run


def fori_loop(start, stop, body, state):
    for i in range(int(start), int(stop)):
        state = body(jnp.int32(i), state)
    return state


def kernel(body, *, out_type, scratch_types, grid, grid_names, num_threads, **_):
    """Run programs one after the other, the warpgroups of each at a time."""

    def work(place, refs, errors):
        thread.place = place
        try:
            body(*refs)
        except BaseException as error:
            errors.append(error)

    def run(*operands):
        kinds, tree = jax.tree.flatten(out_type)
        outs = [np.full(kind.shape, np.nan, kind.dtype) for kind in kinds]
        refs = [Ref(np.asarray(a)) for a in operands] + [Ref(a) for a in outs]
        for cell in np.ndindex(*grid):
            scratch, errors = jax.tree.map(lambda make: make(), scratch_types), []
            threads = [
                threading.Thread(
                    target=work,
                    args=(
                        dict(zip(grid_names, cell, strict=True), group=group),
                        refs + scratch,
                        errors,
                    ),
                )
                for group in range(num_threads)
            ]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            if errors:
                raise errors[0]
        return jax.tree.unflatten(tree, [jnp.asarray(out) for out in outs])

    return run


PLGPU = types.SimpleNamespace(
    ACC=Accumulator,
    Barrier=lambda **counts: lambda: Barrier(**counts),
    CompilerParams=lambda **_: None,
    SMEM=lambda shape, dtype, **_: lambda: Ref(np.full(shape, np.nan, dtype)),
    SwizzleTransform=lambda _: None,
    TilingTransform=lambda _: None,
    barrier_arrive=lambda barrier: barrier.arrive(),
    barrier_wait=lambda barrier: barrier.wait(),
    commit_smem=lambda: None,
    copy_gmem_to_smem=copy_gmem_to_smem,
    copy_smem_to_gmem=lambda source, target: target.write(source.read()),
    kernel=kernel,
    layout_cast=lambda x, _: x,
    load=lambda ref, *_, **__: jnp.asarray(ref.read()),
    set_max_registers=lambda *_, **__: None,
    wait_smem_to_gmem=lambda _: None,
    wgmma=wgmma,
)
PL = types.SimpleNamespace(
    Slice=pl.Slice,
    ds=pl.ds,
    run_scoped=lambda function, *kinds: function(*kinds),
    run_state=run_state,
    when=lambda condition: lambda function: function() if condition else None,
)
LAX = types.SimpleNamespace(
    axis_index=lambda name: jnp.int32(thread.place[name]),
    broadcast_in_dim=jax.lax.broadcast_in_dim,
    fori_loop=fori_loop,
    rem=jax.lax.rem,
)


@pytest.fixture(autouse=True)
def threads_for_warpgroups(monkeypatch):
    for module in (pallas_hopper, pallas_hopper_vjp, warpgroups):
        monkeypatch.setattr(module, "plgpu", PLGPU)
        monkeypatch.setattr(module, "pl", PL)
    monkeypatch.setattr(warpgroups, "lax", LAX)


@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_the_specification(name):
    attention_cases.compare(
        CASES[name],
        jit=lambda function: function,  # threads see values
        implementation="mosaic_gpu",
        sizes=SIZES,
    )


@pytest.mark.parametrize("rows, dtype", [(200, "float32"), (201, "bfloat16")])
def test_what_the_hardware_cannot_read_is_refused(rows, dtype):
    q = jnp.zeros((1, rows, 1, 64), dtype)
    with pytest.raises(NotImplementedError, match="Triton"):
        pallas_hopper.forward(q, [], SIZES.forward)
