"""Called by scripts/k8s-check: `main.py facts NAME RENDERED ...` or `main.py self-test RENDERED KUBECONFORM...`."""

import pathlib
import sys

import yaml

import facts
import self_test
import source

MAX_LINES = 40  # of mistakes: the first ones matter


def load(path):
    return [document for document in yaml.safe_load_all(pathlib.Path(path).read_text()) if document]


def check_facts(pairs):
    wrong = []
    for name, path in pairs:
        wrong += [f"{name}: {line}" for line in facts.mistakes(load(path))]
    wrong += facts.image_mistakes(source.read("Dockerfile"))
    texts = [*source.ROOT.glob("k8s/**/*.yaml"), *source.ROOT.glob("k8s/**/*.env"), source.ROOT / "docs" / "kubernetes.md"]
    for path in sorted(texts):
        wrong += facts.text_mistakes(path.relative_to(source.ROOT), path.read_text())
    return wrong


def main(command, *arguments):
    if command == "facts":
        wrong = check_facts(list(zip(arguments[::2], arguments[1::2], strict=True)))
        done = "settings, ports, probes, selectors, secrets, networks, topics and metrics are those of the code"
    else:
        wrong, tried = self_test.failures(load(arguments[0]), arguments[1:])
        done = f"self-test: {tried} wrong manifests, each refused"
    for line in wrong[:MAX_LINES]:
        print(f"k8s-check: {line}", file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(f"k8s-check: {done}")


if __name__ == "__main__":
    main(*sys.argv[1:])
