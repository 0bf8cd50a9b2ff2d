"""Does what would be written into `config.pbtxt` fit the file that it would be written for? Asked before anything is staged.

Triton finds the same faults, but as one line at load time, when a candidate is already in its repository; and its Python
backend finds some of them with the first request alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.errors import ModelError, PromotionError
from pipeline.models.onnx_spec import read_spec
from pipeline.models.spec import TensorSpec
from pipeline.records.engines import load_engine
from pipeline.serving.triton.repository import ATTESTED, Artifact
from pipeline.settings.serving import Serving


def lint(artifact: Artifact, serving: Serving) -> None:
    """Raise `PromotionError` with a line for every way in which spec, settings and file do not fit each other."""
    if found := problems(artifact, serving):
        listed = "\n".join(f"  - {problem}" for problem in found)
        raise PromotionError(f"candidate {artifact.candidate!r} cannot be served as it is configured:\n{listed}")


def problems(artifact: Artifact, serving: Serving) -> list[str]:
    """Return every way in which spec, settings and file do not fit each other, as a sentence."""
    found = [*serving.contradictions(), *_interface(artifact), *_labels(artifact), *_bare(artifact, serving)]
    return found + (list(_engine(artifact, serving)) if serving.backend == "tensorrt" else [])


def _interface(artifact: Artifact) -> Iterator[str]:
    """Names, types, axes: the spec's against the graph's."""
    spec, graph = artifact.spec, read_spec(artifact.onnx)
    names = [tensor.name for tensor in (*spec.inputs, *spec.outputs)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two of its tensors are called {name!r}: rename one of them"
    if ATTESTED in names:
        yield f"a tensor is called {ATTESTED!r}, as the output that says what serves: rename it"
    for kind in ("inputs", "outputs"):
        wanted = {tensor.name: tensor for tensor in getattr(spec, kind)}
        there = {tensor.name: _whole(tensor, graph.batched) for tensor in getattr(graph, kind)}
        if missing := sorted(wanted.keys() - there.keys()):
            yield f"its spec has {kind} {missing}, which {artifact.onnx.name} has not; it has {sorted(there)}"
        if kind == "inputs" and (unknown := sorted(there.keys() - wanted.keys())):
            yield f"{artifact.onnx.name} takes {kind} {unknown}, which its spec does not name: no request could bring them"
        for name in wanted.keys() & there.keys():
            yield from _tensor(_whole(wanted[name], spec.batched), there[name], batched=spec.batched)


def _tensor(wanted: TensorSpec, there: TensorSpec, *, batched: bool) -> Iterator[str]:
    if wanted.dtype != there.dtype:
        yield f"{wanted.name!r} is {wanted.dtype} in its spec and {there.dtype} in the graph"
    if batched and there.shape and there.shape[0] != -1:
        yield (
            f"the first axis of {wanted.name!r} is fixed at {there.shape[0]}, so requests cannot be put together: "
            f"export it with a dynamic batch axis"
        )
    elif not _fits(wanted.shape, there.shape):
        yield f"{wanted.name!r} has shape {list(wanted.shape)} in its spec and {list(there.shape)} in the graph"


def _labels(artifact: Artifact) -> Iterator[str]:
    labels, first = artifact.spec.labels, artifact.spec.outputs[0]
    if labels and first.shape[-1:] not in {(len(labels),), (-1,)}:
        yield f"it has {len(labels)} labels, but {first.name!r} has shape {list(first.shape)}"


def _bare(artifact: Artifact, serving: Serving) -> Iterator[str]:
    """Triton takes the axis that it adds to a bare number away again only behind a batch axis; else model.py does."""
    spec = artifact.spec
    bare = [tensor.name for tensor in (*spec.inputs, *spec.outputs) if not tensor.shape]
    if bare and not spec.batched and serving.backend != "python":
        yield (
            f"{', '.join(map(repr, bare))} has no axis and the model no batch axis, which backend {serving.backend!r} does "
            f"not serve: set serving.backend to 'python'"
        )


def _engine(artifact: Artifact, serving: Serving) -> Iterator[str]:
    """The engine against the ONNX file and the batches that Triton would form."""
    if artifact.plan is None:
        yield (
            "serving.backend is 'tensorrt' and there is no engine: name the candidate in build_tensorrt.candidates and "
            "run `flyweight build_tensorrt` on a machine with the server's GPU"
        )
        return
    try:
        engine = load_engine(artifact.plan)
    except ModelError as error:
        yield str(error)
        return
    if engine.builder != "tensorrt":
        yield f"its engine was built by {engine.builder}, which Triton cannot load: build_tensorrt.builder must be tensorrt"
    if engine.onnx_sha256 != artifact.sha256:
        yield f"its engine was built from an ONNX file with SHA-256 {engine.onnx_sha256}, not {artifact.sha256}: build it again"
    if artifact.spec.batched and serving.max_batch_size != engine.profile.max:
        yield (
            f"serving.max_batch_size is {serving.max_batch_size}, but its engine takes batches of {engine.profile.min} to "
            f"{engine.profile.max}: set it to {engine.profile.max} or build the engine again"
        )


def _whole(tensor: TensorSpec, batched: bool) -> TensorSpec:
    return tensor.model_copy(update={"shape": (-1, *tensor.shape)}) if batched else tensor


def _fits(wanted: tuple[int, ...], there: tuple[int, ...]) -> bool:
    """Whether as many axes are there, of the same lengths where both say one."""
    return len(wanted) == len(there) and all(a == b or -1 in {a, b} for a, b in zip(wanted, there, strict=True))
