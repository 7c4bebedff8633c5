"""What the manifests rely on, read from the code: names are never repeated here."""

import functools
import ipaddress
import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 20  # `validate` and `--help` take milliseconds


def read(path):
    return (ROOT / path).read_text()


def found(pattern, path, flags=0):
    """The first group of every match, or all groups; a pattern that matches nothing means that the code has moved."""
    matches = re.findall(pattern, read(path), re.DOTALL | flags)
    if not matches:
        raise SystemExit(f"k8s-check: {path} no longer has what scripts/k8s-check.d/source.py looks for: {pattern}")
    return matches


@functools.cache
def topics():
    """Base names of the topics."""
    body = found(r"fn base_name\(.*?\{(.*?)\n    \}", "schemas/src/topic.rs")[0]
    return set(re.findall(r'=> "([a-z-]+)"', body))


@functools.cache
def metrics():
    """Quoted names in the metrics.rs of every crate."""
    names = set()
    for path in ROOT.glob("*/src/metrics.rs"):
        names |= set(re.findall(r'"(floodway_[a-z0-9_]+)"', path.read_text()))
    return names


@functools.cache
def listeners():
    """Variable and default of every listener, from the file that shows all defaults."""
    sections = found(r"^\[(\w+)\]\n(.*?)(?=^\[|\Z)", "floodway.toml", re.MULTILINE)
    addresses = {section: re.search(r'^listen = "([^"]+)"', body, re.MULTILINE) for section, body in sections}
    return {f"FLOODWAY_{section.upper()}__LISTEN": address[1] for section, address in addresses.items() if address}


@functools.cache
def roles():
    return set(found(r'Self::\w+ => "([a-z-]+)"', "floodway/src/process.rs"))


@functools.cache
def roles_that_need(what):
    """Roles for which floodway/src/process.rs says that they need the `database` or the `sealing_key`."""
    variants = found(rf"fn needs_{what}\(.*?matches!\(self, (.*?)\)", "floodway/src/process.rs")[0]
    names = dict(re.findall(r'Self::(\w+) => "([a-z-]+)"', read("floodway/src/process.rs")))
    return {names[variant] for variant in re.findall(r"Self::(\w+)", variants)}


@functools.cache
def admin_paths():
    return set(found(r'"(/[a-z/]+)"(?: if [^=]*)? =>', "runtime/src/admin.rs"))


@functools.cache
def forbidden_networks():
    """Networks that the dispatcher refuses, and the part of IPv6 outside of which it refuses everything."""
    path = "schemas/src/address.rs"
    v4 = found(r"Ipv4Addr::new\((\d+), (\d+), (\d+), (\d+)\), (\d+), ", path)
    v6 = found(r"Ipv6Addr::new\(([0-9a-fx, ]+)\), (\d+), ", path)
    networks = [ipaddress.ip_network(f"{a}.{b}.{c}.{d}/{bits}") for a, b, c, d, bits in v4]
    for groups, bits in v6:
        address = ":".join(f"{int(group, 0):x}" for group in groups.split(","))
        networks.append(ipaddress.ip_network(f"{address}/{bits}"))
    return networks


GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def floodway(arguments, environment):
    """Runs the binary with nothing but `environment`; returns None, or the last line that it said on failing."""
    return run(tuple(arguments), tuple(sorted(environment.items())))


@functools.cache
def run(arguments, environment):
    ended = subprocess.run(
        [os.environ["FLOODWAY_BIN"], *arguments],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    said = [line for line in (ended.stderr + ended.stdout).splitlines() if line.strip()]
    if ended.returncode == 0:
        return None
    errors = [line for line in said if "error" in line.lower()]
    return (errors or said or [f"exit code {ended.returncode}"])[0].strip()
