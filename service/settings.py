"""The configuration: TOML file < environment < flags. No other module of the service reads the environment.

Every key of a section is also ``BISENET_<SECTION>__<KEY>`` in the environment, with two underscores:
Kubernetes puts variables with one (``BISENET_SERVICE_HOST``) into every pod beside a service of that name.
The key ``cert`` of the table ``[server.tls]`` is ``BISENET_SERVER__TLS__CERT``.
A variable with one underscore that would be a key with two is refused.
Values of lists are separated by commas. ``BISENET_REGISTRY`` is short for ``BISENET_REGISTRY__URL``.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from model.artifacts.manifest import ModelReference
from model.errors import InvalidReferenceError
from model.pictures.image import ImageLimits
from model.pictures.preprocess import DEFAULT_MAX_INFER_PIXELS
from service.core.device.engine import PrecisionChoice
from service.core.keys.access_key import is_secret
from service.core.scheduling.memory_budget import DEFAULT_MAX_PIXELS_IN_FLIGHT
from service.core.scheduling.scheduler import DEFAULT_MAX_WAITING
from service.core.tls import TlsFiles
from service.engines import ENGINES, is_plug_in
from service.grpc_api.limits import PeerLimits
from service.http_api.connection.connection_limits import ConnectionLimits
from service.http_api.segment.body import BodyLimits
from service.http_api.segment.body_budget import (
    DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT,
    DEFAULT_MAX_BODY_BYTES_IN_FLIGHT,
)
from service.telemetry import LogFormat, LogLevel

DEFAULT_MODEL = "camvid"

_PREFIX = "BISENET_"
_DELIMITER = "__"
_SHORTHANDS = {"BISENET_REGISTRY": "BISENET_REGISTRY__URL"}

_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
"""Values of the variables ``*_PORT`` of Kubernetes."""

Layer = Mapping[str, Mapping[str, Any]]
"""Values by section and key."""


class SettingsError(Exception):
    """The configuration cannot be used; the message is one line that names the key."""


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports ValueError only
    return value


def _split(value: object) -> object:
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",")] if value.strip() else []


def _engine_choice(choice: str) -> str:
    names = ("auto", *ENGINES)
    if choice not in names and not is_plug_in(choice):
        raise ValueError(f"must be {', '.join(names)} or a Python module that is installed")
    return choice


_Number = BeforeValidator(_refuse_bool)
_List = BeforeValidator(_split)
Port = Annotated[int, _Number, Field(ge=0, le=65535)]
Count = Annotated[int, _Number, Field(ge=1)]
Seconds = Annotated[float, _Number, Field(gt=0, allow_inf_nan=False)]
_Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")]
_Origin = Annotated[str, Field(pattern=r"^(\*|https?://[a-z0-9.-]+(:[0-9]+)?)$")]
Names = Annotated[tuple[str, ...], _List]
DatasetName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
_StoreUrl = Annotated[str, AfterValidator(os.path.expanduser)]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class TlsSettings(_Section):
    """``[server.tls]``: certificates of the HTTP, gRPC and admin ports; none = connections are not encrypted.

    Attributes:
        cert: PEM file of the service's certificate, followed by those of its issuers.
        key: PEM file of its private key.
        client_ca: PEM file of certificates. Clients must show one of them, or one that they issued; none =
            every client may connect.
    """

    cert: UserPath | None = None
    key: UserPath | None = None
    client_ca: UserPath | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key are needed together")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca needs cert and key")
        return self

    @property
    def files(self) -> TlsFiles | None:
        """The files, or None where connections are not encrypted."""
        if self.cert is None or self.key is None:
            return None
        return TlsFiles(self.cert, self.key, self.client_ca)

    @property
    def scheme(self) -> Literal["http", "https"]:
        """How the URLs of the service begin."""
        return "http" if self.cert is None else "https"


class ServerSettings(_Section):
    """``[server]``: addresses and times of the frontends.

    Attributes:
        host: name or address; an address beyond loopback needs ``auth.keys``, ``auth.keys_file`` or
            ``auth.allow_anonymous``.
        http_port: 0 = any free port.
        grpc_port: 0 = any free port.
        admin_host: address of the admin frontend; all requests there need a token, except the page's files.
        admin_port: 0 = any free port.
        allowed_hosts: accepted values of ``Host`` besides the service's own names; beyond loopback none means
            any. An admin frontend beyond loopback accepts any: it always asks for a token, and scrapers call
            it by its address.
        cors_origins: origins whose pages may use the HTTP port from a browser, such as
            ``https://app.example.org``; ``*`` = any, none = no page of another origin.
        root_path: path prefix under which a proxy offers the HTTP port, such as ``/segmentation``; the proxy
            may remove it or leave it on.
        page: serve the pages for people at ``/`` of the HTTP port and of the admin port; auto = on loopback
            only.
        grace_s: time in which requests may finish after SIGTERM, in seconds, ``lame_duck_s`` included.
        lame_duck_s: time after SIGTERM in which new requests are still answered, in seconds.
        tls: certificates of all ports.
    """

    host: str = "127.0.0.1"
    http_port: Port = 8000
    grpc_port: Port = 8001
    admin_host: str = "127.0.0.1"
    admin_port: Port = 8002
    allowed_hosts: Names = ()
    cors_origins: Annotated[tuple[_Origin, ...], _List] = ()
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    page: Literal["auto", "on", "off"] = "auto"
    grace_s: Count = 25
    lame_duck_s: Annotated[float, _Number, Field(ge=0, allow_inf_nan=False)] = 5.0
    tls: TlsSettings = TlsSettings()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @field_validator("root_path")
    @classmethod
    def _is_no_path_of_ours(cls, root_path: str) -> str:
        for prefix in ("/v1", "/v2", "/hf", "/models", "/page"):
            if root_path == prefix or root_path.startswith(f"{prefix}/"):
                raise ValueError(f"{prefix} begins the paths of the service itself")
        return root_path

    @model_validator(mode="after")
    def _has_time_to_finish(self) -> Self:
        if self.lame_duck_s >= self.grace_s:
            raise ValueError(f"lame_duck_s {self.lame_duck_s:g} must be less than grace_s {self.grace_s}")
        return self


class RegistrySettings(_Section):
    """``[registry]``: location of the published models. The shipped model is always available.

    Attributes:
        url: a folder, ``file://``, ``s3://``, ``gs://`` or ``az://``; ``s3://bucket/prefix?endpoint=URL`` for
            another store that speaks S3.
        follow_s: interval at which the aliases of the served models are read, in seconds; another replica or
            a command may have moved them.
    """

    url: Annotated[str, AfterValidator(os.path.expanduser)] = Field(
        default_factory=lambda: str(_data_folder() / "registry")
    )
    follow_s: Seconds = 2.0


class ModelsSettings(_Section):
    """``[models]``: the served models and their engines.

    Attributes:
        serve: model references; the first is the default model.
        engine: ``auto`` = the fastest engine of this machine. A Python module is a plug-in: ``MODULE`` or
            ``MODULE:ARGUMENTS``, see ``service.engines``.
        device: ``auto`` = the device that the engine prefers.
        precision: ``auto`` times the precisions of a model on this processor at its first start and takes the
            fastest that reproduces the golden sample; a model that is named without a number competes with
            its int8 version. Replicas that must give equal answers need another value than ``auto``.
        sizes: ``HEIGHTxWIDTH`` of pictures for which a GPU's engines are compiled at the start; other sizes
            run as well.
        threads: of the network on a CPU; none = timed with precision ``auto``, else all cores.
        streams: pictures of a batch that run side by side on a CPU, 1 or 2; none = timed with precision
            ``auto``, else 2.
        cache_folder: for compiled graphs.
    """

    serve: Names = (DEFAULT_MODEL,)
    engine: Annotated[str, AfterValidator(_engine_choice)] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda:[0-9]+)$")] = "auto"
    precision: PrecisionChoice = "auto"
    sizes: Annotated[tuple[_Size, ...], _List] = ()
    threads: Count | None = None
    streams: Annotated[int, _Number, Field(ge=1, le=2)] | None = None
    cache_folder: UserPath = Field(default_factory=lambda: _user_folder("XDG_CACHE_HOME", ".cache"))

    @field_validator("serve")
    @classmethod
    def _are_references(cls, serve: tuple[str, ...]) -> tuple[str, ...]:
        if not serve:
            raise ValueError("names no model")
        try:
            for reference in serve:
                ModelReference.parse(reference)
        except InvalidReferenceError as error:
            raise ValueError(str(error)) from None
        return serve

    @model_validator(mode="before")
    @classmethod
    def _without_retired_keys(cls, values: dict[str, object]) -> dict[str, object]:
        """Accept configuration files of version 0.1, which had a permission for the engine of tests."""
        return {key: value for key, value in values.items() if key != "allow_fault_engine"}


class LimitsSettings(_Section):
    """``[limits]``: limits of one request and of all requests together; times in seconds.

    Attributes:
        max_body_bytes: of one request.
        max_body_bytes_in_flight: of all HTTP requests that arrive or wait; unanswered pictures of gRPC have
            another budget of this size.
        max_answer_bytes_in_flight: of all unsent answers larger than 256 KiB.
        max_connections: to each HTTP port; fewer if the process may not open so many files. At the limit, a
            new connection replaces one that has been idle for 10 s.
        max_streams: gRPC calls at the same time on one connection.
        max_calls: gRPC calls at the same time on all connections, without those to health and reflection. As
            many WebSockets of the page may be open beside them.
        max_pixels: largest declared size of a picture, in pixels.
        max_side: longest declared side of a picture, in pixels.
        max_infer_pixels: larger pictures are reduced before the network.
        max_pixels_in_flight: decoded pixels in memory at the same time, 7 bytes each.
        max_waiting: requests in the queue; an eighth more are reserved for clients without a waiting request.
            With several clients each may have a quarter, or its fair share if that is more. A client is an
            API key or, without keys, an address.
        head_timeout_s: for the head of a request.
        idle_timeout_s: between two requests of a connection; must be longer than a proxy in front keeps its
            connections, or requests get lost between the two.
        receive_timeout_s: from the head of a request to its last byte.
        default_timeout_s: time-out of a request that names none.
    """

    max_body_bytes: Count = BodyLimits.max_bytes
    max_body_bytes_in_flight: Count = DEFAULT_MAX_BODY_BYTES_IN_FLIGHT
    max_answer_bytes_in_flight: Count = DEFAULT_MAX_ANSWER_BYTES_IN_FLIGHT
    max_connections: Count = ConnectionLimits.max_connections
    max_streams: Count = PeerLimits.max_streams
    max_calls: Count = PeerLimits.max_calls
    max_pixels: Count = ImageLimits.max_pixels
    max_side: Count = ImageLimits.max_side
    max_infer_pixels: Count = DEFAULT_MAX_INFER_PIXELS
    max_pixels_in_flight: Count = DEFAULT_MAX_PIXELS_IN_FLIGHT
    max_waiting: Count = DEFAULT_MAX_WAITING
    head_timeout_s: Seconds = ConnectionLimits.head_timeout_s
    idle_timeout_s: Seconds = ConnectionLimits.idle_timeout_s
    receive_timeout_s: Seconds = BodyLimits.receive_timeout_s
    default_timeout_s: Seconds = 30.0


class AuthSettings(_Section):
    """``[auth]``: keys and tokens.

    Attributes:
        keys: API keys; a client sends one as ``Authorization: Bearer KEY``.
        keys_file: file with further keys, one on each line: named keys with scopes, limits and expiry, as
            ``bisenet keys create`` writes them, or bare keys. The service reads a changed file again.
        allow_anonymous: listen beyond loopback without keys.
        admin_token_file: file with the token of the admin frontend; made at the first start.
        scrape_token_file: file with the token that opens only ``/metrics``; made at the first start.
    """

    keys: Annotated[tuple[SecretStr, ...], _List] = ()
    keys_file: UserPath | None = None
    allow_anonymous: bool = False
    admin_token_file: UserPath = Field(default_factory=lambda: _data_folder() / "admin-token")
    scrape_token_file: UserPath = Field(default_factory=lambda: _data_folder() / "scrape-token")

    @field_validator("keys")
    @classmethod
    def _are_secrets(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(is_secret(key.get_secret_value()) for key in keys):
            raise ValueError("a key is printable ASCII without spaces, and not empty")
        return keys

    @property
    def needs_key(self) -> bool:
        """Whether requests for inference need a key."""
        return bool(self.keys) or self.keys_file is not None


class JobsSettings(_Section):
    """``[jobs]``: evaluation jobs and bulk predictions.

    Attributes:
        mode: ``embedded`` runs jobs in the service, ``external`` leaves them to ``bisenet worker``, ``off``
            has no jobs.
        database: ``postgresql://...``, which several workers may share; none = a file in ``state_folder``.
        state_folder: used by one service or worker at a time.
        worker_id: unique name of this worker, the same after a restart; none = host name and device.
    """

    mode: Literal["embedded", "external", "off"] = "embedded"
    database: SecretStr | None = None
    state_folder: UserPath = Field(default_factory=lambda: _data_folder() / "state")
    worker_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")] | None = None

    @field_validator("database")
    @classmethod
    def _is_postgres(cls, database: SecretStr | None) -> SecretStr | None:
        if database is not None and not database.get_secret_value().startswith("postgresql://"):
            raise ValueError("is no postgresql:// URL")
        return database


class LogSettings(_Section):
    """``[log]``: the log lines on stderr, and the audit log.

    Attributes:
        level: lowest level that is written.
        format: ``auto`` = ``console`` on a terminal, else ``json``.
        audit_file: actions of the admin port, two JSON lines each; none = lines of the ordinary log.
    """

    level: LogLevel = "info"
    format: LogFormat = "auto"
    audit_file: UserPath | None = None


class TracingSettings(_Section):
    """``[tracing]``: OpenTelemetry traces; they need the extra ``tracing``.

    Attributes:
        endpoint: base URL of a receiver of OTLP over HTTP, such as ``http://127.0.0.1:4318``; none = no
            traces.
        sampling: share of the requests that are traced, 0..1; a caller that sends ``traceparent`` decides for
            its own. A proxy in front of strangers removes that header.
        service_name: name under which the receiver shows this service.
    """

    endpoint: Annotated[str, Field(pattern=r"^https?://[^/?#]+[^?#]*$")] | None = None
    sampling: Annotated[float, _Number, Field(ge=0, le=1)] = 0.01
    service_name: Annotated[str, Field(min_length=1)] = "bisenet"


class Settings(_Section):
    """The whole configuration, checked.

    Attributes:
        datasets: name -> data-set file; jobs can use only these. Relative paths start at the folder of the
            configuration file.
        sources: name -> folder or bucket with pictures for bulk predictions; URLs like that of the registry,
            relative paths as of data sets.
        targets: name -> folder or bucket for the masks of bulk predictions. No file there is replaced.
    """

    server: ServerSettings = ServerSettings()
    registry: RegistrySettings = Field(default_factory=RegistrySettings)
    models: ModelsSettings = Field(default_factory=ModelsSettings)
    limits: LimitsSettings = LimitsSettings()
    auth: AuthSettings = Field(default_factory=AuthSettings)
    jobs: JobsSettings = Field(default_factory=JobsSettings)
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    datasets: dict[DatasetName, UserPath] = Field(default_factory=dict)
    sources: dict[DatasetName, _StoreUrl] = Field(default_factory=dict)
    targets: dict[DatasetName, _StoreUrl] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_not_open_to_everybody(self) -> Self:
        if not (self.server.is_loopback or self.auth.needs_key or self.auth.allow_anonymous):
            raise ValueError(
                f"server.host: {self.server.host!r} is open to other machines: set auth.keys or "
                "auth.keys_file, or say --allow-anonymous"
            )
        return self


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_settings(
    config: Path | None = None,
    flags: Layer | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Merge the three layers and check the result.

    Args:
        config: a TOML file; None = no file.
        flags: values of the command line; None = not given.
        environment: None = that of the process.

    Raises:
        SettingsError: a key is unknown, a value is wrong, or the file cannot be read.
    """
    file_layer = {} if config is None else _read_toml(config)
    environment_layer = _environment_layer(os.environ if environment is None else environment)
    try:
        return Settings.model_validate(_merged(file_layer, environment_layer, flags or {}))
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(dict(e)) for e in error.errors())) from None


