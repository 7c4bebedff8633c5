"""Wrong manifests that must be refused: a check that accepts everything would look the same on good ones."""

import copy
import pathlib
import subprocess
import tempfile

import yaml

import facts


def workload(documents, name):
    return next(d for d in documents if d["kind"] in ("Deployment", "Job") and d["metadata"]["name"] == f"floodway-{name}")


def named(documents, kind, name):
    # Names of generated ConfigMaps end in a hash.
    return next(
        d for d in documents if d["kind"] == kind and (d["metadata"]["name"] == name or d["metadata"]["name"].rpartition("-")[0] == name)
    )


def pod(documents, name):
    return workload(documents, name)["spec"]["template"]["spec"]


def container(documents, name):
    return pod(documents, name)["containers"][0]


def config(documents, name):
    return named(documents, "ConfigMap", name)["data"]


def rename(mapping, old, new):
    mapping[new] = mapping.pop(old)


def drop_exception(documents, network):
    blocks = named(documents, "NetworkPolicy", "floodway-dispatcher")["spec"]["egress"][0]["to"]
    for block in blocks:
        block["ipBlock"]["except"] = [other for other in block["ipBlock"]["except"] if other != network]


def reference(variable):
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": "floodway-secrets", "key": variable, "optional": True}}}


def variable(documents, name, variable):
    return next(entry for entry in container(documents, name)["env"] if entry["name"] == variable)


def give_database(documents, name):
    container(documents, name)["env"].append(reference("FLOODWAY_DATABASE_URL"))


# What is wrong, how to make it so, and a part of the line that must name it.
AGAINST_SCHEMAS = [
    ("a misspelt field", lambda d: rename(container(d, "ingest")["securityContext"], "readOnlyRootFilesystem", "readOnlyRootFilesytem"), "readOnlyRootFilesytem"),
    ("a misspelt field of a policy", lambda d: rename(named(d, "NetworkPolicy", "floodway-dns")["spec"], "egress", "egres"), "egres"),
    ("a field of the wrong type", lambda d: workload(d, "ingest")["spec"].update(revisionHistoryLimit="five"), "revisionHistoryLimit"),
    ("a missing field", lambda d: named(d, "HorizontalPodAutoscaler", "floodway-ingest")["spec"].pop("maxReplicas"), "maxReplicas"),
    ("a quantity that does not parse", lambda d: container(d, "ingest")["resources"]["limits"].update(memory="512Mb"), "512Mb"),
    ("a kind without a schema", lambda d: d[0].update(kind="Ingres"), "Ingres"),
]

