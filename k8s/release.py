"""A release of the chart, as far as runs need it.

The chart is the only renderer of pods. It leaves a whole RayJob in ConfigMap F-rayjob, with RAYJOB_NAME wherever a
run's name belongs; a submission fills that in. So a run's pods are what `helm upgrade` last made them, security
settings included, and this client cannot disagree with the chart.
"""

from dataclasses import dataclass
from typing import Any

import yaml

from k8s.api import CONFIG_MAP, Api, Object
from k8s.errors import ReleaseError
from k8s.recipe import Recipe

NAME, INSTANCE, COMPONENT = (f"app.kubernetes.io/{key}" for key in ("name", "instance", "component"))
CHART = "codeparrot"
TEMPLATE_KEY = "rayjob.yaml"
SUFFIX = "-rayjob"
PLACEHOLDER = "RAYJOB_NAME"


@dataclass(frozen=True)
class Release:
    """One release in one namespace."""

    namespace: str
    name: str
    fullname: str
    """What the chart's objects are called: the F of the documentation."""
    template: str
    """A RayJob as YAML, nameless."""

    @property
    def labels(self) -> dict[str, str]:
        return {NAME: CHART, INSTANCE: self.name}

    def rayjob(self, name: str) -> Object:
        """The RayJob that the chart rendered, under this name. Raises ReleaseError."""
        where = f"ConfigMap {self.namespace}/{self.fullname}{SUFFIX}, key {TEMPLATE_KEY}"
        if PLACEHOLDER not in self.template:
            raise ReleaseError(f"{where}: expected {PLACEHOLDER} as its name; was it made by another chart?")
        try:
            manifest: Any = yaml.safe_load(self.template.replace(PLACEHOLDER, name))
        except yaml.YAMLError as error:
            raise ReleaseError(f"{where}: not YAML: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("kind") != "RayJob":
            raise ReleaseError(f"{where}: expected a RayJob")
        if not isinstance(manifest.get("metadata"), dict) or not isinstance(manifest.get("spec"), dict):
            raise ReleaseError(f"{where}: expected metadata and spec")
        if manifest["metadata"].get("name") != name:
            raise ReleaseError(f"{where}: expected metadata.name {PLACEHOLDER}")
        return manifest

    def check(self, recipe: Recipe, own: str | None) -> None:
        """Raises ReleaseError if the release's embedded store has no such bucket; `own` is the release's own recipe."""
        if f"{self.fullname}-store." not in self.template or not own:
            return
        values: Any = yaml.safe_load(own)
        uri = values.get("storage", {}).get("uri", "") if isinstance(values, dict) else ""
        bucket = str(uri).removeprefix("s3://").partition("/")[0]
        if bucket and bucket != recipe.bucket:
            raise ReleaseError(
                f"storage.uri: {recipe.storage_uri!r}: the embedded store of release {self.namespace}/{self.name} has "
                f"bucket {bucket!r} and no {recipe.bucket!r}; --set storage.uri=s3://{bucket}/{recipe.run_name}"
            )


def find(api: Api, name: str | None = None) -> Release:
    """The release of this name, or the only one. Raises ReleaseError, listing those there are."""
    found = [each for each in map(_release, api.select(CONFIG_MAP, f"{NAME}={CHART}")) if each is not None]
    names = sorted(each.name for each in found)
    if name is not None:
        for each in found:
            if each.name == name:
                return each
        there = f"it has {', '.join(names)}" if names else "it has none"
        raise ReleaseError(f"namespace {api.namespace}: no release {name!r} of the chart; {there}")
    if not found:
        raise ReleaseError(
            f"namespace {api.namespace}: no release of the chart; `helm install codeparrot helm/codeparrot "
            f"--namespace {api.namespace} --create-namespace` makes one, --namespace looks elsewhere"
        )
    if len(found) > 1:
        raise ReleaseError(
            f"namespace {api.namespace} has {len(found)} releases: {', '.join(names)}; choose by --release"
        )
    return found[0]


def own_recipe(api: Api, release: Release) -> str | None:
    """The recipe in the release's values."""
    found = api.find(CONFIG_MAP, f"{release.fullname}-recipe")
    return None if found is None else (found.get("data") or {}).get("recipe.yaml")


def _release(config_map: Object) -> Release | None:
    metadata = config_map["metadata"]
    template = (config_map.get("data") or {}).get(TEMPLATE_KEY)
    name = (metadata.get("labels") or {}).get(INSTANCE)
    if not template or not name or not str(metadata["name"]).endswith(SUFFIX):
        return None
    return Release(str(metadata["namespace"]), str(name), str(metadata["name"]).removesuffix(SUFFIX), str(template))
