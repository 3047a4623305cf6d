"""Runs the pods of manifests in Podman, as Kubernetes runs them where it matters here.

That is: init containers one after the other, sidecars first to start and last to end; each container with its own processes,
the command, environment, user and rights of the manifest, on a root file system that is read-only where it says so; volumes
that belong to root and the group fsGroup; ConfigMaps and Secrets as files; probes; SIGTERM or the image's signal at the end.
"""

import base64
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request

from manifests import pod_of

READY_SECONDS = 120


def podman(*arguments, check=True, timeout=300):
    command = ["podman", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise AssertionError(f"exit status {done.returncode} of {' '.join(command)}\n{done.stdout}")
    return done


class Cluster:
    """A namespace: its objects, volumes, network and running pods."""

    def __init__(self, name, images):
        self.name = name
        self.images = images
        self.objects = {}
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}.", dir="/var/tmp"))
        self.directory.chmod(0o755)
        podman("network", "create", name)

    def remove(self):
        podman("rm", "--force", "--time", 0, *self.containers(), check=False)
        podman("network", "rm", "--force", self.name, check=False)
        shutil.rmtree(self.directory)

    def containers(self):
        return podman("ps", "--all", "--quiet", "--filter", f"label={self.name}").stdout.split()

    def apply(self, documents):
        for document in documents:
            self.objects[document["kind"], document["metadata"]["name"]] = document

    def pod(self, kind, name, pod_name=None):
        document = self.objects[kind, name]
        return Pod(self, pod_name or name, pod_of(document), document["spec"].get("volumeClaimTemplates", []))

    def claim(self, name, group):
        """The directory of a claim, which is the same for everyone who names it."""
        return self.made(self.directory / "claims" / name, group)

    def lose(self, name):
        shutil.rmtree(self.directory / "claims" / name)

    def made(self, path, group):
        """A new volume, as the kubelet hands it over."""
        if not path.exists():
            path.mkdir(parents=True)
            os.chown(path, 0, group)
            path.chmod(0o2775)
        return path

    def data(self, kind, name):
        """The files of a ConfigMap or Secret; nothing if there is no such object."""
        document = self.objects.get((kind, name))
        if document is None:
            return None
        files = document.get("data", {})
        return files if kind == "ConfigMap" else {key: base64.b64decode(value).decode() for key, value in files.items()}


