"""The manifests, as kustomize renders them, and what can be said of them without running them."""

import copy
import pathlib
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples/kubernetes"
PAGE = REPOSITORY / "docs/kubernetes.md"
# A sidecar (an init container that is restarted) needs 1.29. The newest schemas are those of 1.37.
VERSIONS = ("1.29", "1.33", "1.37")
# What a namespace of the level "restricted" asks of each container, and each pod.
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
RESTRICTED_POD = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def kubectl(*arguments):
    """What kubectl prints. Nothing here has a cluster: only commands that need none are called."""
    program = pathlib.Path(sys.executable).with_name("kubectl")
    return subprocess.run([program, *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def render(directory):
    return list(yaml.safe_load_all(kubectl("kustomize", directory)))


def secrets_of_the_page(files):
    """The Secrets that the page tells to make, by its own commands. `files` are those that the commands read."""
    script = ["set -euo pipefail", f"PATH={pathlib.Path(sys.executable).parent}:$PATH"]
    for line in PAGE.read_text().replace("\\\n", " ").splitlines():
        if line.startswith("kubectl create secret generic "):
            script += [f"{line} --dry-run=client -o yaml", "echo ---"]
    with tempfile.TemporaryDirectory() as directory:
        for name, text in files.items():
            pathlib.Path(directory, name).write_text(text)
        made = subprocess.run(["bash", "-c", "\n".join(script)], cwd=directory, check=True, capture_output=True, text=True)
    return [secret for secret in yaml.safe_load_all(made.stdout) if secret]


def pod_of(document):
    """The spec of the pods that an object makes, or nothing."""
    spec = document.get("spec", {})
    match document["kind"]:
        case "Pod":
            return spec
        case "StatefulSet" | "Job":
            return spec["template"]["spec"]
        case "CronJob":
            return spec["jobTemplate"]["spec"]["template"]["spec"]
    return None


def containers_of(pod):
    return pod.get("initContainers", []) + pod["containers"]


def references(pod):
    """Which Secrets and ConfigMaps a pod reads: (kind, name, key or none)."""
    for container in containers_of(pod):
        for source in container.get("envFrom", []):
            yield "ConfigMap", source["configMapRef"]["name"], None
        for variable in container.get("env", []):
            if secret := variable.get("valueFrom", {}).get("secretKeyRef"):
                yield "Secret", secret["name"], secret["key"]
    for volume in pod["volumes"]:
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"], None
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"], None


def problems_of_pod(pod, claims):
    is_part = lambda part, whole: all(whole.get(key) == value for key, value in part.items())
    if not is_part(RESTRICTED_POD, pod["securityContext"]):
        yield "the pod is not restricted"
    volumes = {volume["name"] for volume in pod["volumes"]} | claims
    used = set()
    for container in containers_of(pod):
        name = container["name"]
        if not is_part(RESTRICTED, container["securityContext"]):
            yield f"container {name} is not restricted"
        if ":" not in container["image"]:
            yield f"container {name} has the image {container['image']}, which the folder images has not named"
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        used |= mounts
        if mounts - volumes:
            yield f"container {name} mounts {mounts - volumes}, and no volume has the name"
        # Walhalla takes each variable of this kind for a setting, and refuses one that it does not know.
        variables = {variable["name"] for variable in container.get("env", [])}
        known = {"WALHALLA_AGE_IDENTITY_FILE"}
        if unknown := {name for name in variables - known if name.startswith("WALHALLA_")}:
            yield f"container {name} has {unknown}, which is no setting"
    if volumes - used:
        yield f"no container mounts {volumes - used}"


def problems_of(documents, others, secrets):
    """What is wrong with the objects of one overlay; `others` are those of an overlay that is applied before it."""
    servers = [document for document in documents if document["kind"] == "StatefulSet"]
    labels = servers[0]["spec"]["template"]["metadata"]["labels"] if servers else {}
    for document in documents:
        who = f"{document['kind']} {document['metadata']['name']}"
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"{who}: {version}: {'.'.join(map(str, error.path))}: {error.message}"
        if document["kind"] == "Secret":
            yield f"{who}: a Secret's values do not belong into a manifest"
        selector = document.get("spec", {}).get("selector")
        if selector:
            wanted = selector.get("matchLabels", selector)
            if not wanted.items() <= labels.items():
                yield f"{who}: it selects no pod"
        if pod := pod_of(document):
            claims = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
            yield from (f"{who}: {problem}" for problem in problems_of_pod(pod, claims))
            there = {(other["kind"], other["metadata"]["name"]) for other in [*documents, *others]}
            for kind, name, key in references(pod):
                if kind == "ConfigMap" and (kind, name) not in there:
                    yield f"{who}: there is no ConfigMap {name}"
                if kind == "Secret" and (name not in secrets or (key and key not in secrets[name])):
                    yield f"{who}: the page does not make Secret {name} with {key or 'any key'}"
            if ("ServiceAccount", pod["serviceAccountName"]) not in there:
                yield f"{who}: there is no ServiceAccount {pod['serviceAccountName']}"


def first(kind, documents):
    return next(document for document in documents if document["kind"] == kind)


def server(documents):
    return pod_of(first("StatefulSet", documents))


# Mistakes that the checks have to find, each with a part of what they say.
MISTAKES = (
    (lambda documents: server(documents)["containers"][0].update(livenesProbe={}), "'livenesProbe' was unexpected"),
    (lambda documents: server(documents).update(terminationGracePeriodSeconds="5min"), "is not of type 'integer'"),
    (lambda documents: server(documents)["securityContext"].pop("runAsNonRoot"), "the pod is not restricted"),
    (lambda documents: server(documents)["containers"][0]["securityContext"].pop("capabilities"), "postgres is not restricted"),
    (lambda documents: server(documents)["containers"][0].update(image="postgres"), "the folder images has not named"),
    (lambda documents: server(documents)["volumes"].pop(), "no volume has the name"),
    (lambda documents: server(documents)["containers"][0]["volumeMounts"].pop(), "no container mounts"),
    (lambda documents: server(documents)["containers"][0]["env"].append({"name": "WALHALLA_SOTRE"}), "is no setting"),
    (lambda documents: server(documents)["volumes"][1]["configMap"].update(name="other"), "there is no ConfigMap other"),
    (lambda documents: server(documents)["volumes"][0]["secret"].update(secretName="other"), "does not make Secret other"),
    (lambda documents: server(documents).update(serviceAccountName="other"), "there is no ServiceAccount other"),
    (lambda documents: first("Service", documents)["spec"]["selector"].update(app="other"), "it selects no pod"),
)


def check():
    """Renders and checks every overlay. Returns how many objects there were."""
    files = dict.fromkeys(("write.credentials", "delete.credentials", "walhalla.key"), "")
    secrets = {secret["metadata"]["name"]: set(secret["data"]) for secret in secrets_of_the_page(files)}
    count, problems = 0, []
    for store, folder in (("s3", ""), ("directory", "directory/")):
        base = render(EXAMPLES / store)
        others = [folder + name for name in ("restore", "copy", "console")]
        for overlay, documents, before in [(store, base, [])] + [(it, render(EXAMPLES / it), base) for it in others]:
            count += len(documents)
            problems += [f"{overlay}: {problem}" for problem in problems_of(documents, before, secrets)]
    if problems:
        sys.exit("\n".join(problems))
    base = render(EXAMPLES / "s3")
    for make, expected in MISTAKES:
        documents = copy.deepcopy(base)
        make(documents)
        found = list(problems_of(documents, [], secrets))
        assert any(expected in problem for problem in found), f"{expected!r} was not found, but {found}"
    return count
