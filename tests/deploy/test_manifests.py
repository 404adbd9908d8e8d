"""What is rendered is valid, fits together, and is the same from both."""

import copy
import functools
import json
import re
import tempfile
import tomllib
import unittest
from pathlib import Path
from unittest import mock

import helm_python as helm
import jsonschema
import kubernetes_validate
from kubernetes_validate import utils

import crds
import render

# The oldest that the chart takes (Chart.yaml), and the newest whose schemas there are.
VERSIONS = ["1.30.0", "1.37.0"]
# It reads 3 MB of definitions again for each object.
schema_contents = functools.cache(utils.schema_contents)


def validate(one):
    """Raises what is wrong with an object."""
    schema = crds.SCHEMAS.get((one["apiVersion"], one["kind"]))
    if schema is not None:
        jsonschema.Draft202012Validator(schema).validate(one)
        return
    with mock.patch.object(utils, "schema_contents", schema_contents):
        for version in VERSIONS:
            kubernetes_validate.validate(one, version, strict=True)


def labels_fit(selector, labels):
    return selector.items() <= labels.items()


class Valid(unittest.TestCase):
    def test_every_object_is_valid_in_the_strict_schemas(self):
        for source, made in render.sources():
            self.assertTrue(made, source)
            for one in made:
                name = f"{one['kind']} {one['metadata']['name']}"
                with self.subTest(source=source, object=name):
                    validate(one)

    def test_a_mistake_would_be_found(self):
        for kind, path in [
            ("Deployment", ["spec", "template", "spec", "containers", 0, "livenesProbe"]),
            ("HorizontalPodAutoscaler", ["spec", "maxReplica"]),
            ("PodMonitor", ["spec", "podMetricsEndpoints", 0, "prot"]),
            ("PrometheusRule", ["spec", "groups", 0, "rules", 0, "exp"]),
        ]:
            one = copy.deepcopy(render.named(render.example("redis"), kind))
            at = one
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = 1
            with self.assertRaises(jsonschema.ValidationError, msg=kind):
                validate(one)

    def test_no_two_objects_have_one_name(self):
        for source, made in render.sources():
            names = [
                (one["apiVersion"], one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"])
                for one in made
            ]
            self.assertEqual(len(names), len(set(names)), source)

    def test_helm_finds_nothing_to_complain_about(self):
        for example in render.EXAMPLES:
            found = helm.lint(render.CHART, render.values(example), strict=True)
            # 1 is information: that there is no icon.
            said = [one for one in found["messages"] if one["severity"] > 1]
            self.assertEqual((said, found["errors"]), ([], []), example)

    def test_what_is_packed_is_the_chart(self):
        with tempfile.TemporaryDirectory() as folder:
            helm.package(render.CHART, destination=folder)
            (archive,) = Path(folder).iterdir()
            with helm.Chart.load(archive) as packed, helm.Chart.load(render.CHART) as chart:
                given = render.values("edge") | {"monitoring": {"rules": True, "dashboard": True}}
                self.assertEqual(packed.render(given, name="x"), chart.render(given, name="x"))
                # Beside the chart, not in it.
                self.assertFalse([file for file in packed.files if "examples" in file["name"]])

    def test_a_release_of_any_name_is_valid(self):
        for name in ["x", "im-floodgate", "r" * 53]:
            for one in render.chart(render.values("edge"), name=name):
                validate(one)
                self.assertLessEqual(len(one["metadata"]["name"]), 63)


class Refused(unittest.TestCase):
    """What does not fit together is told, and how to make it fit."""

    GOOD = {"admin": {"tokenSecret": {"name": "floodgate-admin"}}}
    SHARED = GOOD | {"store": {"url": "redis://redis"}}

    def test_good_values_are_taken(self):
        for values in [self.GOOD, self.SHARED | {"replicas": 3}]:
            self.assertTrue(render.chart(values))

    def test_bad_values_are_told(self):
        for values, told in [
            (self.GOOD | {"replicas": 2}, "each admit every limit in full"),
            (self.GOOD | {"autoscaling": {"enabled": True}}, "each admit every limit in full"),
            ({}, "admin.tokenSecret.name is needed"),
            (self.GOOD | {"store": {"url": "redis://user:secret@redis"}}, "store.passwordSecret"),
            (self.GOOD | {"store": {"url": "mysql://redis"}}, "store"),
            (self.GOOD | {"replica": 2}, "replica"),
            (self.GOOD | {"replicas": "2"}, "replicas"),
            (self.GOOD | {"shutdown": {"drainDelaySeconds": 4}}, "drainDelaySeconds must be above 4"),
            (self.GOOD | {"probes": {"readiness": {"periodSeconds": 10}}}, "drainDelaySeconds must be above 20"),
            (self.GOOD | {"config": "listen = [\"0.0.0.0:1\"]"}, "listen is set by the value listenAddress"),
            (self.GOOD | {"config": "store_password = \"x\""}, "store.passwordSecret"),
            (self.GOOD | {"config": "upstream = ["}, "config is no TOML"),
            (self.GOOD | {"files": {"floodgate.toml": ""}}, "made of config"),
            (self.GOOD | {"http": {"enabled": False}}, "nobody could call"),
            (self.GOOD | {"tls": {"enabled": True}}, "tls.secretNames"),
            (self.GOOD | {"upstreamService": {"enabled": True}}, "upstreamService.selector"),
            (self.SHARED | {"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "rollout"),
            (self.SHARED | {"autoscaling": {"enabled": True, "minReplicas": 11}}, "above maxReplicas"),
        ]:
            with self.subTest(values=values):
                with self.assertRaises(helm.HelmError) as refused:
                    render.chart(values)
                self.assertIn(told, str(refused.exception))

    def test_every_key_has_a_default_and_is_in_the_schema(self):
        schema = json.loads((render.CHART / "values.schema.json").read_text())
        with helm.Chart.load(render.CHART) as chart:
            defaults = chart.values
        self.assertEqual(set(defaults), set(schema["properties"]) - {"global"})

        def closed(schema, values, path):
            for key, value in values.items():
                self.assertIn(key, schema["properties"], f"{path}.{key}")
                inner = schema["properties"][key]
                if inner.get("additionalProperties") is False and isinstance(value, dict):
                    closed(inner, value, f"{path}.{key}")

        closed(schema, defaults, "values")


class Same(unittest.TestCase):
    """The chart's examples and Kustomize's overlays are the same objects."""

    # Who made it.
    HELM = {"app.kubernetes.io/managed-by", "helm.sh/chart"}

    def plain(self, made):
        plain = {}
        for one in copy.deepcopy(made):
            labels = one["metadata"].get("labels", {})
            for label in self.HELM:
                labels.pop(label, None)
            # Lists of things with names are in no order.
            for pod in [one["spec"]["template"]["spec"]] if one["kind"] == "Deployment" else []:
                pod["volumes"].sort(key=lambda volume: volume["name"])
                for container in pod["containers"]:
                    for key in ["env", "volumeMounts"]:
                        container[key].sort(key=lambda entry: entry["name"])
            plain[one["apiVersion"], one["kind"], one["metadata"]["name"]] = one
        return plain

    def test_each_overlay_is_the_chart_with_the_example_of_its_name(self):
        self.maxDiff = None
        for name in render.OVERLAYS:
            chart, overlay = self.plain(render.example(name)), self.plain(render.overlay(name))
            self.assertEqual(sorted(chart), sorted(overlay), name)
            for key, one in chart.items():
                with self.subTest(overlay=name, object=key):
                    self.assertEqual(one, overlay[key])


class Fits(unittest.TestCase):
    """What refers to something else finds it."""

    def gateways(self):
        for source, made in render.sources():
            for deployment in render.floodgates(made):
                yield source, made, deployment, deployment["spec"]["template"]

    def test_a_gateway_has_the_time_to_end(self):
        for source, _, _, template in self.gateways():
            with self.subTest(source=source):
                pod = template["spec"]
                container = pod["containers"][0]
                env = render.environment(container)
                before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
                delay = render.seconds(env["FLOODGATE_DRAIN_DELAY"])
                grace = render.seconds(env["FLOODGATE_GRACE"])
                ready = container["readinessProbe"]
                self.assertGreater(pod["terminationGracePeriodSeconds"], before + delay + grace)
                self.assertGreater(delay, ready["periodSeconds"] * ready["failureThreshold"])
                self.assertGreater(before, 0)

    def test_pods_keep_to_the_restricted_standard(self):
        for source, _, _, template in self.gateways():
            with self.subTest(source=source):
                pod = template["spec"]
                inside = pod["containers"][0]["securityContext"]
                self.assertTrue(inside["readOnlyRootFilesystem"])
                self.assertFalse(inside["allowPrivilegeEscalation"])
                self.assertEqual(inside["capabilities"], {"drop": ["ALL"]})
                outside = pod["securityContext"]
                self.assertTrue(outside["runAsNonRoot"])
                self.assertEqual((outside["runAsUser"], outside["fsGroup"]), (65532, 65532))
                self.assertEqual(outside["seccompProfile"], {"type": "RuntimeDefault"})
                self.assertFalse(pod["automountServiceAccountToken"])
                for volume in pod["volumes"]:
                    self.assertNotIn("hostPath", volume)
                    if "secret" in volume:
                        self.assertEqual(volume["secret"]["defaultMode"], 0o440)

    def test_no_secret_is_in_the_environment(self):
        for source, _, _, template in self.gateways():
            for variable in template["spec"]["containers"][0]["env"]:
                name = variable["name"]
                self.assertFalse(name.endswith(("_PASSWORD", "_TOKEN")), f"{source}: {name}")
                self.assertNotIn("secretKeyRef", variable.get("valueFrom", {}), source)

    def test_volumes_and_mounts_belong_together(self):
        for source, _, _, template in self.gateways():
            pod = template["spec"]
            mounts = pod["containers"][0]["volumeMounts"]
            self.assertEqual({m["name"] for m in mounts}, {v["name"] for v in pod["volumes"]}, source)
            for mount in mounts:
                self.assertTrue(mount["readOnly"], source)
                # A file that is mounted so is never changed.
                self.assertNotIn("subPath", mount, source)

    def test_only_one_gateway_has_no_store_to_share(self):
        for source, made, deployment, template in self.gateways():
            env = render.environment(template["spec"]["containers"][0])
            strategy = deployment["spec"]["strategy"]["type"]
            scaled = [one for one in made if one["kind"] == "HorizontalPodAutoscaler"]
            if env["FLOODGATE_STORE"] == "memory":
                self.assertEqual((deployment["spec"]["replicas"], strategy, scaled), (1, "Recreate", []), source)
                continue
            self.assertEqual(strategy, "RollingUpdate", source)
            surge = deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
            most = scaled[0]["spec"]["maxReplicas"] if scaled else deployment["spec"]["replicas"]
            # What an operator says instead is for an operator to answer for.
            least = int(env["FLOODGATE_MIN_GATEWAYS"])
            self.assertIn(least, [most + surge, deployment["spec"].get("replicas")], source)
            # Where it scales, nothing else says how many there are.
            self.assertEqual("replicas" in deployment["spec"], not scaled, source)

    def test_selectors_find_the_gateway_and_ports_are_there(self):
        for source, made, deployment, template in self.gateways():
            with self.subTest(source=source):
                labels = template["metadata"]["labels"]
                ports = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
                selector = deployment["spec"]["selector"]["matchLabels"]
                self.assertTrue(labels_fit(selector, labels))
                for spread in template["spec"]["topologySpreadConstraints"]:
                    self.assertTrue(labels_fit(spread["labelSelector"]["matchLabels"], labels))
                services = [one for one in made if one["kind"] == "Service"]
                found = 0
                for service in services:
                    if labels_fit(service["spec"]["selector"], labels):
                        found += 1
                        for port in service["spec"]["ports"]:
                            self.assertIn(port["targetPort"], ports)
                self.assertEqual(found, 2)
                for policy in (one for one in made if one["kind"] == "NetworkPolicy"):
                    if not labels_fit(policy["spec"]["podSelector"].get("matchLabels", {}), labels):
                        continue
                    for rule in policy["spec"]["ingress"]:
                        for port in rule["ports"]:
                            self.assertIn(port["port"], ports)
                            # Never open to all.
                            self.assertTrue(port["port"] != "admin" or rule["from"])
                for one in made:
                    if one["kind"] in ["PodDisruptionBudget", "PodMonitor"]:
                        self.assertTrue(labels_fit(one["spec"]["selector"]["matchLabels"], labels))
                    if one["kind"] == "ServiceMonitor":
                        wanted = one["spec"]["selector"]["matchLabels"]
                        monitored = [s for s in services if labels_fit(wanted, s["metadata"]["labels"])]
                        self.assertEqual([s["metadata"]["name"] for s in monitored], ["floodgate-admin"])
                    if one["kind"] == "HorizontalPodAutoscaler":
                        self.assertEqual(one["spec"]["scaleTargetRef"]["name"], deployment["metadata"]["name"])
                for probe in ["startupProbe", "livenessProbe", "readinessProbe"]:
                    self.assertIn(template["spec"]["containers"][0][probe]["httpGet"]["port"], ports)

    def test_no_port_of_a_headless_service_is_another(self):
        for source, made in render.sources():
            for service in (one for one in made if one["kind"] == "Service"):
                if service["spec"].get("clusterIP") != "None":
                    continue
                # Names lead to pods: what is called is their own port.
                ports = {
                    port["name"]: port["containerPort"]
                    for one in made
                    if one["kind"] in ["Deployment", "StatefulSet"]
                    and labels_fit(service["spec"]["selector"], one["spec"]["template"]["metadata"]["labels"])
                    for port in one["spec"]["template"]["spec"]["containers"][0]["ports"]
                }
                for port in service["spec"]["ports"]:
                    target = port["targetPort"]
                    self.assertEqual(port["port"], ports.get(target, target), f"{source} {service['metadata']['name']}")

    def test_upstreams_are_services_that_are_there(self):
        for name in render.OVERLAYS:
            made = render.overlay(name)
            config = tomllib.loads(render.named(made, "ConfigMap", "floodgate")["data"]["floodgate.toml"])
            for upstream in config["upstream"]:
                host, port = upstream.removeprefix("http://").split(":")
                service = render.named(made, "Service", host)
                self.assertEqual([one["port"] for one in service["spec"]["ports"]], [int(port)])
                # The example's pods are behind it.
                example = render.objects((render.DEPLOY / "examples/im-backend.yaml").read_text())
                pods = render.named(example, "Deployment")["spec"]["template"]
                self.assertTrue(labels_fit(service["spec"]["selector"], pods["metadata"]["labels"]))
                listened = [one["containerPort"] for one in pods["spec"]["containers"][0]["ports"]]
                self.assertEqual(listened, [int(port)])
                allowed = render.named(made, "NetworkPolicy")["spec"]["egress"]
                self.assertIn(int(port), [one["port"] for rule in allowed for one in rule["ports"]])

    def template(self, config, **values):
        """The pods that this config makes."""
        made = render.chart(Refused.GOOD | {"config": config} | values)
        return render.named(made, "Deployment")["spec"]["template"]

    def test_a_change_of_the_config_replaces_pods_only_where_it_is_to(self):
        for rolls in [False, True]:
            one, other = (
                self.template(f'edition = "{edition}"', rolloutOnConfigChange=rolls) for edition in ["v1", "v2"]
            )
            self.assertEqual(one != other, rolls)

    def test_pods_are_replaced_for_what_no_running_gateway_takes(self):
        reference = (render.REPOSITORY / "src/cli/reference.md").read_text()
        settings = re.findall(r"^\| `--[^|]*(?:\\\|[^|]*)*\| `FLOODGATE_\w+` \| `(\w+)` \|.*$", reference, re.MULTILINE)
        waits = {
            re.search(r"\| `FLOODGATE_\w+` \| `(\w+)` \|", line)[1]
            for line in reference.splitlines()
            if line.endswith("*(restart)* |")
        }
        self.assertIn("store", waits)
        self.assertLess(waits, set(settings))
        for key in settings:
            with self.subTest(setting=key):
                try:
                    made = self.template(f'{key} = "1"')
                except helm.HelmError as refused:
                    # A value of the chart's own, and so of the pods; or nothing for a pod.
                    self.assertRegex(str(refused), rf"config: {key} is (set by|of no use)")
                    continue
                self.assertEqual(made != self.template(""), key in waits)
