"""From a checkpoint to its fingerprint: lay out, measure every tensor once, sample the neurons."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from fingerprint import ahead
from fingerprint.canonical import lay_out, with_fixed_residual
from fingerprint.device import chosen
from fingerprint.forks import can_fork, forked
from fingerprint.gauge.attention import Attention
from fingerprint.gauge.live import live_samples
from fingerprint.gauge.own import sample_self
from fingerprint.gauge.sample import MOVING, MlpSample, Plan, Sampled, plan_gauge
from fingerprint.gauge.units import Units, sample_units
from fingerprint.gauge.wired import Wired, roles_by_values, wire_by_names, wire_by_values
from fingerprint.measure import MOST_SKETCHED_AXIS, TensorMeasurement, has_long_axis, matrix_shape, measure_tensor
from fingerprint.memory import give_back
from fingerprint.neurons import (
    MOST_MLPS,
    MOST_NEURONS,
    MOST_WIDTH,
    UNNAMED,
    Projections,
    sample_neurons,
)
from fingerprint.parameters import DEFAULT_PARAMETERS
from fingerprint.records import AxisSample, Fingerprint, NeuronSample, TensorRecord
from fingerprint.roles.infer import infer_wiring, width_of_mlps
from fingerprint.roles.residual import SliceNorms
from fingerprint.roles.wiring import Wiring, layer_of
from fingerprint.tensors import element_count
from fingerprint.threads import single_blas, thread_count
from fingerprint.units import first_of, unit_of
from fingerprint.vocabulary import Circuit, Content, Depth, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from concurrent.futures import Executor

    from fingerprint.canonical import CanonicalTensor, Layout
    from fingerprint.checkpoint import Checkpoint
    from fingerprint.parameters import Parameters

Result = TypeVar("Result")

MOST_SKETCHED: Final = 1 << 12
"""Tensors whose sketches are kept, the first by the order of their units: 4 KB each."""
MOST_SAMPLED: Final = 1 << 11
"""Tensors whose slices are kept too: up to 8 KB each."""
SUSPECT_NEURONS: Final = 1024
"""Neurons of each MLP that are sampled of a suspect: more than of a registered model, so that the samples overlap."""
FEWER_NEURONS: Final = 512
"""As many are enough of each MLP of a deep network."""
SMALL_BYTES: Final = 1 << 16
"""Bytes of a tensor, on average, from which several threads are faster than one."""
FORKED_BYTES: Final = 1 << 23
"""Bytes of a checkpoint from which forked processes are worth their start."""
FORKED_AGAIN: Final = 1 << 26
"""Bytes from which they are worth it a second time, for a smaller part of the work."""
ENOUGH_NEURONS: Final = 1 << 14
"""Neurons of all MLPs together beyond which there are only ``FEWER_NEURONS`` of each."""


class Found(Struct, frozen=True):
    """What measuring found out about how a checkpoint is laid out: needed to look deeper."""

    layout: Layout
    contents: tuple[Content, ...]
    mlps: tuple[Projections, ...]
    wired: Wired
    hints: Mapping[str, str]


class Measured(Struct, frozen=True):
    """A fingerprint and the canonical tensors that it was measured on, in the same order; ``found`` of a full look."""

    fingerprint: Fingerprint
    tensors: tuple[CanonicalTensor, ...]
    found: Found | None = None


def fingerprint(
    checkpoint: Checkpoint,
    *,
    parameters: Parameters = DEFAULT_PARAMETERS,
    casts: bool = True,
    neurons: int | None = None,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
    deep: bool = True,
) -> Fingerprint:
    """The fingerprint alone; see ``measure_checkpoint``."""
    return measure_checkpoint(
        checkpoint, parameters=parameters, casts=casts, neurons=neurons, progress=progress, workers=workers, deep=deep
    ).fingerprint


def measure_checkpoint(
    checkpoint: Checkpoint,
    *,
    parameters: Parameters = DEFAULT_PARAMETERS,
    casts: bool = True,
    neurons: int | None = None,
    progress: Callable[[int], None] | None = None,
    workers: int | None = None,
    deep: bool = True,
    meanwhile: Iterable[object] = (),
) -> Measured:
    """Measure a checkpoint.

    ``casts`` adds digests after rounding to narrower float types: wanted of a registered model, not of a suspect, of
    which more neurons are sampled instead. ``neurons`` overrides how many neurons of each MLP are sampled in the fixed
    frame. ``progress`` is called, from any thread, with the number of stored bytes done since the last call.
    ``workers`` threads (default: see ``threads``; one for tensors so small that several would wait for one another's
    turn) share the work, and as many forked processes the tensors of a large checkpoint that lies here, where this
    process has no other threads; the result depends on neither. The steps of ``meanwhile`` are taken while such
    processes measure, and not at all where there are none.
    Without ``deep`` a suspect's layers are not written down in their own frames, nor all of its neurons sampled: that
    takes longer than all the rest, and ``deepened`` does it later. Raises ``InputError``.
    """
    layout = lay_out(checkpoint.tensors, checkpoint.metadata)
    named = bool(layout.mlps)
    gates = {mlp.gate for mlp in layout.mlps}

    large = [i for i, tensor in enumerate(layout.tensors) if len(tensor.view.shape) > 1]
    units = [unit_of(layout.tensors[i].layer, layout.tensors[i].expert) for i in large]
    sketched, sampled = ({large[i] for i in first_of(units, most)} for most in (MOST_SKETCHED, MOST_SAMPLED))

    def measure(position: int) -> TensorMeasurement:
        tensor = layout.tensors[position]
        wants_norms = position in gates or (not named and _may_be_projection(tensor, layout))
        result = measure_tensor(
            tensor.view,
            parameters,
            casts=casts,
            norms=wants_norms,
            column_norms=not named,
            sampled=position in sampled,
        )
        if position not in sketched:
            result.sketch = None
        return result

    def done(position: int) -> None:
        if progress is not None:
            view = layout.tensors[position].view
            progress(element_count(view.shape) * view.dtype.bits // 8)

    number = workers or thread_count()
    if checkpoint.transfer is None and checkpoint.bytes < SMALL_BYTES * len(layout.tensors):
        workers = workers or 1
    with _workers(workers) as pool:
        share = partial(_shared, checkpoint, pool, number)
        measured = share(
            measure,
            len(layout.tensors),
            FORKED_BYTES,
            numbers=ahead.in_order([tensor.view for tensor in layout.tensors]),
            done=done,
            meanwhile=meanwhile if named else chain(meanwhile, _needed_without_names()),
        )
        if _has_sinusoidal_positions(layout, measured):
            layout = with_fixed_residual(layout)
        wiring = _wiring(layout, measured, parameters)
        mlps = _projections(layout, wiring)
        mlps = [mlps[i] for i in sorted(first_of([unit_of(mlp.layer, mlp.expert) for mlp in mlps], MOST_MLPS))]
        count = _neurons_of_each(neurons or parameters.neuron_samples, len(mlps), parameters)
        contents = [result.content for result in measured]
        if named or layout.family is not None:
            wired = wire_by_names(layout, contents, checkpoint.metadata)
        else:
            wired = wire_by_values(layout, contents, wiring, suspect=not casts)
            layout = replace(layout, tensors=_with_roles(layout.tensors, roles_by_values(wiring)))
        plan = plan_gauge(layout, contents, mlps, wired, checkpoint.metadata, parameters, suspect=not casts)
        planned = {id(mlp): number for number, mlp in enumerate(plan.mlps)}

        def sample(number: int) -> Part:
            if number >= len(mlps):
                return (), plan.attention(number - len(mlps))
            mlp = mlps[number]
            fixed = _sample(layout, measured, mlp, count, parameters, suspect=not casts)
            return fixed, plan.mlp(planned[id(mlp)]) if id(mlp) in planned else None

        # All that is read of a matrix a second time by one process, which sees its pages for the first time.
        parts = share(sample, len(mlps) + len(plan.blocks), FORKED_AGAIN)
        gauge = _finished(plan, parts)
        own, vectors = (
            sample_self(layout, contents, mlps, wired, parameters, pool, suspect=False) if casts else ((), ())
        )
        hidden = Units() if mlps else sample_units(layout.tensors, contents, parameters, suspect=not casts)
        layout = replace(layout, tensors=_with_roles(layout.tensors, hidden.roles))
    records = tuple(record_of(tensor, result) for tensor, result in zip(layout.tensors, measured, strict=True))
    made = Fingerprint(
        parameters=parameters,
        depth=Depth.FULL,
        format=checkpoint.format,
        files=len(checkpoint.files),
        stored_bytes=checkpoint.bytes,
        bytes_read=checkpoint.bytes,
        dtypes=checkpoint.dtypes,
        complete=checkpoint.complete,
        tensors=records,
        neurons=tuple(fixed[0] for fixed, _ in parts if fixed)
        + tuple(live for fixed, _ in parts for live in fixed[1:])
        + gauge.neurons
        + own
        + hidden.samples,
        findings=tuple((finding.code, finding.message) for finding in checkpoint.findings)
        + _limits_reached(layout, measured, len(large))
        + ((("gauge-missing", gauge.missing),) if gauge.missing and not hidden.samples else ()),
        claims=dict(checkpoint.metadata),
        channels=gauge.channels,
        grams=gauge.grams + vectors + hidden.grams,
    )
    found = Found(layout, tuple(contents), tuple(mlps), wired, checkpoint.metadata)
    whole = Measured(made, layout.tensors, found)
    return deepened(whole, workers=workers) if deep and not casts else whole


def deepened(measured: Measured, *, workers: int | None = None) -> Measured:
    """A suspect that was measured at full depth, at ``Depth.DEEP``: with all neurons of its MLPs, and with its layers
    in their own frames. Raises ``InputError``."""
    found, made, tensors = measured.found, measured.fingerprint, measured.tensors
    del measured  # samples that are taken anew need not be kept meanwhile, if the caller keeps them no longer either
    if found is None:
        raise ValueError("only what was measured at full depth can be looked at more deeply")
    about = (found.layout, found.contents, found.mlps)
    give_back()
    with _workers(workers) as pool:
        if any(sample.frame in MOVING and sample.indices.size < sample.size for sample in made.neurons):
            fixed = tuple(sample for sample in made.neurons if sample.frame not in MOVING)
            attention = tuple(gram for gram in made.grams if gram.circuit is not Circuit.DOWN_UP)
            made = replace(made, neurons=fixed, grams=attention)
            unattended = replace(found.wired, blocks=())  # of attention nothing is left to be found
            plan = plan_gauge(*about, unattended, found.hints, made.parameters, suspect=True, deep=True)
            more = plan.finished(list(pool.map(plan.mlp, range(len(plan.mlps)))), ())
            made = replace(made, neurons=fixed + more.neurons, grams=more.grams + attention)
            give_back()
        own, vectors = sample_self(*about, found.wired, made.parameters, pool, suspect=True)
    made = replace(made, depth=Depth.DEEP, neurons=made.neurons + own, grams=made.grams + vectors)
    return Measured(made, tensors, found)


def _needed_without_names() -> Iterator[None]:
    """Load, step by step, what telling roles by values asks for: a quarter of a second."""
    import scipy.optimize

    yield
    import scipy.sparse.csgraph  # noqa: F401 - here and now

    yield


def _shared(
    checkpoint: Checkpoint,
    pool: Executor,
    processes: int,
    function: Callable[[int], Result],
    count: int,
    least: int,
    *,
    numbers: Iterable[int] | None = None,
    done: Callable[[int], None] = lambda _: None,
    meanwhile: Iterable[object] = (),
) -> list[Result]:
    """``function`` of all numbers below ``count``; ``done`` is told of each. See ``forks.forked`` for ``meanwhile``.

    By forked processes where a checkpoint of ``least`` bytes may be shared among such, else by the threads of ``pool``;
    processes are handed ``numbers``, the same ones, as they are ready. Of fewer bytes that lie here each call is so
    short that threads would wait for one another: this one does it all.
    """

    def here(number: int) -> Result:
        result = function(number)
        done(number)
        return result

    if checkpoint.transfer is None and checkpoint.bytes < least:
        return [here(number) for number in range(count)]
    if processes < 2 or not _may_fork(checkpoint):
        return list(pool.map(here, range(count)))
    found: dict[int, Result] = {}
    helping = checkpoint.bytes < FORKED_AGAIN
    with closing(forked(function, numbers or range(count), processes, meanwhile, helping=helping)) as results:
        for number, result in results:
            found[number] = result
            done(number)
    return [found[number] for number in range(count)]


@contextmanager
def _workers(number: int | None) -> Iterator[Executor]:
    """Threads that share the work, each with one thread of BLAS."""
    with single_blas(), ThreadPoolExecutor(number or thread_count()) as pool:
        yield pool


def _may_fork(checkpoint: Checkpoint) -> bool:
    """Whether processes may share it: what lies here, and is not measured on a device, which belongs to one."""
    return checkpoint.transfer is None and chosen() is None and can_fork()


def _neurons_of_each(wanted: int, mlps: int, parameters: Parameters) -> int:
    """Neurons that are sampled of each MLP in the fixed frame, where there are as many as ``mlps``."""
    count = min(wanted, max(parameters.neuron_samples, MOST_NEURONS // max(mlps, 1)))
    return count if count <= FEWER_NEURONS else max(FEWER_NEURONS, min(count, ENOUGH_NEURONS // max(mlps, 1)))


def _limits_reached(layout: Layout, measured: Sequence[TensorMeasurement], large: int) -> tuple[tuple[str, str], ...]:
    """Findings about matrices that are only compared whole, by their digests."""
    long = sum(
        len(tensor.view.shape) > 1 and result.content is Content.SMALL and has_long_axis(tensor.view.shape)
        for tensor, result in zip(layout.tensors, measured, strict=True)
    )
    found = []
    if long:
        found.append(("axis-too-long", f"{long} matrices have an axis of more than {MOST_SKETCHED_AXIS}: no sketches"))
    if large > MOST_SKETCHED:
        found.append(("sketches-sampled", f"sketches are kept of the first {MOST_SKETCHED} of {large} matrices"))
    return tuple(found)


def _has_sinusoidal_positions(layout: Layout, measured: Sequence[TensorMeasurement]) -> bool:
    """Whether an analytic table as wide as the residual stream is added to it, giving its channels fixed meanings."""
    return any(
        result.content is Content.ANALYTIC and len(tensor.view.shape) >= 2 and tensor.view.shape[-1] == layout.width
        for tensor, result in zip(layout.tensors, measured, strict=True)
    )


def _may_be_projection(tensor: CanonicalTensor, layout: Layout) -> bool:
    shape = tensor.view.shape
    return len(shape) == 2 and layout.width in shape


def _projections(layout: Layout, wiring: Wiring) -> list[Projections]:
    if layout.mlps:
        return [
            Projections(
                layer=mlp.layer,
                expert=mlp.expert,
                gate=(mlp.gate, False),
                up=None if mlp.up is None else (mlp.up, False),
                down=(mlp.down, False),
                activation=mlp.activation,
            )
            for mlp in layout.mlps
        ]
    return [
        Projections(
            layer=layer_of(layout.tensors, mlp.places),
            expert=None,
            gate=mlp.gate,
            up=mlp.up,
            down=mlp.down,
            activation="" if mlp.decided else UNNAMED,
        )
        for mlp in wiring.mlps
    ]


def _with_roles(tensors: Sequence[CanonicalTensor], roles: Mapping[int, Role]) -> tuple[CanonicalTensor, ...]:
    """The tensors with what their values tell of their roles where their names say nothing."""
    return tuple(
        replace(tensor, role=roles[position]) if position in roles and tensor.role is Role.OTHER else tensor
        for position, tensor in enumerate(tensors)
    )


def _wiring(layout: Layout, measured: Sequence[TensorMeasurement], parameters: Parameters) -> Wiring:
    """What belongs together by its values: nothing where names have told."""
    if layout.mlps:
        return Wiring()
    norms = {
        position: SliceNorms(result.row_norms, result.column_norms)
        for position, result in enumerate(measured)
        if result.row_norms is not None and result.column_norms is not None
    }
    contents = [result.content for result in measured]
    width = layout.width or width_of_mlps(layout.tensors, contents)
    return infer_wiring(layout.tensors, contents, norms, width, parameters.seed)


Part = tuple[tuple[NeuronSample, ...], MlpSample | Attention | None]
"""Of an MLP its samples in the fixed frame, see ``_sample``, and those in moving frames; or a block of attention."""


def _sample(
    layout: Layout,
    measured: list[TensorMeasurement],
    mlp: Projections,
    count: int,
    parameters: Parameters,
    *,
    suspect: bool,
) -> tuple[NeuronSample, ...]:
    """The sample of an MLP in the fixed frame, and of a suspect's what is left of it; none where there is none."""
    positions = [part[0] for part in (mlp.gate, mlp.up, mlp.down) if part is not None]
    if any(measured[position].content is not Content.WEIGHTS for position in positions):
        return ()
    gate = measured[mlp.gate[0]]
    norms = gate.column_norms if mlp.gate[1] else gate.row_norms
    if norms is None or max(layout.tensors[mlp.gate[0]].view.shape[0 if mlp.gate[1] else 1], 1) > MOST_WIDTH:
        return ()
    found = (sample_neurons(layout.tensors, mlp, norms, count, parameters),)
    return (*found, *(live_samples(found) if suspect else ()))


