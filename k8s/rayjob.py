"""A run as an object: how it is made, and its state in one word.

The operator keeps two states (of the deployment and of the Ray job) and a reason; a person wants one word and a
sentence. A Ray job that somebody stopped counts as "Complete" for the operator; here it did not succeed.
"""

from dataclasses import dataclass, field
from typing import Any

from k8s.api import Object
from k8s.errors import ReleaseError
from k8s.recipe import Recipe
from k8s.release import Release
from k8s.wording import plain

RUN_LABEL = "codeparrot/run"
RECIPE_KEY = "recipe.yaml"
RECIPE_VOLUME = "recipe"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

NEW, STARTING, RUNNING, RETRYING = "new", "starting", "running", "retrying"
SUCCEEDED, FAILED, STOPPED, REFUSED = "succeeded", "failed", "stopped", "refused"
CANCELLING, CANCELLED = "cancelling", "cancelled"
QUEUED = "queued"
WAITING = {NEW, STARTING, QUEUED}
"""States before it runs."""
ENDED = {SUCCEEDED, FAILED, STOPPED, REFUSED}
"""States that nothing but a person leaves."""
AT_REST = ENDED | {CANCELLED}

MEANING = {
    NEW: "the operator has not taken it up yet",
    STARTING: "its cluster is being started",
    RUNNING: "the driver runs, or is about to",
    RETRYING: "an attempt failed; the next one gets a new cluster and continues from the newest checkpoint",
    SUCCEEDED: "done",
    FAILED: "it failed, and no retry is left",
    STOPPED: "somebody stopped the Ray job",
    REFUSED: "the operator does not accept it",
    CANCELLING: "its pods are stopping, after a last checkpoint",
    CANCELLED: "it has no pods; `resume` continues it",
    QUEUED: "its queue (Kueue) has not admitted it yet, or has taken its place away",
}
REASONS = {
    "SubmissionFailed": "the submitter could not submit the Ray job",
    "DeadlineExceeded": "it ran longer than its deadline (--deadline-seconds)",
    "PreRunningDeadlineExceeded": "it did not begin to run in time",
    "AppFailed": "the driver ended with an error",
    "JobDeploymentStatusTransitionGracePeriodExceeded": "the submitter did not notice that the driver had ended",
    "ValidationFailed": "the operator refused its spec",
}
DEPLOYMENT_STATES = {
    "": NEW, "New": NEW, "Initializing": STARTING, "Waiting": STARTING, "Running": RUNNING, "Retrying": RETRYING,
    "Suspending": CANCELLING, "Suspended": CANCELLED, "Failed": FAILED, "ValidationFailed": REFUSED,
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What a submission may say about retries and time; None leaves what the chart says."""

    retries: int | None = None
    deadline_seconds: int | None = None
    ttl_seconds: int | None = None

    @property
    def spec(self) -> Object:
        values = {
            "backoffLimit": self.retries,
            "activeDeadlineSeconds": self.deadline_seconds,
            "ttlSecondsAfterFinished": self.ttl_seconds,
        }
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class RayJob:
    """A RayJob as the API server has it."""

    object: Object = field(repr=False)

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.object["metadata"].get("labels") or {})

    @property
    def annotations(self) -> dict[str, str]:
        return dict(self.object["metadata"].get("annotations") or {})

    @property
    def run_name(self) -> str:
        return self.labels.get(RUN_LABEL, "-")

    @property
    def created(self) -> str:
        return str(self.object["metadata"].get("creationTimestamp", ""))

    @property
    def spec(self) -> dict[str, Any]:
        return dict(self.object.get("spec") or {})

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.object.get("status") or {})

    @property
    def cluster(self) -> str | None:
        """The RayCluster of its present attempt."""
        return self.status.get("rayClusterName") or None

    @property
    def queue(self) -> str | None:
        """The Kueue queue that decides when it may run."""
        return self.labels.get(QUEUE_LABEL)

    @property
    def state(self) -> str:
        deployment, job = self.status.get("jobDeploymentStatus") or "", self.status.get("jobStatus") or ""
        if deployment == "Complete":
            return {"SUCCEEDED": SUCCEEDED, "STOPPED": STOPPED}.get(job, FAILED)
        state = DEPLOYMENT_STATES.get(deployment, RUNNING)
        if self.queue and state in (CANCELLING, CANCELLED):
            return QUEUED  # suspending is how Kueue holds a job back
        if state == CANCELLED and not self.spec.get("suspend"):
            return NEW  # resumed, and the operator has not noticed yet
        if self.spec.get("suspend") and state in (NEW, STARTING, RUNNING, RETRYING):
            return QUEUED if self.queue else CANCELLING
        return state

    @property
    def sentence(self) -> str:
        """The state, what it means, and what the operator says about it."""
        reason, message = self.status.get("reason"), self.status.get("message")
        parts = [f"{self.state}: {MEANING[self.state]}"]
        if reason and self.state not in (SUCCEEDED, RUNNING, CANCELLED):
            parts.append(REASONS.get(reason, plain(reason)))
        if message and self.state != SUCCEEDED:
            parts.append(plain(message))
        failed, limit = self.status.get("failed") or 0, self.spec.get("backoffLimit") or 0
        if failed and self.state not in ENDED:
            parts.append(f"attempt {failed + 1} of {limit + 1}")
        return "; ".join(parts)


def make(release: Release, recipe: Recipe, name: str, limits: Limits) -> Object:
    """The manifest of a RayJob for this recipe. Raises ReleaseError."""
    manifest = release.rayjob(name)
    metadata, spec = manifest["metadata"], manifest["spec"]
    metadata["namespace"] = release.namespace
    metadata["labels"] = {**(metadata.get("labels") or {}), **release.labels, RUN_LABEL: recipe.run_name}
    spec.update({"suspend": False, **limits.spec})
    return manifest


def make_recipe(manifest: Object, created: Object, recipe: Recipe) -> Object:
    """The ConfigMap with the recipe that the manifest's head mounts; it goes when the RayJob goes."""
    metadata = created["metadata"]
    owner = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": False,
        "blockOwnerDeletion": False,
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": recipe_name(manifest),
            "namespace": metadata["namespace"],
            "labels": dict(manifest["metadata"]["labels"]),
            "ownerReferences": [owner],
        },
        "data": {RECIPE_KEY: recipe.text},
    }


def recipe_name(rayjob: Object) -> str:
    """The ConfigMap that a RayJob's head mounts as its recipe. Raises ReleaseError."""
    name = str(rayjob["metadata"]["name"])
    head = ((rayjob["spec"].get("rayClusterSpec") or {}).get("headGroupSpec") or {}).get("template") or {}
    volumes = (head.get("spec") or {}).get("volumes") or []
    for volume in volumes:
        if volume.get("name") == RECIPE_VOLUME and (volume.get("configMap") or {}).get("name"):
            return str(volume["configMap"]["name"])
    seen = ", ".join(str(volume.get("name")) for volume in volumes) or "none"
    raise ReleaseError(f"RayJob {name}: expected a volume {RECIPE_VOLUME!r} of its head, with a ConfigMap; seen {seen}")
