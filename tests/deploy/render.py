"""What Helm and Kustomize make of deploy/."""

import functools
import logging
import os
import subprocess
from pathlib import Path

import helm_python as helm
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
CHART = DEPLOY / "chart/floodgate"
OVERLAYS = ["single", "redis", "redis-cluster"]
EXAMPLES = sorted(path.stem for path in (CHART / "examples").glob("*.yaml"))


class Strict(yaml.SafeLoader):
    """YAML in which a key may be there once, as the API server reads it."""


def _mapping(loader, node):
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    twice = {key for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.YAMLError(f"{node.start_mark}: twice: {', '.join(map(str, twice))}")
    return loader.construct_mapping(node, deep=True)


Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def objects(text):
    """The objects of a YAML stream."""
    return [one for one in yaml.load_all(text, Strict) if one is not None]


def values(example):
    """The values of an example beside the chart."""
    return yaml.load((CHART / f"examples/{example}.yaml").read_text(), Strict)


def chart(given, name="floodgate"):
    """What the chart makes of these values, or helm.HelmError."""
    with helm.Chart.load(CHART) as loaded:
        files = loaded.render(given, name=name, namespace="im")
    made = []
    for file, text in files.items():
        if not file.endswith("NOTES.txt"):
            made.extend(objects(text))
    return made


@functools.cache
def example(name):
    """What the chart makes of an example."""
    return chart(values(name))


@functools.cache
def overlay(name):
    """What Kustomize makes of an overlay."""
    command = [os.environ["KUBECTL"], "kustomize", DEPLOY / "kustomize/overlays" / name]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise AssertionError(f"kubectl kustomize {name}: {made.stderr}")
    return objects(made.stdout)


def sources():
    """Everything that is shipped to be applied: its name, and its objects."""
    for name in EXAMPLES:
        yield f"chart with {name}.yaml", example(name)
    for name in OVERLAYS:
        yield f"overlay {name}", overlay(name)
    for path in sorted((DEPLOY / "examples").glob("*.yaml")):
        if not path.name.endswith("-values.yaml"):
            yield f"examples/{path.name}", objects(path.read_text())


def named(made, kind, name=None):
    """The one object of a kind."""
    found = [
        one
        for one in made
        if one["kind"] == kind and name in (None, one["metadata"]["name"])
    ]
    assert len(found) == 1, f"{len(found)} {kind} {name or ''}"
    return found[0]


def floodgates(made):
    """The Deployments of the gateway."""
    return [
        one
        for one in made
        if one["kind"] == "Deployment"
        and one["spec"]["template"]["spec"]["containers"][0]["name"] == "floodgate"
    ]


def seconds(text):
    """A time as settings have it."""
    assert text.endswith("s") and text[:-1].isdigit(), text
    return int(text[:-1])


def environment(container):
    """Variables that are given as they are."""
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


# Helm tells of each `fail` twice: the error has it all.
logging.getLogger("helm_python").setLevel(logging.CRITICAL)
