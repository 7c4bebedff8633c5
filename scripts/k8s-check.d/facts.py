"""Checks rendered manifests against each other and against the source. Each check yields one line per mistake."""

import base64
import ipaddress
import re

import source

# The Secrets that are not in the repository: docs/kubernetes.md says how to make them.
EXTERNAL_SECRETS = {
    "floodway-secrets": {
        "FLOODWAY_DATABASE_URL",
        "FLOODWAY_DATABASE_DIRECT_URL",
        "FLOODWAY_DATABASE_REPLICA_URL",
        "FLOODWAY_SEALING_KEY",
        "FLOODWAY_CONTROL_PLANE__ADMIN_KEY",
    }
}
KAFKA_USERS_KEY = "password"  # of the Secret floodway-<component>: the form that Strimzi gives a KafkaUser's
# Values in the right form, for settings whose Secret is not here, and for roles that need a setting that another lacks.
STAND_INS = {
    "FLOODWAY_KAFKA_BROKERS": "kafka:9092",
    "FLOODWAY_DATABASE_URL": "postgres://user:password@host:5432/database",
    "FLOODWAY_DATABASE_DIRECT_URL": "postgres://user:password@host:5432/database",
    "FLOODWAY_DATABASE_REPLICA_URL": "postgres://user:password@replica:5432/database",
    "FLOODWAY_SEALING_KEY": "k1:" + base64.b64encode(bytes(32)).decode(),
    "FLOODWAY_CONTROL_PLANE__ADMIN_KEY": "a-stand-in-for-the-admin-key",
}
# Where the brokers ask for a password; elsewhere it is refused.
WITH_SASL = {"FLOODWAY_KAFKA__SASL_PASSWORD": "stand-in"}
# There, too, for what talks to no broker. Others must be given their user's name.
WITHOUT_KAFKA = {"FLOODWAY_KAFKA__SASL_USERNAME": "stand-in"}
LISTEN = re.compile(r"FLOODWAY_(?:(\w+)__)?LISTEN")
EVERY_ADDRESS = ("0.0.0.0", "[::]")
DRAIN = re.compile(r"FLOODWAY_\w+__DRAIN_(?:TIMEOUT|DEADLINE)")
DRAIN_MARGIN_SECONDS = 10  # between the end of the drain and the kubelet's SIGKILL
FILE_ENDINGS = {"env", "toml", "yaml"}  # floodway.toml is a file, floodway.events a topic
COMPONENT = "app.kubernetes.io/component"


class Manifests:
    """The documents of one rendering."""

    def __init__(self, documents):
        self.documents = documents

    def of(self, *kinds):
        return [document for document in self.documents if document["kind"] in kinds]

    def named(self, kind, name):
        return next((d for d in self.of(kind) if d["metadata"]["name"] == name), None)

    def workloads(self):
        return [Workload(self, document) for document in self.of("Deployment", "Job")]


class Workload:
    """A Deployment or Job, its pod, and the pod's one container."""

    def __init__(self, manifests, document):
        self.manifests = manifests
        self.document = document
        self.kind = document["kind"]
        self.name = f"{self.kind} {document['metadata']['name']}"
        self.template = document["spec"]["template"]
        self.labels = self.template["metadata"].get("labels", {})
        self.component = self.labels.get(COMPONENT, "")
        self.pod = self.template["spec"]
        self.container = self.pod["containers"][0]
        self.ports = {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}

    def environment(self):
        """Settings as the pod will have them, and what is wrong with their sources."""
        values, secret, wrong = {}, set(), []
        for source in self.container.get("envFrom", []):
            name = source.get("configMapRef", {}).get("name")
            found = name and self.manifests.named("ConfigMap", name)
            if not found:
                wrong.append(f"{self.name}: envFrom names no ConfigMap of this rendering: {source}")
                continue
            values.update(found.get("data", {}))
        for variable in self.container.get("env", []):
            name = variable["name"]
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference is None:
                values[name] = variable.get("value", "")
                continue
            value, problem = self.secret_value(name, reference)
            if problem and reference.get("optional") and self.manifests.named("Secret", reference["name"]):
                continue
            secret.add(name)
            values[name] = value
            if problem:
                wrong.append(problem)
        return values, secret, wrong

    def secret_value(self, variable, reference):
        name, key = reference["name"], reference["key"]
        made = self.manifests.named("Secret", name)
        if made:
            encoded = made.get("data", {}).get(key)
            if encoded is not None:
                return base64.b64decode(encoded).decode(), None
        elif key in EXTERNAL_SECRETS.get(name, {KAFKA_USERS_KEY} if name == f"floodway-{self.component}" else ()):
            return {**STAND_INS, **WITH_SASL}.get(variable, ""), None
        return "", f"{self.name}: {variable} is not a key that Secret {name} has: {key}"


