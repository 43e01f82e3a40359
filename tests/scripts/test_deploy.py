"""The Dockerfile, the compose file and its mounts, checked without a container engine.

The rules are those that are easily broken unnoticed; hadolint checks the others.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest

from csm_tts_plugin.commands import serve
from csm_tts_plugin.config import FRAME_SECONDS, AgentConfig, EngineConfig, HubConfig, ServerConfig
from csm_tts_plugin.engine.chunks import LENGTHS
from csm_tts_plugin.server.metrics import Metrics
from scripts.setup_tools import TOOLS
from tests.package.test_imports import BLOCKER, python

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
EXACT_TAG = re.compile(r".+:v?\d+\.\d+\.\d+[-a-z0-9.]*(@sha256:[0-9a-f]{64})?$")
SECRET = re.compile(r"KEY|SECRET|TOKEN|PASSWORD")
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)[^}]*\}")


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Name -> instructions, including those of the stage that it is based on."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.split()
            found[name] = list(found.get(base, []))
        elif found:
            found[name].append((word, rest))
    return found


FINAL = ("engine", "agent")


def test_hadolint_has_nothing_to_say():
    binary = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [binary, "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_base_is_one_exact_version():
    arguments = dict(rest.split("=") for word, rest in instructions() if word == "ARG")
    assert EXACT_TAG.match(arguments["PYTHON_IMAGE"])
    bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
    assert bases <= {"${PYTHON_IMAGE}", *stages()}


@pytest.mark.parametrize("name", FINAL)
def test_an_image_runs_as_nobody_and_says_whether_it_is_well(name):
    stage = stages()[name]
    words = [word for word, _ in stage]
    users = [rest for word, rest in stage if word == "USER"]
    assert users == ["10001:10001"]
    assert "RUN" not in words[words.index("USER") :]
    assert {"HEALTHCHECK", "ENTRYPOINT", "CMD", "STOPSIGNAL"} <= set(words)


@pytest.mark.parametrize("name", FINAL)
def test_an_image_holds_no_tools_to_build_with(name):
    runs = " ".join(rest for word, rest in stages()[name] if word == "RUN")
    assert "pip" not in runs
    # At run time, Triton compiles a small launcher with the C compiler.
    compiler = r"gcc=\S+ libc6-dev=\S+"
    if name == "engine":
        assert len(re.findall(compiler, runs)) == 1
        runs = re.sub(compiler, "libc6-dev=0", runs)
    assert not re.search(r"gcc|build-essential|git|curl|wget", runs)
    for package in re.findall(r"apt-get install [^&;]*", runs):
        assert "--no-install-recommends" in package
        assert re.search(r"=\S+\s*$", package), "the version of a package is pinned"
    assert "pip uninstall" in " ".join(r for _, r in stages()[f"{name}-packages"])


def test_nothing_secret_and_nothing_from_elsewhere_gets_into_a_layer():
    for word, rest in instructions():
        assert word != "ADD"
        if word in ("ENV", "ARG"):
            assert not SECRET.search(rest)
        if word == "COPY":
            assert rest.split()[0] not in (".", "/")


def copied() -> set[str]:
    found = set()
    for word, rest in instructions():
        parts = rest.split()
        if word == "COPY" and not parts[0].startswith("--from"):
            found |= set(parts[:-1])
    return found


def test_what_is_copied_is_there_and_is_all_that_the_build_is_given():
    assert all((ROOT / path).exists() for path in copied())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == copied()
    assert any(fnmatch("csm_tts_plugin/.env", rule) for rule in rules[1:])


def pins(path: Path) -> set[str]:
    return {line for line in path.read_text().split() if "==" in line}


def test_the_images_packages_are_those_of_the_project():
    whole = pins(ROOT / "requirements.txt")
    engine, agent = (pins(DEPLOY / f"requirements-{name}.txt") for name in FINAL)
    (peft,) = (pin for pin in pins(ROOT / "requirements-dev.txt") if pin.startswith("peft"))
    assert peft in engine, "compose passes CSM_ADAPTER on, which needs it"
    assert {pin for pin in whole if not pin.startswith("torchaudio")} == (engine | agent) - {peft}
    assert not {pin for pin in engine if pin.startswith("livekit")}
    assert not {pin for pin in agent if pin.startswith(("torch", "transformers"))}


@pytest.mark.parametrize(
    ("blocked", "module"),
    [
        ({"torch", "torchaudio", "transformers", "safetensors", "matplotlib"}, "agent"),
        ({"livekit", "torchaudio", "matplotlib"}, "csm_tts_plugin.server.run"),
    ],
)
def test_an_image_imports_what_it_runs_without_the_packages_of_the_other(blocked, module):
    assert python(f"BLOCKED = {blocked!r}\n{BLOCKER}\nimport {module}\nprint('there')") == "there"


def test_the_engines_image_runs_a_command_that_exists():
    stage = dict(stages()["engine"])
    assert json.loads(stage["ENTRYPOINT"]) == ["python", "-m", "csm_tts_plugin"]
    command, *options = json.loads(stage["CMD"])
    parser = argparse.ArgumentParser()
    serve.add(parser)
    given = parser.parse_args(options)
    assert (command, given.host, given.port) == ("serve", "0.0.0.0", 8090)
    assert stage["EXPOSE"] == "8090"
    assert ":8090/readyz" in stage["HEALTHCHECK"]


# compose


def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def environment(service: dict) -> dict[str, str]:
    return service.get("environment", {})


def test_every_service_has_an_exact_image_comes_back_and_keeps_its_log_small():
    for name, service in compose()["services"].items():
        assert "build" in service or EXACT_TAG.match(service["image"]), name
        assert service["restart"] == "unless-stopped", name
        assert service["logging"]["options"]["max-size"], name


def test_what_a_service_refers_to_is_there():
    whole = compose()
    volumes, services = set(whole["volumes"]), whole["services"]
    for service in services.values():
        for other in service.get("depends_on", {}):
            assert other in services
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith("./") else source in volumes
        if (build := service.get("build")) is not None:
            assert build["target"] in FINAL


def test_ports_are_open_on_loopback_only():
    for service in compose()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert environment(compose()["services"]["agent"])["AGENT_HEALTH"] == "127.0.0.1:8081"


def test_no_secret_stands_in_the_file_and_none_has_a_default():
    for service in compose()["services"].values():
        for name, value in environment(service).items():
            if SECRET.search(name) and name not in ("OTEL_EXPORTER_OTLP_HEADERS",):
                found = re.findall(r"\$?\$\{[A-Z_]+(:-[^}]+)?", value)
                assert found, name
                assert not any(found), f"{name} has a default"


def test_every_variable_is_explained_in_the_example():
    known = set(re.findall(r"^#? ?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert set(VARIABLE.findall((DEPLOY / "compose.yaml").read_text())) <= known
    for name in FINAL:
        ours = {key for key in environment(compose()["services"][name]) if key != "LIVEKIT_KEYS"}
        assert ours <= known


FIXED = {"LIVEKIT_URL", "CSM_ENGINE_URL", "CSM_VOICES_DIR", "AGENT_HEALTH", "AGENT_METRICS_PORT",
         "PROMETHEUS_MULTIPROC_DIR"}  # fmt: skip
"""Variables whose values in a container follow from the compose file or the Dockerfile."""
OUTSIDE = {"CALLER", "PORT", "WEB_HOST", "WEB_LIVEKIT_URL", "OTEL_SERVICE_NAME"}
"""Variables of commands outside containers; and a name that engine and agent would share."""


def test_a_setting_of_env_reaches_the_containers():
    example = (ROOT / ".env.example").read_text()
    known = set(re.findall(r"^#? ?([A-Z_]+)=", example, re.MULTILINE)) - FIXED - OUTSIDE
    services = compose()["services"]
    passed = {
        name
        for service in services.values()
        for value in environment(service).values()
        for name in VARIABLE.findall(value)
    }
    assert known == passed


def test_a_setting_left_out_of_env_is_the_default_in_a_container():
    services = compose()["services"]
    left = {
        name: {
            key: re.sub(r"^\$\{[A-Z_]+(:-|:\?)?(.*)\}$", r"\2", value)
            for key, value in environment(services[name]).items()
            if ":?" not in value and "KEY" not in key
        }
        for name in FINAL
    }
    assert EngineConfig.from_env(left["engine"]) == EngineConfig()
    assert ServerConfig.from_env(left["engine"]) == ServerConfig()
    assert HubConfig.from_env(left["engine"]).endpoint == HubConfig().endpoint
    agent = AgentConfig.from_env({**left["agent"], "AGENT_METRICS_PORT": ""})
    default = AgentConfig()
    assert (agent.instructions, agent.greeting) == (default.instructions, default.greeting)
    assert (agent.voice_source, agent.agent_name) == (default.voice_source, default.agent_name)


def test_the_engine_has_the_gpu_and_both_may_finish_what_they_say():
    services = compose()["services"]
    (device,) = services["engine"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert services["engine"]["stop_grace_period"] == "40s"
    # LiveKit's worker finishes its calls within 3600 s; a runtime that waits no longer kills it.
    assert services["agent"]["stop_grace_period"] == "61m"
    assert services["agent"]["depends_on"]["engine"]["condition"] == "service_healthy"


def test_the_profiles_are_those_of_the_walk_through():
    found = {p for service in compose()["services"].values() for p in service.get("profiles", [])}
    assert found == {"sip", "monitoring"}
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert all(f"--profile {profile}" in page for profile in found)


def test_livekits_server_understands_its_settings(tmp_path):
    """It starts as far as connecting to Redis, which is not there."""
    settings = (DEPLOY / "livekit.yaml").read_text()
    assert "127.0.0.1:6379" in settings
    settings = settings.replace("127.0.0.1:6379", "127.0.0.1:9")
    # `true` asks a STUN server.
    settings = settings.replace("use_external_ip: true", "use_external_ip: false")
    away = tmp_path / "livekit.yaml"
    away.write_text(f"{settings}\nkeys: {{key: {'s' * 32}}}")
    done = subprocess.run(
        [TOOLS / "bin" / "livekit-server", "--config", away],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert "unable to connect to redis" in output
    assert "could not parse" not in output


# monitoring


def test_prometheus_asks_where_compose_lets_it():
    jobs = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    services = compose()["services"]
    assert targets["csm-engine"] == [services["engine"]["ports"][0].rsplit(":", 1)[0]]
    assert targets["csm-agent"] == [
        f"127.0.0.1:{environment(services['agent'])['AGENT_METRICS_PORT']}"
    ]
    livekit = yaml.safe_load((DEPLOY / "livekit.yaml").read_text())
    assert targets["livekit"] == [f"127.0.0.1:{livekit['prometheus']['port']}"]
    assert jobs[0]["authorization"]["credentials_file"] in str(services["prometheus"]["entrypoint"])


def test_an_engine_that_decodes_in_chunks_sets_off_no_alert_about_frame_gaps():
    """Thresholds: two of the longest chunks, where the histogram has a bound; a frame's length."""
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    limits = {
        rule["alert"]: float(rule["expr"].rpartition(">")[2])
        for rule in group["rules"]
        if "csm_frame_gap" in rule["expr"]
    }
    longest = max(LENGTHS) * FRAME_SECONDS
    assert limits == {"EngineTooSlow": FRAME_SECONDS, "EngineStalls": 2 * longest}
    served = generate_latest(Metrics().registry).decode()
    assert f'csm_frame_gap_seconds_bucket{{le="{2 * longest}"}}' in served


def test_the_panels_of_the_dashboard_are_whole_and_do_not_overlap():
    board = json.loads((DEPLOY / "grafana" / "csm.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["title"]
            assert all(target["expr"] for target in panel["targets"])
