"""Run passes one by one, and keep only what proves itself.

A step is: clone, requires, call, structural invariants, numeric verification, measurement (by a judge
that the caller supplies), keep or roll back, record.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from graphopt import compare, inputs, invariants, io, piecewise, runtime, spec, tapping
from graphopt.data import Data
from graphopt.errors import UserError
from graphopt.passbase import Case, Pass, PreconditionError, Result
from graphopt.runtime import Arrays, ExecutionError, Session
from graphopt.target import Target

log = logging.getLogger("graphopt")

_ALIKE = 15.0
"""dB that outputs keep where a network amplifies the rounding of an exact pass (see `piecewise`)."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge thinks of a verified candidate: whether it pays, and why or why not."""

    keep: bool
    reason: str


Judge = Callable[[ir.Model, Session], Verdict]
"""(candidate, its session) -> verdict, for candidates of passes that are lossy or timed."""


@dataclasses.dataclass(frozen=True)
class Step:
    """The record of one pass; the field names are those of the JSON report.

    Attributes:
        spec: the pass as a specification string.
        status: "kept", "reverted" (it ran, and broke something or did not pay) or "skipped".
        reason: why.
        seconds: how long it took, verification and measurement included.
        nodes, bytes: before and after.
        skipped: `(node, reason)` rows.
        report: the pass's own facts.
        parts: what to try in place of a pass that was rolled back (see `passbase.Result`); not part of the JSON.
    """

    spec: str
    status: Literal["kept", "reverted", "skipped"]
    reason: str
    seconds: float
    nodes: tuple[int, int]
    bytes: tuple[int, int]
    skipped: Sequence[tuple[str, str]] = ()
    report: dict[str, Any] = dataclasses.field(default_factory=dict)
    parts: Sequence[Pass] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the step as DESIGN section 6 wants it."""
        record = {"pass": self.spec, **dataclasses.asdict(dataclasses.replace(self, parts=()))}
        del record["spec"], record["parts"]
        return record


class Unverifiable(UserError):
    """The model cannot be run, or not twice alike, so nothing done to it could be verified."""


@dataclasses.dataclass(frozen=True)
class Start:
    """A model that loads, and the step it took to make it load, if any."""

    model: ir.Model
    session: Session
    steps: tuple[Step, ...] = ()


def begin(model: ir.Model, target: Target, passes: Sequence[Pass], name: str) -> Start:
    """Open the model; one that does not load gets a single chance, the first of `passes`.

    Args:
        model: never changed.
        target: where to run.
        passes: what is going to be run.
        name: what to call the model in messages.

    Raises:
        UserError: it does not load, neither as it is nor after the first pass.
    """
    start = time.perf_counter()
    try:
        return Start(model, runtime.open_session(model, target))
    except ExecutionError as error:
        refusal = f"{name}: does not load: {error}"
    mended = duplicate(model)
    try:
        result = passes[0](mended) if passes else None
    except PreconditionError:
        result = None
    if result is None or not result.modified:
        raise UserError(f"{refusal}; try: graphopt apply MODEL repair -o OUT")
    try:
        session = runtime.open_session(mended, target)
    except ExecutionError as error:
        raise UserError(f"{refusal}; after {passes[0].pass_name()}: {error}") from None
    before, after = measure(model), measure(mended)
    step = Step(
        spec.render(passes[0]),
        "kept",
        f"the model did not load before: {refusal}",
        time.perf_counter() - start,
        (before[0], after[0]),
        (before[1], after[1]),
        tuple(getattr(result, "skipped", ())),
        getattr(result, "report", {}),
    )
    return Start(mended, session, (step,))


def feeds_for(start: Start, data: Data | None, seed: int, name: str) -> list[dict[str, np.ndarray]]:
    """Return inputs on which to verify: from the data, or generated from the seed.

    Raises:
        Unverifiable: the model runs on none that can be generated.
        UserError: the data does not fit the model.
    """
    if data is None:
        try:
            return inputs.generate(start.model, start.session, seed)
        except inputs.CannotGenerate as reason:
            raise Unverifiable(f"{name}: does not run on generated inputs ({reason}); give it data") from None
    ports = runtime.model_inputs(start.model)
    data.check(ports)
    feeds = inputs.from_data(data, ports)
    try:
        for f in feeds:
            start.session.run(f)
    except ExecutionError as error:
        raise UserError(f"{data.name}: the model does not run on this data: {error}") from None
    return feeds


def unverified(model: ir.Model, passes: Sequence[Pass], on_step: Callable[[Step], None] | None = None) -> list[Step]:
    """Run passes in place without running the model, and record what came of them.

    Raises:
        UserError: a pass refuses the model, or its configuration or data is wrong.
    """
    steps = []
    for pass_ in passes:
        start, nodes, size = time.perf_counter(), sum(1 for _ in io.nodes(model)), io.total_bytes(model)
        try:
            result = pass_(model)
        except PreconditionError as refusal:
            if isinstance(refusal.__cause__, Exception):
                raise refusal.__cause__ from None
            raise UserError(f"{pass_.pass_name()}: {refusal}") from None
        step = Step(
            spec.render(pass_),
            "kept" if result.modified else "skipped",
            "not verified" if result.modified else "nothing to do",
            time.perf_counter() - start,
            (nodes, sum(1 for _ in io.nodes(model))),
            (size, io.total_bytes(model)),
            tuple(getattr(result, "skipped", ())),
            getattr(result, "report", {}),
        )
        steps.append(step)
        if on_step:
            on_step(step)
    return steps


@dataclasses.dataclass(frozen=True)
class _Before:
    """The model before a pass (see `passbase.Before`)."""

    model: ir.Model
    feeds: Sequence[Arrays]
    seed: int
    target: Target
    session: Session

    def run(self, feeds: Arrays, tensors: Sequence[str] = ()) -> dict[str, np.ndarray]:
        constants = {
            name: value.const_value.numpy()
            for name, value in self.model.graph.initializers.items()
            if name in tensors and name not in feeds and value.const_value is not None
        }
        values = {v.name: v for v in self.model.graph.inputs}
        values |= {v.name: v for node in self.model.graph for v in node.outputs}
        led = [values[name] for name in tensors if name not in constants]
        session = runtime.open_session(tapping.tap(self.model, led).model, self.target) if led else self.session
        return constants | session.run(feeds)


@dataclasses.dataclass(frozen=True)
class Mark:
    """A state of a pipeline: its model and session, and how many steps were recorded and kept."""

    model: ir.Model
    session: Session
    truth: ir.Model
    cases: list[Case]
    steps: int
    kept: int


class Pipeline:
    """A model on its way through passes.

    Attributes:
        model: the last model that was kept.
        session: a session of it.
        target: where candidates are verified.
        steps: what happened so far.
        kept: specification strings of the kept passes, without outside sources.
    """

    def __init__(self, start: Start, target: Target, feeds: Sequence[Arrays], seed: int = 0) -> None:
        """Begin with a model that runs.

        Args:
            start: the model and its session.
            target: where candidates are verified.
            feeds: inputs on which candidates must compute what the model computes.
            seed: of what passes that change inputs or outputs draw to be verified.

        Raises:
            Unverifiable: two runs on the same inputs differ.
        """
        self.model, self.session, self.target, self._seed = start.model, start.session, target, seed
        self._truth = start.model  # computes what the cases expect
        self.steps: list[Step] = list(start.steps)
        self.kept: list[str] = [step.spec for step in start.steps]
        session = start.session
        self._cases = [Case(f, session.run(f)) for f in feeds]
        again = session.run(feeds[0])
        if compare.first_mismatch(self._cases[0].expected, again, 0.0):
            raise Unverifiable("the model is not deterministic: two runs on the same inputs differ")
        self._size = measure(start.model)

    def run(self, pass_: Pass, judge: Judge | None = None, *, strict: bool = False) -> Step:
        """Run one pass and record what came of it.

        Args:
            pass_: the pass.
            judge: decides about candidates of passes that are lossy or timed; without one they are kept once verified.
            strict: an unmet precondition of the pass is an error, rather than a reason to skip it.

        Raises:
            UserError: from the pass, when its configuration or data is wrong.
        """
        start = time.perf_counter()
        candidate = duplicate(self.model)
        session: Session | None = None
        cases = self._cases
        result = Result(candidate, False)
        size = self._size
        try:
            result = pass_(candidate)  # type: ignore[assignment]
            if not result.modified:
                status, reason = "skipped", "nothing to do"
            elif result.cases is not None and judge is not None:
                status, reason = "skipped", "it changes inputs or outputs, which are measured here; apply it before"
            else:
                session, cases, verdict = self._examine(pass_, candidate, result, judge)
                status, reason = ("kept" if verdict.keep else "reverted"), verdict.reason
        except PreconditionError as refusal:
            if isinstance(refusal.__cause__, UserError):
                raise refusal.__cause__ from None
            if refusal.__cause__ is not None:
                status, reason = "reverted", _bug(refusal.__cause__)
            elif strict:
                raise UserError(f"{pass_.pass_name()}: {refusal}") from None
            else:
                status, reason = "skipped", str(refusal)
        except UserError:
            raise
        except Exception as bug:
            log.debug("%s failed", pass_.pass_name(), exc_info=True)
            status, reason = "reverted", _bug(bug)
        if result.modified:
            size = measure(candidate)
        step = Step(
            spec.render(pass_),
            status,  # type: ignore[arg-type]
            reason,
            time.perf_counter() - start,
            (self._size[0], size[0]),
            (self._size[1], size[1]),
            tuple(result.skipped),
            result.report,
            tuple(result.parts) if status == "reverted" else (),
        )
        if status == "kept":
            assert session is not None
            self.model, self.session, self._size = candidate, session, size
            self.kept.append(spec.render(pass_, sources=False))
            if pass_.contract.kind == "lossy":
                cases = [Case(case.feeds, session.run(case.feeds)) for case in cases]
            if cases is not self._cases:
                self._truth, self._cases = candidate, cases
        self.steps.append(step)
        return step

    def mark(self) -> Mark:
        """Return a place to roll back to."""
        return Mark(self.model, self.session, self._truth, self._cases, len(self.steps), len(self.kept))

    def rollback(self, mark: Mark, reason: str) -> None:
        """Undo everything since `mark`; the steps kept since then become reverted, for this reason."""
        self.model, self.session, self._size = mark.model, mark.session, measure(mark.model)
        self._truth, self._cases = mark.truth, mark.cases
        del self.kept[mark.kept :]
        for index, step in enumerate(self.steps[mark.steps :], mark.steps):
            if step.status == "kept":
                self.steps[index] = dataclasses.replace(step, status="reverted", reason=reason)

    def _examine(
        self, pass_: Pass, candidate: ir.Model, result: Result, judge: Judge | None
    ) -> tuple[Session | None, list[Case], Verdict]:
        """Return the candidate's session, what it has to compute, and whether to keep it."""
        cases = self._cases
        broken = invariants.violation(self.model, candidate, interface=result.cases is None)
        if broken:
            return None, cases, Verdict(False, f"broke the graph: {broken}")
        if result.cases is not None:
            feeds = [case.feeds for case in cases]
            try:
                cases = list(result.cases(_Before(self.model, feeds, self._seed, self.target, self.session)))
            except ExecutionError as error:
                return None, cases, Verdict(False, f"cannot be verified: the model before does not run: {error}")
            if not cases:
                return None, cases, Verdict(False, "cannot be verified: no inputs are known that it must run on")
        try:
            session = runtime.open_session(candidate, self.target)
            actual = [session.run(case.feeds) for case in cases]
        except ExecutionError as error:
            return None, cases, Verdict(False, f"the result does not run: {error}")
        for case, got in zip(cases, actual, strict=True):
            wrong = self._wrong(pass_, candidate, case, got, same_interface=result.cases is None)
            if wrong:
                return None, cases, Verdict(False, wrong)
        if type(pass_).audit is not Pass.audit:
            try:
                optimized = runtime.find(self.target).optimized(candidate, self.target)
            except ExecutionError:  # above 2 GiB, where ONNX Runtime does not write what it made
                optimized = None
            if optimized is not None:
                result.skipped.extend(pass_.audit(optimized))
        if judge is None or not (pass_.contract.kind == "lossy" or pass_.contract.timed):
            return session, cases, Verdict(True, "verified")
        return session, cases, judge(candidate, session)

    def _is_rounding(self, pass_: Pass, candidate: ir.Model, case: Case, got: Arrays) -> bool:
        """Tell whether outputs differ only by what the network makes of roundings: every piece of it computes the same."""
        if _destroyed(case.expected, got, _ALIKE):
            return False
        try:
            wrong = piecewise.first_mismatch(
                self._truth, candidate, case.feeds, self.target, pass_.contract.rtol, self._seed
            )
        except ExecutionError:
            return False
        return wrong is None

    def _wrong(self, pass_: Pass, candidate: ir.Model, case: Case, got: Arrays, *, same_interface: bool) -> str | None:
        """Return how the candidate's outputs break the pass's contract, or None."""
        contract = pass_.contract
        if contract.kind == "lossy":
            return _destroyed(case.expected, got, contract.min_sqnr)
        reason = compare.first_mismatch(case.expected, got, contract.rtol)
        if reason is not None and same_interface and self._is_rounding(pass_, candidate, case, got):
            return None
        if reason is None or not same_interface:
            return reason and f"changed the result: {reason}"
        from graphopt import bisection

        node = bisection.first_divergence(self.model, candidate, case.feeds, self.target, contract.rtol)
        return f"changed the result: {reason}" + (f"; first at {node}" if node else "")


