"""``bisenet models``: list, show, publish, promote and delete the versions of a registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from model.artifacts.aliases import Alias
from model.artifacts.artifact import Artifact, read_artifact
from model.artifacts.evaluation_records import Requirement
from model.artifacts.manifest import RANDOM_WEIGHTS, ModelVersion
from model.artifacts.openvino_graph import prove_graph
from model.artifacts.registry import DEFAULT_ALIAS, ModelRegistry
from model.errors import EvaluationError
from service.cli.export_model import export_model
from service.cli.import_model import import_model
from service.cli.local import exit_on_errors, local_settings, open_artifact
from service.cli.quantize_model import quantize_model
from service.registry import open_registry
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, help="List, publish, import, promote, quantize, export models.")

Reference = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="NAME, NAME:ALIAS or NAME@VERSION. Default: the shipped model."),
]
Version = Annotated[str, typer.Argument(metavar="NAME@VERSION", help="One version of a model.")]
AliasName = Annotated[str, typer.Option("--alias", help="Name of the alias; a new one is created.")]
RegistryUrl = Annotated[
    str | None,
    typer.Option(
        "--registry", metavar="URL", help="Folder, file://, s3://, gs:// or az://; else $BISENET_REGISTRY."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Report on stdout as JSON.")]


@app.command("list")
def list_models(*, registry: RegistryUrl = None, as_json: AsJson = False) -> None:
    """List every version, with the aliases that point at it.

    Examples:
        bisenet models list
        bisenet models list --registry s3://bucket/models --json
    """
    with exit_on_errors():
        rows = _rows(open_registry(_settings(registry)))
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        typer.echo("  ".join([f"{row['name']}@{row['version']}", *row["aliases"]]))


@app.command()
def show(model: Reference = None, *, registry: RegistryUrl = None, as_json: AsJson = False) -> None:
    """Show the architecture, classes, normalisation and origin of a model.

    Examples:
        bisenet models show
        bisenet models show camvid@1 --json
    """
    with exit_on_errors():
        version, artifact = open_artifact(_settings(registry, model))
        described = (
            _identity(version) | {"folder": str(artifact.folder)} | _origin(artifact) | _manifest(artifact)
        )
    if as_json:
        _print_json(described)
    else:
        _print_lines(described)


@app.command()
def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="A complete artifact.")
    ],
    name: Annotated[str, typer.Option(help="Name of the model: a-z, 0-9, '.', '_' and '-'.")],
    version: Annotated[int | None, typer.Option(min=1, help="Version number. Default: the next one.")] = None,
    *,
    registry: RegistryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Prove an artifact and copy it into the registry as a new, immutable version.

    Examples:
        bisenet models publish runs/city/artifact --name city
        bisenet models publish runs/city/artifact --name city --version 7 --registry s3://bucket/models
    """
    with exit_on_errors():
        artifact = read_artifact(folder)
        artifact.verify()
        weights = _prove_weights(artifact)
        published = open_registry(_settings(registry)).publish(folder, name, version)
    if as_json:
        _print_json(_identity(published) | {"weights": weights})
    else:
        typer.echo(f"published {published} (weights: {weights})")


@app.command()
def verify(model: Reference = None, *, registry: RegistryUrl = None, as_json: AsJson = False) -> None:
    """Check a published model again: every byte, every weight, and its golden sample.

    Examples:
        bisenet models verify
        bisenet models verify city@3 --registry s3://bucket/models
    """
    with exit_on_errors():
        version, artifact = open_artifact(_settings(registry, model))
        prove_graph(artifact)
        weights = _prove_weights(artifact)
    report = _identity(version) | {"files": "intact", "graph": "proven", "weights": weights}
    if as_json:
        _print_json(report)
    else:
        typer.echo(f"{version}: files intact, graph proven, weights {weights}")


