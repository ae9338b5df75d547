"""Settings: the defaults, a file over them, the environment over both, and one clear line for what is wrong."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest
from attrs import evolve

import flowdsl
from flowdsl.service.given import Given, options_of, variable
from flowdsl.service.settings import BadSettings, Settings, load, shown

EXAMPLE = """
[server]
host = "0.0.0.0"
port = 8084
timeout_seconds = 30

[temporal]
server_url = "http://localhost:7233"
namespace = "default"
task_queue = "workflow-service-queue"
worker_identity = "workflow-service-worker"
max_concurrent_activities = 100
max_concurrent_workflows = 50

[services]
auth_service = "http://localhost:8081"
user_service = "http://localhost:8082"
tenant_service = "http://localhost:8085"
file_service = "http://localhost:8083"
api_gateway = "http://localhost:8080"

[workflows]
default_timeout = "300s"
batch_size = 100

[workflows.retry_policy]
initial_interval = "1s"
backoff_coefficient = 2.0
maximum_interval = "60s"
maximum_attempts = 3
"""


@pytest.fixture(autouse=True)
def nobody_has_set_anything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "some.toml"
    file.write_text(text)
    return file


@pytest.mark.shows("S1.35-38")
def test_a_whole_file_says_what_the_defaults_say_but_for_the_host(tmp_path: Path) -> None:
    settings = load(written(tmp_path, EXAMPLE))
    assert settings.server.host == "0.0.0.0" and Settings().server.host == "127.0.0.1"  # others reach it only when somebody says so
    assert (settings.server.port, settings.temporal, settings.services, settings.workflows) == (
        Settings().server.port,
        Settings().temporal,
        Settings().services,
        Settings().workflows,
    )


def test_the_environment_is_over_the_file_and_the_file_over_the_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, '[server]\nport = 1\nbody_bytes = 2\n[workflows.retry_policy]\nmaximum_interval = "2m"')
    monkeypatch.setenv("FLOWDSL_SERVER_PORT", "3")
    settings = load(file)
    assert (settings.server.port, settings.server.body_bytes, settings.server.page) == (3, 2, 100)
    assert settings.workflows.retry_policy.maximum_interval == timedelta(minutes=2)


def test_a_file_of_this_name_is_found_here(tmp_path: Path) -> None:
    assert load() == Settings()
    (tmp_path / "flowdsl.toml").write_text('[server]\nport = 5\n[database]\nurl = "postgresql:///x"')
    assert (load().server.port, load().database.url) == (5, "postgresql:///x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[server]\nport = "abc"', "some.toml: server.port must be a whole number, and is 'abc'"),
        ("[server]\nport = 1.5", "server.port must be a whole number, and is 1.5"),
        ("[server]\nport = true", "server.port must be a whole number, and is True"),
        ("[server]\nport = 70000", "server.port must be 0 to 65535, and is 70000"),
        ("[server]\nprot = 1", "some.toml: server.prot is no setting (did you mean server.port?)"),
        ("[serv", "some.toml: Expected ']'"),
        ("[server]\nhost = 1", "server.host must be text in quotes, and is 1"),
        ('[server]\nhost = ""', "server.host must not be empty"),
        ("[other]\nx = 1", "other.x is no setting"),
        ('[services]\nauth_service = "localhost"', "services.auth_service must be an address like"),
        ('[workflows]\ndefault_timeout = "30 parsecs"', 'workflows.default_timeout must be a time like "300s"'),
        ('[workflows.retry_policy]\ninitial_interval = "0s"', "workflows.retry_policy.initial_interval must be longer than no time"),
        ("[server]\ntimeout_seconds = nan", "server.timeout_seconds must be a number"),
    ],
)
def test_what_is_wrong_is_one_clear_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadSettings) as caught:
        load(written(tmp_path, text))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_two_that_are_wrong_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"server.port must .*; .*server.page must "):
        load(written(tmp_path, '[server]\nport = "a"\npage = "b"'))


def test_the_environment_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWDSL_WORKFLOWS_BATCH_SIZE", "many")
    with pytest.raises(BadSettings, match=r"FLOWDSL_WORKFLOWS_BATCH_SIZE in the environment: workflows.batch_size must be a whole number"):
        load()


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="there is no such file"):
        load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("FLOWDSL_SERVER_PROT", "FLOWDSL_SERVER_PROT in the environment is no setting (did you mean FLOWDSL_SERVER_PORT?)"),
        ("FLOWDSL_SERVR_PORT", "FLOWDSL_SERVR_PORT in the environment is no setting (did you mean FLOWDSL_SERVER_PORT?)"),
        ("FLOWDSL_WORKFLOWS_RETRY_POLICY_MAX", "FLOWDSL_WORKFLOWS_RETRY_POLICY_MAX in the environment is no setting"),
    ],
)
def test_a_variable_that_sets_nothing_is_told(monkeypatch: pytest.MonkeyPatch, variable: str, says: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(BadSettings) as caught:
        load()
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("variable", ["FLOWDSL_STATE_DIR", "FLOWDSL_UNSAFE", "FLOWDSL_TEST_DATABASE_URL", "FLOWDSL_SOMETHING_ELSE", "FLOWDSLX_PORT"])
def test_variables_that_are_no_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    assert load() == Settings()


def test_every_variable_that_we_read_is_known() -> None:
    """Found in our code: one that begins like a section of the settings, and is none, would be refused as a mistake."""
    code = "".join(file.read_text(encoding="utf-8") for file in Path(flowdsl.__file__).parent.rglob("*.py"))
    ours = set(re.findall(r"[\"']((?:FLOWDSL)_[A-Z_]*[A-Z])[\"']", code))
    assert ours >= {"FLOWDSL_DATABASE_URL", "FLOWDSL_ENCRYPTION_KEYS"}
    assert list(Given.of(Settings, None, dict.fromkeys(ours, "1")).unknown()) == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("server = 5", "server is a section, and is 5: write [server]"),
        ("[workflows]\nretry_policy = 3", "workflows.retry_policy is a section, and is 3"),
        ("[server.port]\nx = 1", "server.port must be a whole number, and is {'x': 1}"),
        ("[servr]\nport = 1", "servr.port is no setting (did you mean server.port?)"),
        ('[server]\nrequire_row_level_security = "yes"', "server.require_row_level_security must be true or false, and is 'yes'"),
    ],
)
def test_what_is_in_the_wrong_place_is_told(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(BadSettings) as caught:
        load(written(tmp_path, text))
    assert f"some.toml: {says}" in str(caught.value)


def test_every_setting_says_who_set_it_wrongly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated: each setting, set to what cannot be, by the file and by the environment."""
    for name, option in options_of(Settings):
        section, _, own = name.rpartition(".")
        form = getattr(option.attribute.type, "__name__", option.attribute.type)
        if form == "str" and option.attribute.validator is None:
            continue  # any text will do
        bad = '""' if form == "str" else '"-"'
        with pytest.raises(BadSettings) as caught:
            load(written(tmp_path, f"[{section}]\n{own} = {bad}"))
        said = str(caught.value)
        assert said.startswith(f"{tmp_path / 'some.toml'}: {name} must ") and "; " not in said, said
        monkeypatch.setenv(variable(name), "" if bad == '""' else "-")
        with pytest.raises(BadSettings) as caught:
            load()
        assert str(caught.value).startswith(f"{variable(name)} in the environment: {name} must "), str(caught.value)
        monkeypatch.delenv(variable(name))


def test_what_is_in_force_is_shown_with_who_set_it_and_gives_the_same_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, '[server]\nport = 5\n[workflows]\ndefault_timeout = "90m"\n[database]\nurl = "postgresql://ada:hush@db/flows"')
    monkeypatch.setenv("FLOWDSL_SERVER_PAGE", "7")
    settings = load(file)
    text = shown(settings, file, said={"server.host": "--host"})
    assert "hush" not in text and 'url = "postgresql://ada:…@db/flows"' in text
    assert f"port = 5  # {file}" in text and "page = 7  # FLOWDSL_SERVER_PAGE in the environment" in text
    assert 'host = "127.0.0.1"  # --host' in text and 'namespace = "default"  # default' in text
    monkeypatch.delenv("FLOWDSL_SERVER_PAGE")
    again = load(written(tmp_path, text))
    assert evolve(again, database=settings.database) == settings