AGAINST_FACTS = [
    ("an unknown setting", lambda d: config(d, "floodway-ingest").update(FLOODWAY_INGEST__LISSEN="1"), "FLOODWAY_INGEST__LISSEN"),
    ("a setting with a wrong value", lambda d: config(d, "floodway-ingest").update(FLOODWAY_INGEST__MAX_CONNECTIONS="many"), "max_connections"),
    ("an unknown subcommand", lambda d: container(d, "topics").update(args=["topics", "aply"]), "aply"),
    ("an unknown option", lambda d: container(d, "topics")["args"].append("--partition"), "--partition"),
    ("another role's subcommand", lambda d: container(d, "ingest").update(args=["dispatcher"]), "its component is ingest"),
    ("a wrong container port", lambda d: container(d, "ingest")["ports"].__setitem__(0, {"name": "admin", "containerPort": 8083}), "8083"),
    ("a listener on another port", lambda d: config(d, "floodway-ingest").update(FLOODWAY_INGEST__LISTEN="0.0.0.0:8090"), "8090"),
    ("a listener on loopback", lambda d: config(d, "floodway").update(FLOODWAY_ADMIN__LISTEN="127.0.0.1:8082"), "nothing outside the pod"),
    ("a Service to a port that is not there", lambda d: named(d, "Service", "floodway-ingest")["spec"]["ports"][0].update(targetPort="htp"), "has no port htp"),
    ("a probe of a wrong path", lambda d: container(d, "ingest")["readinessProbe"]["httpGet"].update(path="/health/redy"), "/health/redy"),
    ("a probe of a wrong port", lambda d: container(d, "ingest")["livenessProbe"]["httpGet"].update(port="http"), "livenessProbe"),
    ("a scrape of a wrong port", lambda d: workload(d, "ingest")["spec"]["template"]["metadata"]["annotations"].update({"prometheus.io/port": "8080"}), "prometheus.io"),
    ("a Deployment that selects nothing", lambda d: workload(d, "ingest")["spec"]["selector"]["matchLabels"].update({facts.COMPONENT: "ingress"}), "Deployment floodway-ingest: its selector"),
    ("a Service that selects nothing", lambda d: named(d, "Service", "floodway-ingest")["spec"]["selector"].update({facts.COMPONENT: "ingress"}), "Service floodway-ingest: its selector"),
    ("a Service that selects all roles", lambda d: named(d, "Service", "floodway-ingest")["spec"]["selector"].pop(facts.COMPONENT), "Service floodway-ingest: its selector"),
    ("a disruption budget that selects nothing", lambda d: named(d, "PodDisruptionBudget", "floodway-ingest")["spec"]["selector"]["matchLabels"].update({facts.COMPONENT: "ingress"}), "PodDisruptionBudget floodway-ingest"),
    ("a ConfigMap that is not there", lambda d: container(d, "ingest")["envFrom"][0]["configMapRef"].update(name="flodway"), "no ConfigMap"),
    ("a key that the Secret lacks", lambda d: container(d, "migrate")["env"][0]["valueFrom"]["secretKeyRef"].update(key="DATABASE"), "DATABASE"),
    ("a secret that the role does not need", lambda d: give_database(d, "ingest"), "must not have FLOODWAY_DATABASE_URL"),
    ("a replica's address for a role that has no use for it", lambda d: container(d, "retry-scheduler")["env"].append(reference("FLOODWAY_DATABASE_REPLICA_URL")), "must not have FLOODWAY_DATABASE_REPLICA_URL"),
    ("a pooler's way past that must be there", lambda d: variable(d, "migrate", "FLOODWAY_DATABASE_DIRECT_URL")["valueFrom"]["secretKeyRef"].pop("optional"), "be optional"),
    ("a role without the way past a pooler", lambda d: container(d, "control-plane")["env"].remove(variable(d, "control-plane", "FLOODWAY_DATABASE_DIRECT_URL")), "lacks FLOODWAY_DATABASE_DIRECT_URL"),
    ("a role without its ConfigMap when it is applied alone", lambda d: named(d, "ConfigMap", "floodway-ingest")["metadata"]["labels"].pop(facts.COMPONENT), "needs ConfigMap"),
    ("a role without its account when it is applied alone", lambda d: named(d, "ServiceAccount", "floodway-ingest")["metadata"]["labels"].pop(facts.COMPONENT), "needs ServiceAccount"),
    ("a secret that the role lacks", lambda d: container(d, "migrate")["env"].clear(), "lacks FLOODWAY_DATABASE_URL"),
    ("Services' variables beside the settings", lambda d: pod(d, "ingest").pop("enableServiceLinks"), "enableServiceLinks"),
    ("a pod that may be root", lambda d: pod(d, "ingest")["securityContext"].pop("runAsNonRoot"), "root"),
    ("too little time to drain", lambda d: pod(d, "ingest").update(terminationGracePeriodSeconds=30), "terminationGracePeriodSeconds"),
    ("more replicas than partitions", lambda d: named(d, "HorizontalPodAutoscaler", "floodway-dispatcher")["spec"].update(maxReplicas=24), "partitions"),
    ("an autoscaler of nothing", lambda d: named(d, "HorizontalPodAutoscaler", "floodway-ingest")["spec"]["scaleTargetRef"].update(name="ingest"), "which is not here"),
    ("brokers behind a closed port", lambda d: config(d, "floodway").update(FLOODWAY_KAFKA_BROKERS="kafka:9094"), "9094"),
    ("a Job without its ConfigMap in the first step", lambda d: named(d, "ConfigMap", "floodway")["metadata"]["labels"].pop("floodway/apply"), "needs ConfigMap"),
    ("a way to the metadata service", lambda d: drop_exception(d, "169.254.0.0/16"), "169.254.0.0/16"),
    ("a way to a forbidden IPv6 network", lambda d: drop_exception(d, "2002::/16"), "2002::/16"),
]

TEXTS = [
    ("an unknown topic", "# lag of floodway.outcome", "floodway.outcome"),
    ("an unknown metric", "query: sum(rate(floodway_ingest_requests[5m]))", "floodway_ingest_requests"),
]


IMAGES = [
    ("an unknown setting", "ENV FLOODWAY_LISSEN=1", "FLOODWAY_LISSEN"),
    ("a listener left on loopback", "ENV FLOODWAY_ADMIN__LISTEN=0.0.0.0:8082", "FLOODWAY_INGEST__LISTEN is 127.0.0.1"),
    ("a port that is not exposed", "ENV FLOODWAY_INGEST__LISTEN=0.0.0.0:8090\nEXPOSE 8080", "EXPOSE 8090"),
]


def refused_by_schemas(kubeconform, documents, folder):
    path = pathlib.Path(folder) / "manifest.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    ended = subprocess.run([*kubeconform, str(path)], capture_output=True, text=True)
    return ended.stdout + ended.stderr if ended.returncode != 0 else ""


def failures(documents, kubeconform):
    """Wrong manifests that were accepted, or refused without naming what is wrong; and how many were tried."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for what, spoil, expected in AGAINST_SCHEMAS:
            spoilt = copy.deepcopy(documents)
            spoil(spoilt)
            if expected not in refused_by_schemas(kubeconform, spoilt, folder):
                failed.append(f"accepted although it has {what}")
    for what, spoil, expected in AGAINST_FACTS:
        spoilt = copy.deepcopy(documents)
        spoil(spoilt)
        if not any(expected in line for line in facts.mistakes(spoilt)):
            failed.append(f"accepted although it has {what}")
    for what, text, expected in TEXTS:
        if not any(expected in line for line in facts.text_mistakes("text", text)):
            failed.append(f"accepted although it names {what}")
    for what, text, expected in IMAGES:
        if not any(expected in line for line in facts.image_mistakes(text)):
            failed.append(f"accepted although its image has {what}")
    return failed, len(AGAINST_SCHEMAS) + len(AGAINST_FACTS) + len(TEXTS) + len(IMAGES)