def selects(selector, labels):
    """Whether a label selector matches; one that names nothing matches everything."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for rule in selector.get("matchExpressions", []):
        if (labels.get(rule["key"]) in rule.get("values", [])) != (rule["operator"] == "In"):
            return False
    return True


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60}[unit]


def sealed_off(manifests):
    """Pods keep to the restricted standard, and get neither a token nor other Services' variables."""
    for workload in manifests.workloads():
        pod, container = workload.pod, workload.container
        security, inner = pod.get("securityContext", {}), container.get("securityContext", {})
        rules = [
            (len(pod["containers"]) == 1 and container["name"] == "floodway", "must have one container, `floodway`"),
            (security.get("runAsNonRoot") is True and security.get("runAsUser", 0) > 0, "must not run as root"),
            (security.get("seccompProfile", {}).get("type") == "RuntimeDefault", "needs seccompProfile RuntimeDefault"),
            (inner.get("allowPrivilegeEscalation") is False, "needs allowPrivilegeEscalation: false"),
            (inner.get("readOnlyRootFilesystem") is True, "needs readOnlyRootFilesystem: true"),
            (inner.get("capabilities", {}).get("drop") == ["ALL"], "must drop ALL capabilities"),
            (pod.get("automountServiceAccountToken") is False, "needs automountServiceAccountToken: false"),
            (pod.get("enableServiceLinks") is False, "needs enableServiceLinks: false, or it is given unknown settings"),
            (
                manifests.named("ServiceAccount", pod.get("serviceAccountName")) is not None,
                f"names a ServiceAccount that is not here: {pod.get('serviceAccountName')}",
            ),
        ]
        for kind in ("requests", "limits"):
            given = container.get("resources", {}).get(kind, {})
            rules.append(({"cpu", "memory"} <= set(given), f"needs {kind} of cpu and memory"))
        for holds, reason in rules:
            if not holds:
                yield f"{workload.name}: {reason}"


def settings(manifests):
    """The binary takes the pods' arguments and settings; each pod gets the secrets that its role needs, and no more."""
    for workload in manifests.workloads():
        values, secret, wrong = workload.environment()
        yield from wrong
        arguments = workload.container.get("args", [])
        refused = source.floodway([*arguments, "--help"], {})
        if refused:
            yield f"{workload.name}: floodway {' '.join(arguments)}: {refused}"
        if workload.kind == "Deployment" and arguments != [workload.component]:
            yield f"{workload.name}: runs {arguments}, its component is {workload.component}"
        # `validate` checks all roles, so what this one does not get is stood in for.
        component = workload.component
        uses_sasl = values.get("FLOODWAY_KAFKA__SECURITY_PROTOCOL", "").startswith("sasl")
        stand_ins = dict(STAND_INS)
        if uses_sasl:
            stand_ins |= WITH_SASL | (WITHOUT_KAFKA if component == "migrate" else {})
        refused = source.floodway(["validate"], {**stand_ins, **values})
        if refused:
            yield f"{workload.name}: {refused}"

        uses_database = component in source.roles_that_need("database") | {"migrate"}
        wanted = {
            "FLOODWAY_DATABASE_URL": uses_database,
            "FLOODWAY_SEALING_KEY": component in source.roles_that_need("sealing_key"),
            "FLOODWAY_CONTROL_PLANE__ADMIN_KEY": component == "control-plane",
            "FLOODWAY_KAFKA__SASL_PASSWORD": uses_sasl and component in source.roles() | {"topics"},
        }
        for name, is_wanted in wanted.items():
            if is_wanted != (name in values):
                yield f"{workload.name}: {'lacks' if is_wanted else 'must not have'} {name}"
            elif is_wanted and name not in secret:
                yield f"{workload.name}: {name} must come from a Secret"
        # Whether there is one is up to the Secret; who would get it is not.
        for name, is_wanted in {
            "FLOODWAY_DATABASE_DIRECT_URL": uses_database,
            "FLOODWAY_DATABASE_REPLICA_URL": component == "control-plane",
        }.items():
            references = [v.get("valueFrom", {}).get("secretKeyRef") for v in workload.container.get("env", []) if v["name"] == name]
            if is_wanted != bool(references):
                yield f"{workload.name}: {'lacks' if is_wanted else 'must not have'} {name}"
            elif not all(reference and reference.get("optional") for reference in references):
                yield f"{workload.name}: {name} must come from a Secret and be optional"