@app.command()
def promote(
    model: Version,
    alias: AliasName = DEFAULT_ALIAS,
    *,
    require_miou: Annotated[
        list[str] | None,
        typer.Option(
            metavar="dataset=D,protocol=P,min=0..1[,split=S][,precision=X][,skipped=N]",
            help="Refuse unless the newest such evaluation job has at least this mIoU and left out at most N "
            "(default 0) broken pictures; repeatable.",
        ),
    ] = None,
    registry: RegistryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version. NAME alone means its alias production, or else its highest version.

    This changes the registry alone. A running service serves the version after the same PUT on its admin
    port, or when it starts next.

    Examples:
        bisenet models promote city@3
        bisenet models promote city@4 --alias canary
        bisenet models promote city@4 --require-miou dataset=city,protocol=ss,min=0.7
        bisenet models promote city@4 --require-miou dataset=city,protocol=ss,min=0.69,precision=int8
    """
    requirements = [_requirement(text) for text in require_miou or ()]
    with exit_on_errors():
        version = ModelVersion.parse(model)
        opened = open_registry(_settings(registry))
        for requirement in requirements:
            requirement.check(version, opened.evaluations.of_model(version.name))
        moved = opened.promote(version, alias)
    _report_move(version.name, alias, moved, as_json=as_json)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")],
    alias: AliasName = DEFAULT_ALIAS,
    *,
    registry: RegistryUrl = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at the version it pointed at before; again: at the one before that.

    This changes the registry alone; see promote.

    Examples:
        bisenet models rollback city
        bisenet models rollback city --alias canary
    """
    with exit_on_errors():
        moved = open_registry(_settings(registry)).rollback(name, alias)
    _report_move(name, alias, moved, as_json=as_json)


@app.command()
def delete(model: Version, *, registry: RegistryUrl = None, as_json: AsJson = False) -> None:
    """Remove a version for good; its number is never given out again. One that an alias points at stays.

    Examples:
        bisenet models delete city@2
    """
    with exit_on_errors():
        version = ModelVersion.parse(model)
        open_registry(_settings(registry)).delete(version)
    if as_json:
        _print_json(_identity(version))
    else:
        typer.echo(f"deleted {version}")


app.command("import")(import_model)
app.command("export")(export_model)
app.command("quantize")(quantize_model)


def _requirement(text: str) -> Requirement:
    try:
        return Requirement.parse(text)
    except EvaluationError as error:
        raise typer.BadParameter(str(error), param_hint="--require-miou") from None


def _settings(registry: str | None, model: str | None = None) -> Settings:
    return local_settings({"registry": {"url": registry}, "models": {"serve": model and [model]}})


def _prove_weights(artifact: Artifact) -> str:
    """Check keys, shapes and function of the weights, which takes the torch network."""
    if find_spec("torch") is None:
        return "not checked: torch is not installed"
    import_module("model.export.export").prove_weights(artifact)
    return "proven"


def _rows(registry: ModelRegistry) -> list[dict[str, Any]]:
    rows = []
    for name in registry.models():
        aliases = registry.aliases(name)
        rows += [_row(version, aliases) for version in registry.versions(name)]
    return rows


def _row(version: ModelVersion, aliases: Mapping[str, Alias]) -> dict[str, Any]:
    pointing = sorted(name for name, alias in aliases.items() if alias.version == version.number)
    return _identity(version) | {"aliases": pointing}


def _report_move(name: str, alias: str, moved: Alias, *, as_json: bool) -> None:
    if as_json:
        identity = _identity(ModelVersion(name, moved.version))
        _print_json(identity | {"alias": alias, "previous": moved.previous})
    else:
        typer.echo(f"{name}:{alias} points at {name}@{moved.version}")
        typer.echo(
            "note: a running service serves it after PUT on its admin port, or when it starts next", err=True
        )


def _identity(version: ModelVersion) -> dict[str, Any]:
    return {"name": version.name, "version": version.number}


def _origin(artifact: Artifact) -> dict[str, Any]:
    """Return the model or file whose weights the training began with; nothing for random weights."""
    started_from = artifact.manifest.provenance.get("started_from", RANDOM_WEIGHTS)
    return {} if started_from == RANDOM_WEIGHTS else {"finetuned_from": started_from}


def _manifest(artifact: Artifact) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(artifact.manifest.to_json())
    return plain


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2))


def _print_lines(values: Mapping[str, Any]) -> None:
    width = max(map(len, values))
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        typer.echo(f"{key:<{width}}  {text}")
