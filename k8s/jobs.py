"""What a person does with runs: submit, list, status, cancel, resume.

Cancelling suspends the RayJob instead of deleting it: the operator deletes the cluster, the pods' preStop hooks let
the driver commit a checkpoint, and the RayJob stays, so that resuming is one switch. A run that failed cannot be
switched on again; resuming it makes a new RayJob with the same recipe, which continues from the same store.
"""

import contextlib
from collections.abc import Callable

from k8s import names, rayjob
from k8s.api import CONFIG_MAP, RAY_JOB, Api
from k8s.errors import AlreadyExists, ClientError, NotFound, ReleaseError, RunError
from k8s.picture import load, look
from k8s.progress import LOSS, STEP, is_stale, line
from k8s.rayjob import AT_REST, CANCELLED, CANCELLING, ENDED, RUNNING, SUCCEEDED, Limits, RayJob
from k8s.recipe import Recipe, parse
from k8s.release import INSTANCE, Release, find, own_recipe
from k8s.wording import age, plain, table

NUM_NAMES = 3
STALE_SECONDS = 120.0


def submit(
    api: Api,
    release: Release,
    recipe: Recipe,
    limits: Limits,
    name: str | None = None,
    make_name: Callable[[str], str] = names.unique,
) -> str:
    """Create the RayJob and its recipe, and return its name. Raises AlreadyExists for a name that a person chose."""
    release.check(recipe, own_recipe(api, release))
    if name is not None:
        return _create(api, release, recipe, limits, names.checked(name))
    for _ in range(NUM_NAMES - 1):
        with contextlib.suppress(AlreadyExists):
            return _create(api, release, recipe, limits, make_name(recipe.run_name))
    return _create(api, release, recipe, limits, make_name(recipe.run_name))


def _create(api: Api, release: Release, recipe: Recipe, limits: Limits, name: str) -> str:
    manifest = rayjob.make(release, recipe, name, limits)
    if rayjob.recipe_name(manifest) == f"{release.fullname}-recipe":
        raise ReleaseError(f"release {api.namespace}/{release.name}: its runs would all get the release's recipe")
    created = api.create(RAY_JOB, manifest)
    try:
        # Second, since its owner must exist; a pod takes longer to get to the point of mounting it.
        api.create(CONFIG_MAP, rayjob.make_recipe(manifest, created, recipe))
    except ClientError as error:
        api.delete(RAY_JOB, name)
        raise RunError(
            f"RayJob {api.namespace}/{name} was taken back, since its recipe could not be made: {error}"
        ) from error
    return name


def runs(api: Api, wall: float, release: str | None = None) -> list[str]:
    """A table of the runs of a namespace, or of one release, newest first."""
    found = [RayJob(each) for each in api.select(RAY_JOB, f"{INSTANCE}={release}" if release else "")]
    found.sort(key=lambda job: (job.created, job.name), reverse=True)
    if not found:
        return [f"no runs in namespace {api.namespace}" + (f", release {release}" if release else "")]
    rows = [
        [
            job.name,
            job.run_name,
            job.state,
            job.annotations.get(STEP, "-"),
            job.annotations.get(LOSS, "-"),
            age(job.created, wall),
        ]
        for job in found
    ]
    return table(("NAME", "RUN", "STATE", "STEP", "LOSS", "AGE"), rows)


def status(api: Api, name: str, wall: float) -> list[str]:
    """All that is known about a run, in plain words. Raises NotFound."""
    picture = look(api, load_run(api, name))
    job = picture.job
    failed, limit = job.status.get("failed") or 0, job.spec.get("backoffLimit") or 0
    lines = [
        f"RayJob {api.namespace}/{name}, run {plain(job.run_name)}, submitted {age(job.created, wall)} ago",
        job.sentence,
    ]
    lines.append(f"failed attempts: {failed} of {limit + 1} allowed; RayCluster: {job.cluster or 'none'}")
    progress = line(job.annotations)
    if progress:
        stale = job.state == RUNNING and is_stale(job.annotations, wall, STALE_SECONDS)
        lines.append(f"progress: {progress}" + ("  (old: no news for over two minutes)" if stale else ""))
    if picture.pods:
        lines += ["", *picture.pod_lines(wall)]
    problems = [] if job.state == SUCCEEDED else picture.problems(wall)
    if problems:
        lines += ["", "problems:", *(f"- {problem}" for problem in problems)]
    events = picture.event_lines(wall)
    if events:
        lines += ["", "last events:", *events]
    return lines


def cancel(api: Api, name: str) -> str:
    """Suspend a run; says what happens next. Raises RunError if the operator would not allow it."""
    job = load_run(api, name)
    where = f"RayJob {api.namespace}/{name}"
    if job.state in AT_REST or job.state == CANCELLING:
        return f"{where} is {job.state} already; nothing was changed"
    if job.queue:
        raise RunError(
            f"{where}: queue {job.queue} (Kueue) decides when it is suspended and would start it again; "
            f"`kubectl delete rayjob {name} --namespace {api.namespace}` ends it, after a last checkpoint"
        )
    if not job.spec.get("shutdownAfterJobFinishes"):
        raise RunError(
            f"{where}: the operator suspends only RayJobs with shutdownAfterJobFinishes: true; "
            f"`kubectl delete rayjob {name} --namespace {api.namespace}` ends it for good"
        )
    api.patch(RAY_JOB, name, {"spec": {"suspend": True}})
    return (
        f"{where}: cancelling; its pods commit a checkpoint and go\n"
        f"  to continue it: python -m k8s resume {name} --namespace {api.namespace}"
    )


def resume(api: Api, name: str, make_name: Callable[[str], str] = names.unique) -> str:
    """Continue a run, and return the name of the RayJob that does. Raises RunError if there is nothing to continue."""
    job = load_run(api, name)
    if job.state in (CANCELLED, CANCELLING):
        # While it is still cancelling, the operator finishes that first and then starts it again.
        api.patch(RAY_JOB, name, {"spec": {"suspend": False}})
        return name
    if job.state == SUCCEEDED:
        raise RunError(f"RayJob {api.namespace}/{name} has succeeded; there is nothing to resume")
    if job.state not in ENDED:
        raise RunError(f"RayJob {api.namespace}/{name} is {job.state}; there is nothing to resume")
    kept = job.spec
    limits = Limits(
        kept.get("backoffLimit"), kept.get("activeDeadlineSeconds"), kept.get("ttlSecondsAfterFinished")
    )  # fmt: skip
    return submit(api, find(api, job.labels.get(INSTANCE)), _recipe_of(api, job), limits, make_name=make_name)


def _recipe_of(api: Api, job: RayJob) -> Recipe:
    found = api.find(CONFIG_MAP, rayjob.recipe_name(job.object))
    if found is None:
        raise RunError(f"RayJob {api.namespace}/{job.name}: its recipe is gone; submit the recipe file instead")
    return parse(str((found.get("data") or {})[rayjob.RECIPE_KEY]))


def load_run(api: Api, name: str) -> RayJob:
    """Raises NotFound, naming the runs there are."""
    try:
        return load(api, name)
    except NotFound as error:
        there = sorted(str(each["metadata"]["name"]) for each in api.select(RAY_JOB))
        known = f"there are {', '.join(there[:20])}" if there else "there are none"
        raise NotFound(f"no RayJob {api.namespace}/{name}; {known}") from error
