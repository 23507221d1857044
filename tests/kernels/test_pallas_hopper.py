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

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from avatar_kernels.reference_attention import (
    implementations,
    pallas_hopper,
    pallas_hopper_vjp,
    reference,
    vjp,
)
from avatar_kernels.reference_attention.block_sizes import BlockSizes, KernelSizes
from jax.experimental import pallas as pl

B, T, R, N = 2, 205, 150, 1  # TMA wants eights: they are filled up
SIZES = KernelSizes(
    BlockSizes(128, 64, 64), BlockSizes(128, 64, 64), BlockSizes(64, 128, 128)
)
WINDOW = reference.LocalWindow(1, 1, (1, 41))
KERNELS = implementations.in_eights(
    vjp.Kernels(
        pallas_hopper.forward,
        pallas_hopper_vjp.backward_q,
        pallas_hopper_vjp.backward_kv,
    )
)
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
    load=lambda ref, _, **__: jnp.asarray(ref.read()),
    set_max_registers=lambda *_, **__: None,
    transpose_ref=lambda ref, _: lambda: value_of(ref).T,
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
    for module in (pallas_hopper, pallas_hopper_vjp):
        monkeypatch.setattr(module, "plgpu", PLGPU)
        monkeypatch.setattr(module, "pl", PL)
    monkeypatch.setattr(pallas_hopper, "lax", LAX)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def make_rows(width, references=R, dtype="bfloat16"):
    lengths = T, T, T, references, references
    return [
        normal(i, B, rows, N, width).astype(dtype) for i, rows in enumerate(lengths)
    ]


def make_marks(references=R):
    """Own rows packed or at random, a packed reference that one sample lacks."""
    valid = jax.random.bernoulli(jax.random.key(5), 0.7, (B, T))
    valid = valid.at[0].set(jnp.arange(T) < 170)
    return valid, jnp.arange(references)[None] < jnp.array([[100], [0]])


def run(function, rows):
    """Return output, log-sum-exp and the gradients of all rows through both."""
    (out, lse), pull = jax.vjp(function, *rows)
    d_out, d_lse = normal(7, *out.shape).astype(out.dtype), normal(8, *lse.shape)
    unseen = jnp.zeros_like(lse)  # the gradient of a constant
    return out, lse, *pull((d_out, jnp.where(lse > -1e29, d_lse, unseen)))


def compare(kernel, specification, rows):
    got = run(kernel, rows)
    assert all(a.dtype == b.dtype for a, b in zip(got[2:], rows, strict=True))
    want = jax.jit(run, static_argnums=0)(
        specification, [row.astype(jnp.float32) for row in rows]
    )
    # bfloat16: 2^-9 for the result and as much for each of the weights, of which a few
    # count; the gradients reach about 10.
    for name, a, b in zip(("out", "lse", *"qkvrw"), got, want, strict=False):
        np.testing.assert_allclose(np.float32(a), b, rtol=4e-2, atol=4e-2, err_msg=name)
    return got[:2]


@pytest.mark.parametrize("width, window", [(64, None), (128, WINDOW)])
def test_target_attention_matches_its_specification(width, window):
    valid, reference_valid = make_marks()

    def kernel(*rows):
        marks = vjp.Marks(valid, reference_valid)
        return vjp.attend(vjp.Plan(KERNELS, SIZES, window), vjp.Rows(*rows), marks)

    def specification(*rows):
        return reference.target_attention(
            *rows, valid=valid, reference_valid=reference_valid, window=window
        )

    compare(kernel, specification, make_rows(width))


def test_an_empty_reference_is_plain_attention():
    valid, _ = make_marks()
    none = jnp.zeros((B, 0), bool)

    def kernel(*rows):
        marks = vjp.Marks(valid, none)
        return vjp.attend(vjp.Plan(KERNELS, SIZES), vjp.Rows(*rows), marks)

    def specification(*rows):
        return reference.target_attention(*rows, valid=valid, reference_valid=none)

    compare(kernel, specification, make_rows(64, references=0, dtype="float16"))


def test_segment_attention_matches_its_specification():
    valid, _ = make_marks()
    segment_ids = jnp.repeat(jnp.arange(5), T // 5)[None].repeat(B, 0) * 2 - 1
    valid = valid & (segment_ids != 3)  # a segment where nothing is seen

    def kernel(*rows):
        marks = vjp.Marks(valid, None, segment_ids)
        return vjp.attend(vjp.Plan(KERNELS, SIZES), vjp.Rows(*rows), marks)

    def specification(*rows):
        return reference.segment_attention(*rows, valid=valid, segment_ids=segment_ids)

    out, lse = compare(kernel, specification, make_rows(64)[:3])
    unseen = np.asarray(segment_ids[0] == 3)
    np.testing.assert_array_equal(np.float32(out[:, unseen]), 0)
    np.testing.assert_array_equal(lse[:, unseen], np.float32(reference.MASKED))


@pytest.mark.parametrize("rows, dtype", [(200, "float32"), (201, "bfloat16")])
def test_what_the_hardware_cannot_read_is_refused(rows, dtype):
    q = jnp.zeros((1, rows, 1, 64), dtype)
    with pytest.raises(NotImplementedError, match="Triton"):
        pallas_hopper.forward(q, [], SIZES.forward)
