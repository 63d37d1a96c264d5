"""Compiled steps on CuPy: consecutive elementwise calls are fused into one launch.

Each call of CuPy is a launch. In a traced step, elementwise calls on arrays of one shape, kernels and
operators alike, are collected into groups; a group is recorded as one kernel and compiled (`kernels`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from nnx.backends.cupy.kernels import MOST_ARGUMENTS

from nnx.graph.recording import NotRecordableError
from nnx.graph.tracing import Call, Ref
from nnx.graph.writer import Writer, refs


@dataclass
class Group:
    """Elementwise calls on arrays of one shape whose results no other call has read yet."""

    shape: tuple
    calls: list[Call] = field(default_factory=list)

    @property
    def results(self) -> set[int]:
        """The values that its calls compute."""
        return {result for call in self.calls for result in call.results}

    @property
    def read(self) -> set[int]:
        """The values that it reads from outside the group."""
        return set().union(*(refs(call.arguments) for call in self.calls)) - self.results


class CupyWriter(Writer):
    """Writes calls of CuPy."""

    def _ordered(self, calls, needed):
        """Return the calls, with elementwise ones fused in groups.

        A group is written as late as possible: before the first call that reads a result of it, or
        overwrites a value that it reads.
        """
        done: list[Call] = []
        waiting: list[Group] = []
        users: dict[int, list[Call]] = {}
        for call in calls:
            for value in refs([call.arguments, call.settings]):
                users.setdefault(value, []).append(call)

        def write(groups):
            for group in [g for g in waiting if any(g is h for h in groups)]:
                waiting.remove(group)
                done.append(self._fused(group, users))

        for call in calls:
            if self._is_fixed(call):
                done.append(call)
                continue
            read = refs([call.arguments, call.settings])
            feeding = [group for group in waiting if group.results & read]
            shape = self._elementwise_shape(call)
            if shape is None:
                # A call that writes into a buffer writes into all views of it.
                written = {self.values[value].memory for value in call.writes}
                reads = (g for g in waiting if any(self.values[v].memory in written for v in g.read))
                write([g for g in waiting if g.results & read] + [*reads])
                done.append(call)
                continue
            joined = Group(shape, [call])
            for group in [g for g in feeding if g.shape == shape]:
                if self._fits(both := Group(shape, group.calls + joined.calls), users):
                    waiting.remove(group)
                    joined = both
            write([g for g in waiting if g.results & read])
            waiting.append(joined)
        last: dict[tuple, Group] = {}
        for group in waiting:  # none of which reads results of another
            before = last.get(group.shape)
            if before is not None and self._fits(Group(group.shape, before.calls + group.calls), users):
                before.calls += group.calls
            else:
                if before is not None:
                    done.append(self._fused(before, users))
                last[group.shape] = group
        return done + [self._fused(group, users) for group in last.values()]

    def _fits(self, group: Group, users) -> bool:
        """Whether a group has no more arguments than CUDA can pass."""
        return len(group.read) + len(self._outputs(group, users)) <= MOST_ARGUMENTS

    def _elementwise_shape(self, call: Call) -> tuple | None:
        """Return the shape of the result of an elementwise call; None for any other call."""
        if len(call.results) != 1 or call.writes:
            return None
        kind = self.values[call.results[0]]
        if not kind.is_array or kind.is_view:
            return None
        if call.plan is None and (
            call.settings.keys() - {"copy"} or self.library.operation(call.function) is None
        ):
            return None
        try:
            recorded = self._record([call], [call.results[0]])[0]
        except (NotRecordableError, TypeError, AttributeError):
            return None
        is_one_launch = recorded is not None and recorded.result_dtypes == [kind.dtype]
        return kind.shape if is_one_launch else None

    def _record(self, calls, results):
        """Return (kernel, its arguments) of elementwise calls fused into one."""
        computed = {result for call in calls for result in call.results}
        read = sorted(set().union(*(refs(call.arguments) for call in calls)) - computed)
        constants = [a for call in calls for a in call.arguments if self.library.is_array(a)]

        def fused(xp, *arguments):
            values = dict(zip(read, arguments, strict=False))
            rest = iter(arguments[len(read) :])
            for call in calls:
                given = [
                    values[a] if isinstance(a, Ref) else next(rest) if self.library.is_array(a) else a
                    for a in call.arguments
                ]
                values[call.results[0]] = self._apply(call, xp, given)
            return tuple(values[result] for result in results)

        kinds = [self.values[value].dtype for value in read] + [array.dtype for array in constants]
        plan = self.library.cuda_kernel(fused, tuple(kinds), (None,) * len(results))
        return plan, [*(Ref(value) for value in read), *constants]

    def _apply(self, call, xp, given):
        if call.plan is not None:
            return call.function(xp, *given)
        operation: Callable | str | None = self.library.operation(call.function)
        if isinstance(operation, str):
            return getattr(xp, operation)(*given)
        return xp.call(operation, *given)

    def _outputs(self, group: Group, users) -> list[int]:
        """Return the results of a group that are read outside of it."""
        inside = {id(call) for call in group.calls}
        return [
            result
            for call in group.calls
            for result in call.results
            if result in self.escaping | self.placed
            or any(id(user) not in inside for user in users.get(result, ()))
        ]

    def _fused(self, group: Group, users) -> Call:
        """Return one call for a whole group."""
        results = self._outputs(group, users)
        plan, arguments = self._record(group.calls, results)
        return Call(plan, tuple(arguments), {}, results=tuple(results))

    def _kernel_lines(self, call):
        """Return the line of a kernel that writes into its arguments."""
        results = "".join(f"v{result} = " for result in call.results)
        given = ", ".join(map(self._value, call.arguments))
        return [f"{results}{self._name(call.plan)}({given})"]
