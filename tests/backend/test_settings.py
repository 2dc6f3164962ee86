from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.errors import SettingsError
from backend.settings import Settings, load_settings, plain, without_secrets
from semsam_model.config import config_root

CANARY = "canary-7f3a9c"


@pytest.fixture
def empty_file(tmp_path: Path) -> Path:
    path = tmp_path / "backend.yaml"
    path.write_text("")
    return path


def test_an_empty_file_and_environment_give_the_defaults(empty_file: Path) -> None:
    assert load_settings(empty_file, {}) == Settings()


def test_the_shipped_file_names_every_setting_with_its_default() -> None:
    shipped = config_root() / "backend.yaml"
    assert load_settings(shipped, {}) == Settings()
    assert list(yaml.safe_load(shipped.read_text())) == [field.name for field in dataclasses.fields(Settings)]


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "backend.yaml"
    path.write_text("port: 1111\nthreads: 3\n")
    found = load_settings(path, {"SEMSAM_PORT": "2222"})
    assert (found.port, found.threads, found.host) == (2222, 3, Settings().host)


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text("port: 1111\n")
    assert load_settings(None, {"SEMSAM_CONFIG": str(path)}).port == 1111


def test_an_empty_variable_counts_as_not_set(empty_file: Path) -> None:
    assert load_settings(empty_file, {"SEMSAM_PORT": "", "LABEL_STUDIO_API_KEY": ""}) == Settings()


def test_the_names_that_label_studio_backends_use_are_read_and_give_way_to_our_own(empty_file: Path) -> None:
    environment = {"LABEL_STUDIO_HOST": "http://one", "LABEL_STUDIO_API_KEY": "k"}
    assert load_settings(empty_file, environment).label_studio_url == "http://one"
    assert plain(load_settings(empty_file, environment).label_studio_api_key) == "k"
    environment["LABEL_STUDIO_URL"] = "http://two"
    assert load_settings(empty_file, environment).label_studio_url == "http://two"
    environment["SEMSAM_LABEL_STUDIO_URL"] = "http://three"
    assert load_settings(empty_file, environment).label_studio_url == "http://three"


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 65535), st.floats(0.01, 3600), st.text(min_size=1).filter(str.strip))
def test_any_value_comes_back_from_the_environment_as_it_went_in(port: int, seconds: float, password: str) -> None:
    environment = {
        "SEMSAM_PORT": str(port),
        "SEMSAM_IMAGE_READ_TIMEOUT": format(seconds, "f"),
        "SEMSAM_BASIC_AUTH_USER": "12",
        "SEMSAM_BASIC_AUTH_PASS": password,
    }
    found = load_settings(None, environment)
    assert found.port == port
    assert found.image_read_timeout == pytest.approx(seconds, abs=1e-6)
    assert (found.basic_auth_user, plain(found.basic_auth_pass)) == ("12", password)


def test_lists_may_be_separated_by_commas_and_mappings_written_as_yaml(empty_file: Path) -> None:
    found = load_settings(
        empty_file,
        {
            "SEMSAM_ALLOWED_ORIGINS": "https://a.example, http://b:81/",
            "SEMSAM_OBJECT_STORES": "s3://photos/in/, gs://more",
            "SEMSAM_LABEL_STUDIO_KEYS": "{http://ls2:8080/: key}",
        },
    )
    assert found.allowed_origins == ("https://a.example", "http://b:81")
    assert found.object_stores == ("s3://photos/in/", "gs://more")
    assert found.label_studio_tokens() == {"http://localhost:8080": None, "http://ls2:8080": "key"}


