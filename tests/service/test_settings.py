"""The configuration: three layers, and one line that names the key when it cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.pictures.preprocess import ImageSize
from service.assembly import engine_options
from service.core.tls import TlsFiles
from service.settings import DEFAULT_MODEL, Layer, Settings, SettingsError, load_settings


def load(
    *, toml: str | None = None, folder: Path | None = None, flags: Layer | None = None, **environment: str
) -> Settings:
    config = None
    if toml is not None:
        assert folder is not None
        config = folder / "bisenet.toml"
        config.write_text(toml)
    return load_settings(config, flags, environment)


def test_without_any_layer_the_service_is_private_and_serves_the_shipped_model() -> None:
    settings = load()
    assert settings.server.is_loopback
    assert settings.models.serve == (DEFAULT_MODEL,)
    assert not settings.auth.needs_key


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    toml = "[server]\nhttp_port = 1\ngrace_s = 8\n[limits]\nmax_side = 1\n"
    settings = load(
        toml=toml,
        folder=tmp_path,
        flags={"server": {"http_port": 3, "host": None}},
        BISENET_SERVER__HTTP_PORT="2",
        BISENET_SERVER__GRACE_S="9",
    )
    assert (settings.server.http_port, settings.server.grace_s, settings.limits.max_side) == (3, 9, 1)
    assert settings.server.host == "127.0.0.1"


def test_lists_are_separated_by_commas_in_the_environment(tmp_path: Path) -> None:
    assert load(BISENET_MODELS__SERVE="a, b@3").models.serve == ("a", "b@3")
    assert load(toml='[models]\nserve = ["a", "b@3"]', folder=tmp_path).models.serve == ("a", "b@3")


def test_the_registry_has_a_short_name_in_the_environment() -> None:
    assert load(BISENET_REGISTRY="s3://bucket/models").registry.url == "s3://bucket/models"


def test_a_home_folder_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = load(BISENET_REGISTRY="~/registry", BISENET_MODELS__CACHE_FOLDER="~/cache")
    assert settings.registry.url == str(tmp_path / "registry")
    assert settings.models.cache_folder == tmp_path / "cache"


def test_default_folders_are_where_the_desktop_keeps_such_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    settings = load()
    assert settings.registry.url == "/data/bisenet/registry"
    assert settings.models.cache_folder == tmp_path / ".cache/bisenet"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError

    for variable in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(SettingsError, match="XDG_DATA_HOME"):
        load()


def test_variables_of_others_are_left_alone() -> None:
    load(
        BISENET_DATA_ROOT="/data",
        BISENET_SERVICE_HOST="10.0.0.1",
        BISENET_PORT="tcp://10.0.0.1:80",
        BISENET_SERVER_SERVICE_HOST="10.0.0.1",  # of a service called bisenet-server
        BISENET_SERVER_PORT_80_TCP_PORT="80",
        BISENET_SERVER_HTTP_PORT="tcp://10.0.0.1:80",  # bisenet-server-http
        OTHER__A="b",
    )


def test_pages_of_other_origins_and_a_path_prefix_are_settings() -> None:
    settings = load(
        BISENET_SERVER__CORS_ORIGINS="https://app.example.org, http://localhost:3000",
        BISENET_SERVER__ROOT_PATH="/city/segmentation",
    )
    assert settings.server.cors_origins == ("https://app.example.org", "http://localhost:3000")
    assert settings.server.root_path == "/city/segmentation"
    assert load(BISENET_SERVER__CORS_ORIGINS="*").server.cors_origins == ("*",)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("CORS_ORIGINS", "app.example.org"),
        ("CORS_ORIGINS", "https://app.example.org/"),
        ("CORS_ORIGINS", "https://*.example.org"),
        ("CORS_ORIGINS", "HTTPS://APP.example.org"),
        ("ROOT_PATH", "segmentation"),
        ("ROOT_PATH", "/segmentation/"),
        ("ROOT_PATH", "/a b"),
        ("ROOT_PATH", "/v1"),
        ("ROOT_PATH", "/v1/segmentation"),
        ("ROOT_PATH", "/v2/models"),
    ],
)
def test_what_no_origin_and_no_prefix_looks_like_is_refused(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"server.{key.lower()}"):
        load(**{f"BISENET_SERVER__{key}": value})


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("BISENET_AUTH_KEYS", "BISENET_AUTH__KEYS"),
        ("BISENET_REGISTRY_URL", "BISENET_REGISTRY__URL"),
        ("BISENET_LIMITS_MAX_BODY_BYTES", "BISENET_LIMITS__MAX_BODY_BYTES"),
        ("BISENET_SERVER_TLS_CERT", "BISENET_SERVER__TLS__CERT"),
    ],
)
def test_an_underscore_too_few_is_no_setting_that_is_silently_ignored(slip: str, meant: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**{slip: "hush-hush"})
    assert str(caught.value) == f"{slip}: did you mean {meant}?"


@pytest.mark.guarantee("G24")
@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ("[server]\nhttp_prot = 1", "server.http_prot: unknown key"),
        ("[servr]\nhost = 'x'", "servr: unknown key"),
        ("server = 1", "server: "),
        ("[server]\nhttp_port = 'x'", "server.http_port"),
        ("[server]\nhttp_port = true", "server.http_port"),
        ("[server]\nhttp_port = 65536", "server.http_port"),
        ("[server]\nhttp_port = -1", "server.http_port"),
        ("[server]\nhttp_port = 1.5", "server.http_port"),
        ("[server]\ngrace_s = 0", "server.grace_s"),
        ("[server]\ngrace_s = 5", "server: lame_duck_s 5 must be less than grace_s 5"),
        ("[server]\nlame_duck_s = -1", "server.lame_duck_s"),
        ("[server]\nadmin_port = 70000", "server.admin_port"),
        ("[server]\nhost = 1", "server.host"),
        ("[server]\nallowed_hosts = [1]", "server.allowed_hosts"),
        ("[server]\nhost = '0.0.0.0'", "server.host"),
        ("[registry]\nurl = 1", "registry.url"),
        ("[models]\nserve = []", "models.serve"),
        ("[models]\nserve = ['A b']", "models.serve"),
        ("[models]\nserve = ['a@0']", "models.serve"),
        ("[models]\nengine = 'tflite'", "models.engine"),
        ("[models]\nengine = 'openvino:fast'", "models.engine"),
        ("[models]\ndevice = 'gpu'", "models.device"),
        ("[models]\nprecision = 'f64'", "models.precision"),
        ("[models]\ncache_folder = 1", "models.cache_folder"),
        ("[limits]\nmax_body_bytes = 0", "limits.max_body_bytes"),
        ("[limits]\nmax_pixels = -5", "limits.max_pixels"),
        ("[limits]\nmax_side = 'big'", "limits.max_side"),
        ("[limits]\nmax_infer_pixels = 0", "limits.max_infer_pixels"),
        ("[limits]\nmax_pixels_in_flight = 0", "limits.max_pixels_in_flight"),
        ("[limits]\nmax_waiting = 0", "limits.max_waiting"),
        ("[limits]\nmax_connections = 0", "limits.max_connections"),
        ("[limits]\nmax_body_bytes_in_flight = 0", "limits.max_body_bytes_in_flight"),
        ("[limits]\nhead_timeout_s = 0", "limits.head_timeout_s"),
        ("[limits]\nreceive_timeout_s = 0", "limits.receive_timeout_s"),
        ("[limits]\ndefault_timeout_s = inf", "limits.default_timeout_s"),
        ("[auth]\nkeys = [1]", "auth.keys"),
        ("[auth]\nkeys_file = 1", "auth.keys_file"),
        ("[auth]\nadmin_token_file = 1", "auth.admin_token_file"),
        ("[auth]\nallow_anonymous = 'perhaps'", "auth.allow_anonymous"),
        ("[auth]\npassword = 'x'", "auth.password: unknown key"),
        ("[log]\nlevel = 'loud'", "log.level"),
        ("[log]\nformat = 'xml'", "log.format"),
        ("this is no toml", "bisenet.toml"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_in_one_line_that_names_the_key(
    toml: str, key: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(toml=toml, folder=tmp_path)
    assert key in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_the_environment_is_refused_too() -> None:
    for name in ("BISENET_SERVR__HOST", "BISENET_SERVER__HOSTS"):
        with pytest.raises(SettingsError, match="unknown key"):
            load_settings(environment={name: "x"})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"none\.toml"):
        load_settings(tmp_path / "none.toml", environment={})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "", "127.0.0.1.example.org"])
def test_other_machines_are_not_let_in_without_a_key(host: str) -> None:
    with pytest.raises(SettingsError, match="allow-anonymous"):
        load(flags={"server": {"host": host}})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_this_machine_needs_no_key(host: str) -> None:
    assert load(flags={"server": {"host": host}}).server.is_loopback


@pytest.mark.parametrize("auth", [{"keys": "secret"}, {"keys_file": "/run/keys"}, {"allow_anonymous": True}])
def test_a_key_or_a_word_lets_other_machines_in(auth: dict[str, object]) -> None:
    assert not load(flags={"server": {"host": "0.0.0.0"}, "auth": auth}).server.is_loopback


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_list_of_keys_is_no_key(empty: str) -> None:
    assert not load(BISENET_AUTH__KEYS=empty).auth.needs_key
    with pytest.raises(SettingsError, match="allow-anonymous"):
        load(BISENET_AUTH__KEYS=empty, BISENET_SERVER__HOST="0.0.0.0")


def test_certificates_are_a_table_in_the_file_and_have_three_words_in_the_environment(tmp_path: Path) -> None:
    toml = '[server]\nhttp_port = 1\n[server.tls]\ncert = "a.pem"\nkey = "b.pem"\n'
    settings = load(toml=toml, folder=tmp_path, BISENET_SERVER__TLS__KEY="c.pem")
    assert settings.server.tls.files == TlsFiles(Path("a.pem"), Path("c.pem"))
    assert (settings.server.http_port, settings.server.tls.scheme) == (1, "https")
    assert load().server.tls.files is None
    assert load().server.tls.scheme == "http"


@pytest.mark.parametrize(
    ("name", "said"),
    [("CERT", "needed together"), ("KEY", "needed together"), ("CLIENT_CA", "needs cert"), ("X", "unknown")],
)
def test_half_a_certificate_is_refused(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=rf"server\.tls.*{said}"):
        load_settings(environment={f"BISENET_SERVER__TLS__{name}": "x.pem"})


@pytest.mark.parametrize("key", ["two words", "caf\u00e9", "bell\a"])
def test_a_key_that_no_header_could_carry_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match=r"auth\.keys: a key is printable ASCII") as caught:
        load(BISENET_AUTH__KEYS=f"good,{key}")
    assert key not in str(caught.value)


def test_keys_are_never_printed() -> None:
    settings = load(BISENET_AUTH__KEYS="hush-hush")
    assert "hush-hush" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        load(BISENET_AUTH__KEYS="hush-hush", BISENET_AUTH__OTHER="1")
    assert "hush-hush" not in str(caught.value)


@given(
    section=st.sampled_from(["server", "models", "limits", "auth", "log", "registry"]),
    key=st.from_regex(r"[a-z_]{1,12}", fullmatch=True),
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text())),
)
def test_any_value_gives_settings_or_one_line(section: str, key: str, value: object) -> None:
    try:
        load(flags={section: {key: value}})
    except SettingsError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_data_sets_of_a_file_start_at_its_folder(tmp_path: Path) -> None:
    config = tmp_path / "bisenet.toml"
    config.write_text('[datasets]\ncamvid = "camvid.toml"\ncity = "/data/city.toml"\n')
    settings = load_settings(config, environment={"BISENET_DATASETS__FACE": "/data/face.toml"})
    assert settings.datasets == {
        "camvid": tmp_path / "camvid.toml",
        "city": Path("/data/city.toml"),
        "face": Path("/data/face.toml"),
    }


def test_sources_and_targets_of_a_file_start_at_its_folder_unless_they_are_urls(tmp_path: Path) -> None:
    config = tmp_path / "bisenet.toml"
    config.write_text(
        '[sources]\ncamera = "pictures"\nfilms = "s3://bucket/films?region=r"\n[targets]\nmasks = "/masks"\n'
    )
    environment = {"HOME": str(tmp_path), "BISENET_TARGETS__OTHER": "~/other"}
    settings = load_settings(config, environment=environment)
    assert settings.sources == {"camera": str(tmp_path / "pictures"), "films": "s3://bucket/films?region=r"}
    assert settings.targets == {"masks": "/masks", "other": str(Path("~/other").expanduser())}


@pytest.mark.parametrize(
    ("section", "values", "key"),
    [
        ("sources", {"../camera": "/data"}, "sources.../camera"),
        ("targets", {"masks": 3}, "targets.masks"),
        ("datasets", {"../camvid": "camvid.toml"}, "datasets.../camvid"),
        ("datasets", {"camvid": 3}, "datasets.camvid"),
        ("jobs", {"mode": "sometimes"}, "jobs.mode"),
        ("jobs", {"database": "mysql://db/jobs"}, "jobs.database"),
        ("jobs", {"worker_id": "a/b"}, "jobs.worker_id"),
        ("jobs", {"worker_id": ""}, "jobs.worker_id"),
    ],
)
def test_settings_of_jobs_that_cannot_be_used_are_named(
    section: str, values: dict[str, object], key: str
) -> None:
    with pytest.raises(SettingsError) as failure:
        load_settings(flags={section: values}, environment={})
    assert str(failure.value).startswith(f"{key}")
    assert "\n" not in str(failure.value)


def test_the_password_of_the_jobs_database_is_never_printed() -> None:
    settings = load_settings(flags={"jobs": {"database": "postgresql://a:secret@db/jobs"}}, environment={})
    assert "secret" not in repr(settings)


def test_a_python_module_is_an_engine() -> None:
    assert load(flags={"models": {"engine": "fault_engine:slow:20"}}).models.engine == "fault_engine:slow:20"


def test_a_file_of_version_0_1_may_still_allow_the_fault_engine(tmp_path: Path) -> None:
    (tmp_path / "bisenet.toml").write_text("[models]\nallow_fault_engine = false\n")
    assert load_settings(tmp_path / "bisenet.toml", environment={}) == load_settings(environment={})


def test_sizes_of_pictures_are_compiled_for_padded() -> None:
    options = engine_options(load(flags={"models": {"sizes": ["500x1000", "64x96"], "device": "cuda:0"}}))
    assert (options.sizes, options.max_batch) == ((ImageSize(512, 1024), ImageSize(64, 96)), 8)


@pytest.mark.parametrize(
    ("engine", "device", "largest"),
    [("auto", "cpu", 2), ("openvino", "cpu", 2), ("torch", "cpu", 1), ("auto", "cuda:0", 8)],
)
def test_batches_are_as_large_as_the_engine_gains_by_them(engine: str, device: str, largest: int) -> None:
    options = engine_options(load(flags={"models": {"engine": engine, "device": device}}))
    assert options.max_batch == largest


@pytest.mark.parametrize("size", ["500", "0x9", "512X1024", "x"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(SettingsError, match=r"models\.sizes"):
        load(flags={"models": {"sizes": [size]}})
