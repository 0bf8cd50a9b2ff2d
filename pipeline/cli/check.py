"""`flyweight check`: refuse in seconds what a stage would refuse after hours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pipeline import components
from pipeline.cli import options
from pipeline.errors import FlyweightError, SettingsError
from pipeline.settings import schema
from pipeline.settings.base import Component

if TYPE_CHECKING:
    from pipeline.models.spec import ModelSpec


@click.command()
@options.recipe
@options.overrides
def check(recipe: str | None, overrides: tuple[str, ...]) -> None:
    """Check that the settings hold together and that every component can be made with its arguments."""
    settings = options.settings(recipe, overrides)
    for key, kind, component in settings.components():
        try:
            given = components.GIVEN.get(kind, {})
            components.build(kind, component.name, {**given, **component.arguments}, key)
            if kind == "models" and ":" in component.name:  # the tests hold the built-in ones to it
                from pipeline.export import onnx_graph

                onnx_graph.check_exportable(_spec(settings, component), settings.export_onnx.opset)
        except SettingsError:
            raise
        except FlyweightError as error:
            raise FlyweightError(f"{key}: {error}") from error
    from pipeline.compression.pruning import reach
    from pipeline.models import checkpoint

    reach.in_rounds(settings.prune)
    student = _spec(settings, settings.distill.model)
    reach.check_reach(settings.prune, student)
    quantizer = settings.quantize.build_quantizer()
    if hasattr(quantizer, "check_network"):
        quantizer.check_network(checkpoint.build(student))
    if settings.export_onnx.mobile != "off":
        from pipeline.export import executorch

        executorch.check_installed()
    click.echo(f"the settings hold: recipe {recipe or 'none'}, data set {settings.data.dataset}")


def _spec(settings: schema.Settings, model: Component) -> ModelSpec:
    """Return the spec of a fresh `model` for the data set, so that it can be refused before it is trained."""
    from pipeline.models.spec import Preprocessing, image_classifier

    dataset = components.build("datasets", settings.data.dataset, {})
    channels = dataset.image_shape[0]
    plain = Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)
    return image_classifier(model.name, model.arguments, dataset.image_shape, dataset.labels, plain)