@pytest.mark.parametrize(
    "address", ["s3://photos/in", "gs://b", "azure-blob://c/d", "file:///mnt/photos of corrections"]
)
def test_a_folder_for_photos_may_end_in_a_slash(empty_file: Path, address: str) -> None:
    for text in (address, f"{address}/"):
        assert load_settings(empty_file, {"SEMSAM_PHOTO_STORE": text}).photo_store == address


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot: 9090", "prot"),
        ("port: '9090'", "port"),
        ("port: true", "port"),
        ("port: 70000", "port"),
        ("threads: 0", "threads"),
        ("allowed_origins: [https://a.example/path]", "allowed_origins"),
        ("allowed_origins: https://a.example", "allowed_origins"),
        ("object_stores: [s3://key:secret@photos/]", "object_stores"),
        ("object_stores: [s3://photos/../others/]", "object_stores"),
        ("object_stores: [https://photos.example/]", "object_stores"),
        ("photo_store: https://photos.example/", "photo_store"),
        ("photo_store: s3://key:secret@photos/", "photo_store"),
        ("photo_store: s3://photos/../others", "photo_store"),
        ("photo_store: s3://photos/a?X-Signature=b", "photo_store"),
        ("photo_store: file:///", "photo_store"),
        ("photo_store: file:///photos/../others", "photo_store"),
        ("photo_store: file://server/photos", "photo_store: .* or file:///folder"),
        ("label_studio_url: label-studio:8080", "label_studio_url"),
        ("label_studio_url: http://user:pw@ls:8080", "label_studio_url"),
        ("dtype: int8", "dtype"),
        ("device: gpu", "device"),
        ("basic_auth_user: someone", "basic_auth_pass"),
        ("- port", "key: value"),
        ("port: [", "YAML"),
    ],
)
def test_a_wrong_file_stops_the_start_and_names_the_setting(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "backend.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=named):
        load_settings(path, {})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SEMSAM_PROT", "1"),
        ("SEMSAM_PORT", "http://10.0.0.1:80"),
        ("SEMSAM_SERVICE", "1"),
        ("SEMSAM_PORT_X", "1"),
        ("SEMSAM_LABEL_STUDIO_KEYS", "one"),
        ("SEMSAM_THREADS", "["),
    ],
)
def test_a_wrong_variable_stops_the_start_and_is_named(empty_file: Path, variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        load_settings(empty_file, {variable: value})


@pytest.mark.parametrize("variable", ["SEMSAM_PHOTO_STORE", "SEMSAM_OBJECT_STORES", "SEMSAM_LABEL_STUDIO_URL"])
@pytest.mark.parametrize(
    "address", ["s3://key:canary/@photos/in", "http://canary@photos", "gs://b/in?X-Signature=canary"]
)
def test_an_address_with_a_secret_in_it_is_refused_and_the_secret_not_told(
    empty_file: Path, variable: str, address: str
) -> None:
    with pytest.raises(SettingsError, match=variable) as caught:
        load_settings(empty_file, {variable: address})
    assert "canary" not in str(caught.value) and "://" in str(caught.value)


def test_every_wrong_value_is_told_with_the_place_that_set_it(empty_file: Path) -> None:
    empty_file.write_text("port: 70000\nthreads: '8'\n")
    with pytest.raises(SettingsError) as caught:
        load_settings(empty_file, {"SEMSAM_ALLOWED_ORIGINS": "https://a.example/path"})
    assert str(caught.value).split("; ") == [
        f"{empty_file}: port: expected at most 65535, got 70000",
        f"{empty_file}: threads: expected an integer, got '8'",
        "SEMSAM_ALLOWED_ORIGINS[0]: expected scheme://host[:port] without a path, got 'https://a.example/path'",
    ]


def test_an_unknown_name_is_answered_with_the_nearest_one(empty_file: Path) -> None:
    with pytest.raises(
        SettingsError, match=r"SEMSAM_PROT: no such setting \(PORT\?\); expected SEMSAM_ and one of HOST,"
    ):
        load_settings(empty_file, {"SEMSAM_PROT": "1"})
    empty_file.write_text("prot: 9090")
    with pytest.raises(SettingsError, match=r"unknown key 'prot' \(port\?\); expected one of host,"):
        load_settings(empty_file, {})


KUBERNETES = {
    "SEMSAM_PORT": "tcp://10.0.0.1:80",
    "SEMSAM_PORT_80_TCP": "tcp://10.0.0.1:80",
    "SEMSAM_PORT_80_TCP_PROTO": "tcp",
    "SEMSAM_PORT_80_TCP_PORT": "80",
    "SEMSAM_PORT_80_TCP_ADDR": "10.0.0.1",
    "SEMSAM_SERVICE_HOST": "10.0.0.1",
    "SEMSAM_SERVICE_PORT": "80",
    "SEMSAM_SERVICE_PORT_HTTP": "80",
}


def test_variables_that_kubernetes_makes_are_ignored_with_a_warning_each(
    empty_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_settings(empty_file, KUBERNETES | {"SEMSAM_THREADS": "3"}) == Settings(threads=3)
    assert {name for name in KUBERNETES if f"environment {name}:" in caplog.text} == set(KUBERNETES)


def test_a_missing_file_stops_the_start_and_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.yaml"):
        load_settings(tmp_path / "absent.yaml", {})


def test_secrets_are_masked_when_printed(empty_file: Path) -> None:
    found = load_settings(
        empty_file,
        {
            "SEMSAM_LABEL_STUDIO_API_KEY": CANARY,
            "SEMSAM_LABEL_STUDIO_KEYS": f"{{http://ls2: {CANARY}}}",
            "SEMSAM_BASIC_AUTH_USER": "someone",
            "SEMSAM_BASIC_AUTH_PASS": CANARY,
            "SEMSAM_WEBHOOK_SECRET": CANARY,
            "SEMSAM_DATABASE_URL": f"postgresql://user:{CANARY}@host/name",
        },
    )
    assert plain(found.webhook_secret) == CANARY
    for text in (repr(found), str(found), f"{found}"):
        assert CANARY not in text
        assert "http://ls2" in text
    kept = without_secrets(found)
    assert kept.basic_auth_user is kept.database_url is kept.label_studio_api_key is kept.webhook_secret is None
    assert kept.label_studio_keys == {} and CANARY.encode() not in pickle.dumps(kept)


@pytest.mark.parametrize(
    "name", ["label_studio_api_key", "label_studio_keys", "basic_auth_pass", "webhook_secret", "database_url"]
)
def test_a_wrong_secret_is_named_and_not_shown(tmp_path: Path, name: str) -> None:
    path = tmp_path / "backend.yaml"
    path.write_text(f"{name}: [{CANARY}]\n")
    with pytest.raises(SettingsError, match=name) as caught:
        load_settings(path, {})
    assert CANARY not in str(caught.value)
    assert caught.value.__suppress_context__


def test_settings_cannot_be_changed_after_the_start() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]
