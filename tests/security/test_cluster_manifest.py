"""The cluster form of the sandbox keeps every promise that a manifest can make."""

from pathlib import Path
from typing import Any

import pytest

from m1.infra.strict_yaml import parse_mapping

MANIFEST = Path(__file__).parents[2] / "infra" / "deploy" / "sandbox.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    parsed = parse_mapping(MANIFEST.read_text(), source=MANIFEST.name)
    assert (parsed["apiVersion"], parsed["kind"]) == ("v1", "List")
    return {item["kind"]: item for item in parsed["items"]}


@pytest.fixture(scope="module")
def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["PodTemplate"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    assert "initContainers" not in pod
    return only


def test_everything_lives_in_one_restricted_namespace(objects: dict[str, dict[str, Any]]) -> None:
    namespace = objects["Namespace"]["metadata"]

    homes = {
        kind: item["metadata"].get("namespace")
        for kind, item in objects.items()
        if kind not in ("Namespace", "RuntimeClass")
    }

    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert set(homes) == {"ServiceAccount", "NetworkPolicy", "ResourceQuota", "PodTemplate"}
    assert set(homes.values()) == {namespace["name"]}


def test_pods_run_on_gvisor(objects: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    assert objects["RuntimeClass"]["handler"] == "runsc"
    assert pod["runtimeClassName"] == objects["RuntimeClass"]["metadata"]["name"]


def test_nothing_gets_in_or_out(objects: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    assert objects["NetworkPolicy"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [],
        "egress": [],
    }
    assert (pod["dnsPolicy"], pod["dnsConfig"]) == ("None", {"nameservers": ["127.0.0.1"]})
    assert objects["ResourceQuota"]["spec"]["hard"]["services"] == "0"


def test_no_credential_reaches_the_pod(
    objects: dict[str, dict[str, Any]], pod: dict[str, Any], container: dict[str, Any]
) -> None:
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert container["env"] == []
    assert "envFrom" not in container
    assert objects["ResourceQuota"]["spec"]["hard"]["secrets"] == "0"


def test_nothing_of_the_host_is_shared(pod: dict[str, Any]) -> None:
    for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        assert pod[name] is False
    for volume in pod["volumes"]:
        assert set(volume) == {"name", "emptyDir"}
        assert "sizeLimit" in volume["emptyDir"]


def test_the_program_has_no_rights(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_everything_is_bounded(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert set(container["resources"]["limits"]) == {"cpu", "memory", "ephemeral-storage"}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert pod["activeDeadlineSeconds"] == 30 * 60 + 5 * 60
    assert pod["terminationGracePeriodSeconds"] == 0
    assert pod["restartPolicy"] == "Never"