def ports(manifests):
    """Every port is one that the role listens on, at every address, and every reference to it resolves."""
    for workload in manifests.workloads():
        if workload.kind != "Deployment":
            continue
        values, _, _ = workload.environment()
        # Each role's ConfigMap holds its own section only, so all listeners found are its own.
        listeners = {m.group(1): values[name] for name in values if (m := LISTEN.fullmatch(name))}
        listening = set()
        for section, address in listeners.items():
            host, _, port = address.rpartition(":")
            listening.add(int(port))
            if host not in EVERY_ADDRESS:
                yield f"{workload.name}: {section} listens on {address}, which nothing outside the pod can reach"
        declared = set(workload.ports.values())
        if declared != listening:
            yield f"{workload.name}: declares ports {sorted(declared)} and listens on {sorted(listening)}"

        admin = int(listeners.get("ADMIN", ":0").rpartition(":")[2])
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = workload.container.get(probe, {}).get("httpGet", {})
            yield from admin_target(f"{workload.name}: {probe}", get.get("path"), get.get("port"), workload, admin)
        annotations = workload.template["metadata"].get("annotations", {})
        port = annotations.get("prometheus.io/port", "")
        port = int(port) if port.isdigit() else port
        yield from admin_target(f"{workload.name}: prometheus.io", annotations.get("prometheus.io/path"), port, workload, admin)

    for service in manifests.of("Service"):
        for port in service["spec"]["ports"]:
            for workload in manifests.workloads():
                target = port.get("targetPort", port["port"])
                if selects({"matchLabels": service["spec"]["selector"]}, workload.labels):
                    if workload.ports.get(target, target) not in workload.ports.values():
                        yield f"Service {service['metadata']['name']}: {workload.name} has no port {target}"


def admin_target(what, path, port, workload, admin):
    if workload.ports.get(port, port) != admin:
        yield f"{what}: port {port} is not that of the admin listener, {admin}"
    if path not in source.admin_paths():
        yield f"{what}: the admin listener has no {path}"


def selectors(manifests):
    """Every selector and target finds pods, and each finds the ones it is meant for."""
    workloads = manifests.workloads()
    for workload in workloads:
        if workload.kind == "Deployment":
            selector = workload.document["spec"]["selector"]
            chosen = [other.name for other in workloads if selects(selector, other.labels)]
            if chosen != [workload.name]:
                yield f"{workload.name}: its selector matches {chosen or 'nothing'}"
            for constraint in workload.pod.get("topologySpreadConstraints", []):
                if not selects(constraint["labelSelector"], workload.labels):
                    yield f"{workload.name}: the spread over {constraint['topologyKey']} selects other pods"
    for document in manifests.of("Service", "PodDisruptionBudget", "NetworkPolicy"):
        name = f"{document['kind']} {document['metadata']['name']}"
        spec = document["spec"]
        selector = {
            "Service": lambda: {"matchLabels": spec["selector"]},
            "PodDisruptionBudget": lambda: spec["selector"],
            "NetworkPolicy": lambda: spec["podSelector"],
        }[document["kind"]]()
        chosen = [workload for workload in workloads if selects(selector, workload.labels)]
        if not chosen:
            yield f"{name}: its selector matches nothing"
        elif document["kind"] != "NetworkPolicy" and len(chosen) > 1:
            yield f"{name}: its selector matches {[workload.name for workload in chosen]}"
        for rule in selector.get("matchExpressions", []):
            for value in rule.get("values", []):
                if not any(workload.labels.get(rule["key"]) == value for workload in workloads):
                    yield f"{name}: no pod has {rule['key']}={value}"
    for role in source.roles():
        if not any(workload.component == role and workload.kind == "Deployment" for workload in workloads):
            yield f"no Deployment runs the role {role}"