def duplicate(model: ir.Model) -> ir.Model:
    """Return a copy that a pass may change; onnx_ir's shares the types of values, which setting a dtype changes."""
    made = model.clone()
    made.meta.update(model.meta)
    made.meta.pop(io.LENGTH, None)
    for graph in made.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            value.type = copy.deepcopy(value.type)
    for node in io.nodes(made):
        for value in node.outputs:
            value.type = copy.deepcopy(value.type)
    return made


def become(model: ir.Model, made: ir.Model) -> None:
    """Give a model what a changed copy of it holds."""
    model.graph, model.ir_version = made.graph, made.ir_version
    model.functions.clear()
    model.functions.update(made.functions)


def measure(model: ir.Model) -> tuple[int, int]:
    """Return a model's number of nodes (subgraphs and functions included) and its size in bytes."""
    nodes = sum(1 for _ in io.nodes(model))
    length = model.meta.get(io.LENGTH)  # no pass touches a model after it was opened
    if length is None:
        external = sum(t.nbytes for t in io.tensors(model) if isinstance(t, ir.ExternalTensor))
        length = ir.to_proto(model).ByteSize() + external
    return nodes, length


def _bug(error: BaseException) -> str:
    return f"bug in this pass, please report it: {type(error).__name__}: {error}"


def _destroyed(expected: Arrays, actual: Arrays, min_sqnr: float) -> str | None:
    """Return how a lossy result is beyond use: other shapes or types, new NaN, or noise as loud as the signal."""
    for name, reference in expected.items():
        if name not in actual:
            return f"output '{name}' is missing"
        array = actual[name]
        if array.shape != reference.shape or array.dtype != reference.dtype:
            return (
                f"output '{name}' became {array.dtype}{list(array.shape)} from {reference.dtype}{list(reference.shape)}"
            )
        if not compare.is_float(array.dtype):
            continue
        if np.isfinite(reference.astype(np.float64)).all() and not np.isfinite(array.astype(np.float64)).all():
            return f"output '{name}' became NaN or infinite"
        noise = compare.sqnr(reference, array)
        if noise < min_sqnr and np.any(reference):
            return f"output '{name}' has {noise:.1f} dB left of its signal, under {min_sqnr:g} dB"
    return None
