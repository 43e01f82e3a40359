"""The manifests of `deploy/k8s/`, checked against Kubernetes' schemas and the code's settings.

Nothing here runs them: that needs a cluster. `kubernetes-validate` has the schemas in its wheel.
"""

from __future__ import annotations

import copy

import kubernetes_validate
import pytest
import yaml

from csm_tts_plugin.config import DEFAULT_PORT, AgentConfig, Limits
from scripts.setup_tools import ROOT

FOLDER = ROOT / "deploy" / "k8s"
VERSION = "1.37"
ENV_EXAMPLE = (ROOT / ".env.example").read_text()


def read(folder):
    """The objects that a kustomization lists, by kind and name."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    files = [folder / name for name in listed]
    return {
        (one["kind"], one["metadata"]["name"]): one
        for file in files
        for one in yaml.safe_load_all(file.read_text())
    }


def merged(base, patch):
    """A strategic merge as in kustomize: lists of named items are merged by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        both = {name: merged(base.get(name), value) for name, value in patch.items()}
        return {**base, **both}
    named = isinstance(base, list) and all(isinstance(i, dict) and "name" in i for i in base)
    if named and isinstance(patch, list):
        found = {item["name"]: item for item in base}
        for item in patch:
            found[item["name"]] = merged(found.get(item["name"]), item)
        return list(found.values())
    return copy.deepcopy(patch)


BASE = read(FOLDER / "base")


def with_gpu():
    objects = dict(BASE)
    overlay = FOLDER / "overlays" / "gpu"
    for entry in yaml.safe_load((overlay / "kustomization.yaml").read_text())["patches"]:
        patch = yaml.safe_load((overlay / entry["path"]).read_text())
        key = (patch["kind"], patch["metadata"]["name"])
        assert key in objects, "a patch for something that is not there"
        objects[key] = merged(objects[key], patch)
    return objects


CASES = [(name, key) for name in ("base", "gpu") for key in BASE]


def objects_of(name):
    return BASE if name == "base" else with_gpu()


def pods():
    return {
        key: one["spec"]["template"]["spec"]
        for key, one in BASE.items()
        if key[0] in ("StatefulSet", "Deployment")
    }


@pytest.mark.parametrize(("name", "key"), CASES, ids=str)
def test_each_object_is_one_that_kubernetes_takes(name, key):
    kubernetes_validate.validate(objects_of(name)[key], VERSION, strict=True)


def test_the_check_sees_what_is_wrong():
    wrong = copy.deepcopy(BASE["StatefulSet", "csm-engine"])
    wrong["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_every_file_is_listed():
    for folder in (FOLDER / "base", FOLDER / "overlays" / "gpu"):
        listed = yaml.safe_load((folder / "kustomization.yaml").read_text())
        names = {*listed["resources"], *(entry["path"] for entry in listed.get("patches", []))}
        assert {file.name for file in folder.iterdir()} - names == {"kustomization.yaml"}


@pytest.mark.parametrize("key", pods(), ids=str)
def test_pods_run_bounded_and_without_rights(key):
    pod = pods()[key]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"]["drop"] == ["ALL"]
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container)
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        claimed = BASE[key]["spec"].get("volumeClaimTemplates", [])
        there = {volume["name"] for volume in pod["volumes"]}
        assert mounted <= there | {claim["metadata"]["name"] for claim in claimed}


@pytest.mark.parametrize("key", pods(), ids=str)
def test_variables_are_ours_and_secrets_come_by_reference(key):
    for container in pods()[key]["containers"]:
        for variable in container["env"]:
            assert variable["name"] in ENV_EXAMPLE, variable["name"]
            secret = variable["name"].endswith(("KEY", "SECRET", "TOKEN"))
            assert ("secretKeyRef" in variable.get("valueFrom", {})) >= secret, variable["name"]
    assert not [key for key in BASE if key[0] == "Secret"]


def test_the_agents_texts_and_voice_can_be_set_and_are_the_defaults():
    (container,) = pods()["Deployment", "csm-agent"]["containers"]
    given = {variable["name"]: variable.get("value") for variable in container["env"]}
    names = ("AGENT_NAME", "AGENT_INSTRUCTIONS", "AGENT_GREETING", "VOICE_SOURCE")
    assert AgentConfig.from_env({name: given[name] for name in names}) == AgentConfig()


def test_the_engine_may_finish_what_it_says():
    pod = pods()["StatefulSet", "csm-engine"]
    (container,) = pod["containers"]
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits + Limits().drain_s < pod["terminationGracePeriodSeconds"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["ports"][0]["containerPort"] == DEFAULT_PORT


def test_agents_name_every_engine_that_may_be_started():
    scaler = BASE["HorizontalPodAutoscaler", "csm-engine"]["spec"]
    (container,) = pods()["Deployment", "csm-agent"]["containers"]
    urls = next(v["value"] for v in container["env"] if v["name"] == "CSM_ENGINE_URL").split(",")
    service = BASE["StatefulSet", "csm-engine"]["spec"]["serviceName"]
    assert urls == [
        f"http://csm-engine-{number}.{service}:{DEFAULT_PORT}"
        for number in range(scaler["maxReplicas"])
    ]
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["name"]) in BASE


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "NetworkPolicy"])
def test_every_pod_has_its_own(kind):
    labels = {
        str(one["spec"]["template"]["metadata"]["labels"])
        for key, one in BASE.items()
        if key in pods()
    }
    field = "selector" if kind == "PodDisruptionBudget" else "podSelector"
    chosen = {str(o["spec"][field]["matchLabels"]) for k, o in BASE.items() if k[0] == kind}
    assert chosen == labels


def test_the_overlay_asks_for_a_card():
    (container,) = with_gpu()["StatefulSet", "csm-engine"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["resources"]["requests"]["cpu"] == "2", "the base's stays"
    devices = [v["value"] for v in container["env"] if v["name"] == "CSM_DEVICE"]
    assert devices == ["cuda"]
    assert [v for v in container["env"] if v["name"] == "CSM_ENGINE_KEY"]