def lifetimes(manifests):
    """A pod has the time to drain that its role asks for."""
    for workload in manifests.workloads():
        if workload.kind != "Deployment":
            continue
        values, _, _ = workload.environment()
        drains = [seconds(value) for name, value in values.items() if DRAIN.fullmatch(name)]
        if not drains:
            yield f"{workload.name}: its ConfigMap must say how long the role may drain"
            continue
        pre_stop = workload.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        needed = pre_stop + max(drains) + DRAIN_MARGIN_SECONDS
        granted = workload.pod.get("terminationGracePeriodSeconds", 30)
        if granted < needed:
            yield f"{workload.name}: terminationGracePeriodSeconds is {granted}, preStop, drain and margin take {needed:g}"


def scaling(manifests):
    """Autoscalers stay below the number of partitions, by which the consuming roles are bounded."""
    partitions = None
    for job in manifests.of("Job"):
        arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
        if arguments[:2] == ["topics", "apply"] and "--partitions" in arguments:
            partitions = int(arguments[arguments.index("--partitions") + 1])
    if partitions is None:
        yield "no Job says `topics apply --partitions`"
        return
    for scaler in manifests.of("HorizontalPodAutoscaler"):
        name = f"HorizontalPodAutoscaler {scaler['metadata']['name']}"
        target = scaler["spec"]["scaleTargetRef"]
        deployment = manifests.named(target["kind"], target["name"])
        if deployment is None:
            yield f"{name}: scales {target['kind']} {target['name']}, which is not here"
        elif "replicas" in deployment["spec"]:
            yield f"{name}: Deployment {target['name']} sets replicas too, each apply would undo the scaling"
        if scaler["spec"]["maxReplicas"] >= partitions:
            yield f"{name}: maxReplicas must be below the {partitions} partitions"


def egress(manifests):
    """Network policies open what the settings name, and close to the dispatcher what its own guard refuses."""
    policies = manifests.of("NetworkPolicy")
    for workload in manifests.workloads():
        applying = [policy["spec"] for policy in policies if selects(policy["spec"]["podSelector"], workload.labels)]
        if not any(spec["policyTypes"] == ["Ingress", "Egress"] and len(spec) == 2 for spec in applying):
            yield f"{workload.name}: no network policy denies it everything"
        opened = {
            port["port"]
            for spec in applying
            for rule in spec.get("egress", [])
            if all("ipBlock" not in peer for peer in rule.get("to", []))
            for port in rule.get("ports", [])
        }
        values, _, _ = workload.environment()
        wanted = {}
        if workload.component != "migrate":
            brokers = values.get("FLOODWAY_KAFKA_BROKERS")
            if not brokers:
                yield f"{workload.name}: FLOODWAY_KAFKA_BROKERS is not set"
            wanted.update((port, "Kafka") for port in re.findall(r":(\d+)(?:,|$)", brokers or ""))
        for name in ("FLOODWAY_DATABASE_URL", "FLOODWAY_DATABASE_DIRECT_URL", "FLOODWAY_DATABASE_REPLICA_URL"):
            wanted.update((port, "PostgreSQL") for port in re.findall(r"@[^/]*:(\d+)/", values.get(name, "")))
        for port, server in {"53": "DNS", **wanted}.items():
            if int(port) not in opened:
                yield f"{workload.name}: no network policy lets it reach {server} on port {port}"
        if workload.kind == "Deployment":
            let_in = {port["port"] for spec in applying for rule in spec.get("ingress", []) for port in rule.get("ports", [])}
            closed = {name for name, number in workload.ports.items() if not {name, number} & let_in}
            if closed:
                yield f"{workload.name}: no network policy lets anyone reach its port {sorted(closed)}"

        blocks = [
            peer["ipBlock"] for spec in applying for rule in spec.get("egress", []) for peer in rule.get("to", []) if "ipBlock" in peer
        ]
        if blocks and workload.component != "dispatcher":
            yield f"{workload.name}: only the dispatcher may reach addresses outside the cluster"
        if not blocks and workload.component == "dispatcher":
            yield f"{workload.name}: no network policy lets it reach webhooks"
        for block in blocks:
            yield from leaks(workload, block)