def _read_toml(path: Path) -> Layer:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from None
    except ValueError as error:  # neither UTF-8 nor TOML
        raise SettingsError(f"--config {path}: {error}") from None
    for section, values in content.items():
        if not isinstance(values, dict):
            raise SettingsError(f"{section}: is no section")
    for section in ("datasets", "sources", "targets"):
        for name, place in content.get(section, {}).items():
            if isinstance(place, str) and "://" not in place:
                content[section][name] = str(path.parent / Path(place).expanduser())
    return content


def _environment_layer(environment: Mapping[str, str]) -> Layer:
    layer: dict[str, dict[str, Any]] = {}
    for name, value in environment.items():
        if name in _slips() and not _ADDRESS.match(value):
            raise SettingsError(f"{name}: did you mean {_slips()[name]}?")
        section, delimiter, key = (
            _SHORTHANDS.get(name, name).removeprefix(_PREFIX).lower().partition(_DELIMITER)
        )
        if name.startswith(_PREFIX) and delimiter:
            table, nested, inner = key.partition(_DELIMITER)
            if nested:
                layer.setdefault(section, {}).setdefault(table, {})[inner] = value
            else:
                layer.setdefault(section, {})[key] = value
    return layer


@cache
def _slips() -> Mapping[str, str]:
    """Return the name of each key with one underscore -> its right name."""
    paths = [path for path in _key_paths(Settings) if len(path) > 1]
    return {
        f"{_PREFIX}{'_'.join(path)}".upper(): f"{_PREFIX}{_DELIMITER.join(path)}".upper() for path in paths
    }


def _key_paths(kind: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """Yield the path of each key, and of each table, of a model and its tables."""
    for name, field in kind.model_fields.items():
        yield (name,)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from ((name, *path) for path in _key_paths(field.annotation))


def _merged(*layers: Layer) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, values in layer.items():
            said = {key: value for key, value in values.items() if value is not None}
            known = merged.setdefault(section, {})
            for key, value in said.items():
                is_table = isinstance(value, dict) and isinstance(known.get(key), dict)
                known[key] = known[key] | value if is_table else value
    return merged


def _explain(error: Mapping[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def _data_folder() -> Path:
    return _user_folder("XDG_DATA_HOME", ".local/share")


def _user_folder(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable, "")
    if base.startswith("/"):
        return Path(base, "bisenet")
    try:
        return Path.home() / fallback / "bisenet"
    except RuntimeError:
        raise SettingsError(f"HOME is not set: set {variable}, or each file and folder") from None