class Pod:
    def __init__(self, cluster, name, spec, claim_templates):
        self.cluster, self.name, self.spec = cluster, name, spec
        self.security = spec["securityContext"]
        self.claims = {template["metadata"]["name"]: f"{template['metadata']['name']}-{name}" for template in claim_templates}
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cluster.directory))
        self.directory.chmod(0o755)
        self.volumes = {volume["name"]: self.volume(volume) for volume in spec["volumes"]}
        self.volumes |= {volume: cluster.claim(claim, self.group) for volume, claim in self.claims.items()}
        self.network = cluster.name
        self.running = []

    @property
    def group(self):
        return self.security["fsGroup"]

    def volume(self, volume):
        path = self.directory / volume["name"]
        if claim := volume.get("persistentVolumeClaim"):
            name = claim["claimName"]
            is_there = ("PersistentVolumeClaim", name) in self.cluster.objects or (self.cluster.directory / "claims" / name).exists()
            assert is_there, f"there is no claim {name}"
            return self.cluster.claim(name, self.group)
        self.cluster.made(path, self.group)
        if source := volume.get("configMap"):
            self.write(path, self.cluster.data("ConfigMap", source["name"]), source)
        elif source := volume.get("secret"):
            self.write(path, self.cluster.data("Secret", source["secretName"]), source)
        else:
            assert "emptyDir" in volume or "ephemeral" in volume, volume
            path.chmod(0o2777)
        return path

    def write(self, path, files, source):
        assert files is not None or source.get("optional"), f"{source} is missing: the pod would not start"
        for key, value in (files or {}).items():
            file = path / key
            file.write_text(value)
            os.chown(file, 0, self.group)
            file.chmod(source.get("defaultMode", 0o644) | 0o440)

    def environment(self, container):
        variables = {}
        for source in container.get("envFrom", []):
            variables |= self.cluster.data("ConfigMap", source["configMapRef"]["name"])
        for variable in container.get("env", []):
            if "value" in variable:
                variables[variable["name"]] = expanded(variable["value"], variables)
            else:
                reference = variable["valueFrom"]["secretKeyRef"]
                variables[variable["name"]] = self.cluster.data("Secret", reference["name"])[reference["key"]]
        return variables

    def arguments(self, container):
        """Of `podman run`, up to and with the command."""
        variables = self.environment(container)
        security = container["securityContext"]
        words = ["--name", self.full(container), "--label", self.cluster.name, "--network", self.network, "--no-healthcheck"]
        words += ["--user", f"{self.security['runAsUser']}:{self.security['runAsGroup']}", "--group-add", self.group]
        words += [f"--cap-drop={capability}" for capability in security["capabilities"]["drop"]]
        words += ["--security-opt=no-new-privileges"] if not security["allowPrivilegeEscalation"] else []
        words += ["--read-only", "--read-only-tmpfs=false"] if security.get("readOnlyRootFilesystem") else []
        for name, value in variables.items():
            words += ["--env", f"{name}={value}"]
        for mount in container.get("volumeMounts", []):
            source = self.volumes[mount["name"]] / mount.get("subPath", "")
            assert source.exists(), f"{source} is missing: the container would not start"
            words += ["--volume", f"{source}:{mount['mountPath']}:{'ro' if mount.get('readOnly') else 'rw'}"]
        command = [expanded(word, variables) for word in container.get("command", [])]
        rest = [expanded(word, variables) for word in container.get("args", [])]
        if command:
            words += ["--entrypoint", json.dumps(command[:1])]
        return [*words, self.cluster.images[container["image"].split(":")[0]], *command[1:], *rest]

    def full(self, container):
        return f"{self.cluster.name}-{self.name}-{container['name']}"

    def initialise(self):
        """Starts the sidecars and runs the other init containers. Returns what they printed, and whether all ended well."""
        printed = ""
        for container in self.spec.get("initContainers", []):
            if container.get("restartPolicy") == "Always":
                self.start(container)
                continue
            done = podman("run", "--rm", *self.arguments(container), check=False)
            printed += done.stdout
            if done.returncode != 0:
                return printed, False
        return printed, True

    def start(self, container):
        """A container that stays. All of a pod share its network, and others find the pod by its service's name."""
        alias = ["--network-alias", "postgres"] if not self.running and self.name.startswith("postgres-") else []
        podman("run", "--detach", *alias, *self.arguments(container))
        if not self.running:
            self.network = f"container:{self.full(container)}"
        self.running.append(container)

    def up(self):
        printed, is_well = self.initialise()
        assert is_well, printed
        for container in self.spec["containers"]:
            self.start(container)
        return self

    def ended(self):
        """Runs a pod to its end. Returns its exit status and what it printed."""
        printed, is_well = self.initialise()
        if not is_well:
            return 1, printed
        (container,) = self.spec["containers"]
        done = podman("run", "--rm", *self.arguments(container), check=False)
        return done.returncode, printed + done.stdout

    def down(self):
        """Ends the pod as its deletion does: the containers, then the sidecars. All end by themselves within the time they have."""
        grace = self.spec.get("terminationGracePeriodSeconds", 30)
        for container in reversed(self.running):
            podman("stop", "--time", grace, self.full(container))
            status = podman("inspect", "--format", "{{.State.ExitCode}}", self.full(container)).stdout.strip()
            assert status == "0", f"{self.full(container)} ended with {status}\n{self.logs(container['name'])}"
        self.removed()

    def removed(self):
        for container in reversed(self.running):
            podman("rm", "--force", "--time", 0, self.full(container))
        self.running, self.network = [], self.cluster.name

    def logs(self, name):
        return podman("logs", f"{self.cluster.name}-{self.name}-{name}").stdout

    def execute(self, name, *command, check=True):
        """`kubectl exec`: the command in a running container, with the container's environment and user."""
        return podman("exec", f"{self.cluster.name}-{self.name}-{name}", *command, check=check)

    def sql(self, query):
        return self.execute("postgres", "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", query).stdout.strip()

    def probe(self, name, kind):
        """Whether a probe of a container succeeds now."""
        container = next(it for it in self.running if it["name"] == name)
        probe = container[kind]
        if "exec" in probe:
            return self.execute(name, *probe["exec"]["command"], check=False).returncode == 0
        return bool(self.page(name, kind))

    def page(self, name, kind):
        """What the address of a probe shows; anything but status 200 is an error."""
        container = next(it for it in self.running if it["name"] == name)
        asked = container[kind]["httpGet"]
        port = {port["name"]: port["containerPort"] for port in container["ports"]}[asked["port"]]
        with urllib.request.urlopen(f"http://{self.address()}:{port}{asked['path']}", timeout=10) as answer:
            return answer.read().decode()

    def address(self):
        networks = json.loads(podman("inspect", self.full(self.running[0])).stdout)[0]["NetworkSettings"]["Networks"]
        return networks[self.cluster.name]["IPAddress"]

    def await_probe(self, name, kind):
        deadline = time.monotonic() + READY_SECONDS
        while not self.probe(name, kind):
            assert time.monotonic() < deadline, f"{kind} of {name} never succeeded:\n{self.logs(name)}"
            time.sleep(0.3)

    def ready(self):
        """Waits as the kubelet does: readiness is not asked for before the startup probe has succeeded."""
        self.await_probe("postgres", "startupProbe")
        self.await_probe("postgres", "readinessProbe")
        return self


def expanded(text, variables):
    """`$(NAME)` is replaced where NAME is known, and `$$` is one `$`."""
    replaced = lambda match: "$" if match[0] == "$$" else variables.get(match[1], match[0])
    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)", replaced, text)