def leaks(workload, block):
    network = ipaddress.ip_network(block["cidr"])
    if network.version == 6 and not network.subnet_of(source.GLOBAL_UNICAST):
        yield f"{workload.name}: may reach {network}, the dispatcher itself refuses all but {source.GLOBAL_UNICAST}"
    exceptions = [ipaddress.ip_network(text) for text in block.get("except", [])]
    for forbidden in source.forbidden_networks():
        if forbidden.version == network.version and forbidden.overlaps(network):
            if not any(forbidden.subnet_of(exception) for exception in exceptions):
                yield f"{workload.name}: may reach {forbidden}, which the dispatcher itself refuses"


def first_step(manifests):
    """`kubectl apply --selector floodway/apply=first` applies the Jobs with all that they need."""
    is_first = {"matchLabels": {"floodway/apply": "first"}}
    for workload in manifests.workloads():
        if workload.kind != "Job":
            continue
        references = [("Job", workload.document["metadata"]["name"]), ("ServiceAccount", workload.pod.get("serviceAccountName"))]
        references += [("ConfigMap", source.get("configMapRef", {}).get("name")) for source in workload.container.get("envFrom", [])]
        for variable in workload.container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                references.append(("Secret", reference["name"]))
        for policy in manifests.of("NetworkPolicy"):
            if selects(policy["spec"]["podSelector"], workload.labels) and "Egress" in policy["spec"]["policyTypes"]:
                references.append(("NetworkPolicy", policy["metadata"]["name"]))
        for kind, name in references:
            document = manifests.named(kind, name)
            if document and not selects(is_first, document["metadata"].get("labels", {})):
                yield f"{workload.name}: needs {kind} {name}, which lacks the label floodway/apply: first"


def role_by_role(manifests):
    """`kubectl apply --selector app.kubernetes.io/component=<role>` applies the role with all that the first step has not."""
    is_first = {"matchLabels": {"floodway/apply": "first"}}
    for workload in manifests.workloads():
        if workload.kind != "Deployment":
            continue
        is_the_roles = {"matchLabels": {COMPONENT: workload.component}}
        references = [("Deployment", workload.document["metadata"]["name"]), ("ServiceAccount", workload.pod.get("serviceAccountName"))]
        references += [("ConfigMap", source.get("configMapRef", {}).get("name")) for source in workload.container.get("envFrom", [])]
        for policy in manifests.of("NetworkPolicy"):
            if selects(policy["spec"]["podSelector"], workload.labels):
                references.append(("NetworkPolicy", policy["metadata"]["name"]))
        for kind, name in references:
            document = manifests.named(kind, name)
            labels = document["metadata"].get("labels", {}) if document else {}
            if document and not selects(is_first, labels) and not selects(is_the_roles, labels):
                yield f"{workload.name}: needs {kind} {name}, which lacks the label {COMPONENT}: {workload.component}"


CHECKS = [sealed_off, settings, ports, selectors, lifetimes, scaling, egress, first_step, role_by_role]


def mistakes(documents):
    """All mistakes of one rendering."""
    manifests = Manifests(documents)
    return [line for check in CHECKS for line in check(manifests)]


def image_mistakes(dockerfile):
    """Settings that the image brings along and the binary does not take, and listeners that nothing outside a container reaches."""
    brought = dict(re.findall(r"\b(FLOODWAY_\w+)=(\S+)", dockerfile))
    refused = source.floodway(["validate"], {**STAND_INS, **brought})
    if refused:
        yield f"Dockerfile: {refused}"
    exposed = {port for line in re.findall(r"^EXPOSE (.+)$", dockerfile, re.MULTILINE) for port in line.split()}
    for name, default in source.listeners().items():
        host, _, port = brought.get(name, default).rpartition(":")
        if host not in EVERY_ADDRESS:
            yield f"Dockerfile: {name} is {host}:{port}, which nothing outside the container can reach"
        if port not in exposed:
            yield f"Dockerfile: does not EXPOSE {port}, the port of {name}"


def text_mistakes(name, text):
    """Topics and metrics that a text names and the code does not have."""
    for topic in re.findall(r"\bfloodway\.([a-z][a-z-]*)(?![a-z-]*[/(])", text):
        if topic not in source.topics() | FILE_ENDINGS:
            yield f"{name}: there is no topic floodway.{topic}"
    for metric in re.findall(r"\bfloodway_[a-z0-9_]+", text):
        if not {metric, re.sub(r"_(bucket|sum|count)$", "", metric)} & source.metrics():
            yield f"{name}: there is no metric {metric}"