def _finished(plan: Plan, parts: Sequence[Part]) -> Sampled:
    neurons = [part for _, part in parts if isinstance(part, MlpSample)]
    return plan.finished(neurons, [part for _, part in parts if isinstance(part, Attention)])


def record_of(tensor: CanonicalTensor, result: TensorMeasurement) -> TensorRecord:
    """The record of one canonical tensor from what was measured of it."""
    return TensorRecord(
        name=tensor.name,
        role=tensor.role,
        layer=tensor.layer,
        expert=tensor.expert,
        shape=tuple(tensor.view.shape),
        oriented=tensor.oriented,
        dtype=tensor.view.dtype.name,
        content=result.content,
        digest=result.digest,
        casts=result.casts,
        statistics=result.statistics,
        sketch=None if result.sketch is None else result.sketch.whole,
        axes=_axis_samples(tensor, result),
    )


def _axis_samples(tensor: CanonicalTensor, result: TensorMeasurement) -> tuple[AxisSample, ...]:
    sketch = result.sketch
    if sketch is None or sketch.rows is None or sketch.columns is None:
        return ()
    rows, columns = matrix_shape(tensor.view.shape)
    ours, theirs = result.slices
    return (
        AxisSample(tensor.axes[0], 0, rows, sketch.row_indices, sketch.rows, *ours),
        AxisSample(tensor.axes[1], 1, columns, sketch.column_indices, sketch.columns, *theirs),
    )
