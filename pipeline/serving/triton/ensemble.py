"""Several served models asked as one: Triton hands tensors from step to step, and a client makes one request.

An ensemble has no bytes of its own, so it is not promoted: its steps are. It answers with whatever versions they serve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from pipeline.errors import PromotionError, SettingsError
from pipeline.files import sync
from pipeline.machine import places
from pipeline.serving.triton import disk, repository
from pipeline.serving.triton.control import READY, Control, states
from pipeline.serving.triton.errors import TritonError
from pipeline.settings import reader

_PLATFORM = "ensemble"


class Step(BaseModel):
    """One model of an ensemble; its tensors get names that are the ensemble's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    model: str
    inputs: dict[str, str]
    """Input of the model -> what is put in: an input of the ensemble, or what an earlier step gave."""
    outputs: dict[str, str]
    """Output of the model -> its name in the ensemble. What no later step takes is an output of the ensemble."""


@dataclass(frozen=True)
class _Tensor:
    name: str
    data_type: int
    dims: tuple[int, ...]


def read_steps(file: Path) -> tuple[Step, ...]:
    """Return the steps in a YAML file. Raises `PromotionError`."""
    try:
        steps = reader.read(file.read_text(encoding="utf-8"), str(file)) or ()
        return TypeAdapter(tuple[Step, ...]).validate_python(tuple(steps))
    except SettingsError as error:
        raise PromotionError(str(error)) from error
    except (ValidationError, TypeError) as error:
        raise PromotionError(
            f"{file} is no list of steps, each with a model, its inputs and its outputs: {error}"
        ) from error


def config_pbtxt(steps: Sequence[Step], configs: Mapping[str, Any]) -> str:
    """Return the text of the ensemble's `config.pbtxt`.

    Args:
        steps: in the order in which they answer.
        configs: model -> its config (protobuf ModelConfig).

    Raises `PromotionError` where a tensor is unknown, of another type or shape than what it is put into, or given twice.
    """
    if not steps:
        raise PromotionError("an ensemble needs at least one step")
    batch = _batch(steps, configs)
    taken: dict[str, _Tensor] = {}
    given: dict[str, _Tensor] = {}
    used: set[str] = set()
    for step in steps:
        config = configs[step.model]
        for theirs, ours in _wanted(step, config.input, step.inputs, "inputs").items():
            known = given.get(step.inputs[theirs]) or taken.setdefault(ours.name, ours)
            _check_fit(step, theirs, ours, known)
            used.add(ours.name)
        for ours in _wanted(step, config.output, step.outputs, "outputs").values():
            if ours.name in given or ours.name in taken:
                raise PromotionError(
                    f"step {step.model!r} gives {ours.name!r}, which is there already: name it otherwise"
                )
            given[ours.name] = ours
    results = [tensor for name, tensor in given.items() if name not in used]
    config = ModelConfig(platform=_PLATFORM, max_batch_size=batch)
    for kind, tensors in ((config.input, taken.values()), (config.output, results)):
        for tensor in tensors:
            kind.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    for step in steps:
        config.ensemble_scheduling.step.add(
            model_name=step.model, model_version=-1, input_map=step.inputs, output_map=step.outputs
        )
    return repository.config_text(config, [1])


def publish(name: str, steps: Sequence[Step], control: Control, load_timeout: float = 60.0) -> None:
    """Serve `steps` as the model `name`, in the place of what was served so as an ensemble before.

    Raises:
        PromotionError: the steps do not fit each other, `name` is a promoted model, or Triton refuses the ensemble; what
            was served before serves on.
        TritonError: the server cannot be reached.
    """
    repository.check_name(name)
    directory = places.triton_repository() / name
    config_file = directory / repository.CONFIG_FILE
    with disk.lock(name), disk.explained(name):
        before = config_file.read_text(encoding="utf-8") if config_file.exists() else None
        if before is not None and repository.read_config(config_file).platform != _PLATFORM:
            raise PromotionError(f"{name} is a model that was promoted: give the ensemble another name")
        text = config_pbtxt(steps, {step.model: _config(step.model) for step in steps})
        if before is None:
            with disk.scratch() as room:
                (room / name / "1").mkdir(parents=True)
                (room / name / repository.CONFIG_FILE).write_text(text, encoding="utf-8")
                sync([room / name / repository.CONFIG_FILE, room / name / "1", room / name])
                disk.rename(room / name, directory)
        else:
            disk.replace(config_file, text)
        if (trouble := _load(name, control, load_timeout)) is not None:
            _take_back(name, before, control, load_timeout)
            raise PromotionError(f"the ensemble {name} was refused: {trouble}")


def _load(name: str, control: Control, load_timeout: float) -> str | None:
    """Load the ensemble; return what is wrong with that, or None."""
    try:
        control.load(name, load_timeout)
    except TritonError as error:
        if error.status in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
            raise
        return str(error)
    state = states(control, name).get(1)
    return None if state == READY else f"it is {state or 'not loaded'}, not READY"


def _take_back(name: str, before: str | None, control: Control, load_timeout: float) -> None:
    directory = places.triton_repository() / name
    if before is None:
        control.unload(name)
        disk.remove(directory)
    else:
        disk.replace(directory / repository.CONFIG_FILE, before)
        control.load(name, load_timeout)


def _config(model: str) -> Any:
    repository.check_name(model)
    path = places.triton_repository() / model / repository.CONFIG_FILE
    if not path.exists():
        raise PromotionError(f"a step asks the model {model!r}, which is not served: promote it first")
    return repository.read_config(path)


def _wanted(step: Step, tensors: Sequence[Any], names: Mapping[str, str], kind: str) -> dict[str, _Tensor]:
    """Return, for each tensor of the model that `names` has, what it is in the ensemble."""
    there = {tensor.name: tensor for tensor in tensors}
    if unknown := sorted(names.keys() - there.keys()):
        raise PromotionError(f"step {step.model!r} has no {kind} {unknown}; it has {sorted(there)}")
    if kind == "inputs" and (missing := sorted(there.keys() - names.keys())):
        raise PromotionError(f"step {step.model!r} names nothing to put into its inputs {missing}")
    return {theirs: _Tensor(ours, there[theirs].data_type, tuple(there[theirs].dims)) for theirs, ours in names.items()}


def _check_fit(step: Step, theirs: str, wanted: _Tensor, known: _Tensor) -> None:
    same_axes = len(wanted.dims) == len(known.dims) and all(
        a == b or -1 in {a, b} for a, b in zip(wanted.dims, known.dims, strict=True)
    )
    if wanted.data_type != known.data_type or not same_axes:
        raise PromotionError(
            f"step {step.model!r} takes {_say(wanted)} as {theirs!r}, but {wanted.name!r} is {_say(known)}: put a model "
            f"between them that converts it"
        )


def _batch(steps: Sequence[Step], configs: Mapping[str, Any]) -> int:
    """The batch that all steps take; 0 where none has a batch axis."""
    sizes = {step.model: int(configs[step.model].max_batch_size) for step in steps}
    if 0 in sizes.values() and any(sizes.values()):
        alone = sorted(model for model, size in sizes.items() if not size)
        raise PromotionError(
            f"{', '.join(alone)} has no batch axis and the other steps have one: they cannot be joined"
        )
    return min(sizes.values())


def _say(tensor: _Tensor) -> str:
    return f"{DataType.Name(tensor.data_type).removeprefix('TYPE_')}{list(tensor.dims)}"
