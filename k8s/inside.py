"""What the doctor asks in a pod: Ray's version, the store, the token, the clock, /dev/shm.

Each question is a short program for the pod's own Python, run by `exec`, that prints one JSON object. So it sees what a
run sees: the pod's environment, credentials, name resolution and network policies.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from k8s.api import Object
from k8s.connection import Cluster
from k8s.errors import ClientError
from k8s.findings import Finding, failed, ok, warning
from k8s.waiting import Clock
from k8s.wording import plain

SHM = "/dev/shm"  # noqa: S108
SHM_DEFAULT_BYTES = 64 * 2**20
"""What container runtimes give when nobody asks for more."""
MAX_SKEW_SECONDS, WARN_SKEW_SECONDS = 300.0, 5.0
"""S3 refuses signatures that are 15 minutes off; well before that, something is wrong."""

RAY = "import json, ray; print(json.dumps({'version': ray.__version__}))"
CLOCK = "import json, time; print(json.dumps({'time': time.time()}))"
SHM_SIZE = "import json, os; s = os.statvfs('/dev/shm'); print(json.dumps({'size': s.f_blocks * s.f_frsize}))"
STORE = """
import json, sys
import boto3
from botocore.config import Config
config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
client = boto3.client("s3", config=config)
try:
    client.list_objects_v2(Bucket=sys.argv[1], MaxKeys=1)
    print(json.dumps({"endpoint": client.meta.endpoint_url}))
except Exception as error:
    print(json.dumps({"endpoint": client.meta.endpoint_url, "error": f"{type(error).__name__}: {error}"}))
"""
ASK_JOBS_PORT = """
import json, os, urllib.error, urllib.request
def ask(headers):
    request = urllib.request.Request("http://127.0.0.1:8265/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
path = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
token = open(path).read().strip() if path and os.path.exists(path) else os.environ.get("RAY_AUTH_TOKEN", "")
answers = {"without": ask({}), "file": bool(path), "env": bool(os.environ.get("RAY_AUTH_TOKEN"))}
answers["with"] = ask({"Authorization": "Bearer " + token}) if token else None
print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Inside:
    """Checks in the pods of one release; `head` and `training` are running pods."""

    cluster: Cluster
    clock: Clock

    def ask(self, pod: Object, program: str, *arguments: str) -> dict[str, Any]:
        """What a program in the pod's Ray container prints. Raises ClientError."""
        name = str(pod["metadata"]["name"])
        container = str(pod["spec"]["containers"][0]["name"])
        done = self.cluster.execute(name, container, ["python", "-c", program, *arguments])
        lines = done.out.strip().splitlines()
        if done.code != 0 or not lines:
            raise ClientError(f"Pod {name}: python ended with exit code {done.code}: {plain(done.err[-400:])}")
        try:
            value: dict[str, Any] = json.loads(lines[-1])
        except ValueError as error:
            raise ClientError(f"Pod {name}: expected JSON, seen {plain(lines[-1])}") from error
        return value

    def ray_version(self, head: Object, declared: str) -> Iterator[Finding]:
        """Whether the image has the Ray that the RayCluster says it has."""
        found = str(self.ask(head, RAY).get("version"))
        if found == declared:
            yield ok("Ray", f"{found} in the image and in rayVersion")
        else:
            advice = "the operator decides by rayVersion: set the chart's rayVersion to that of the image"
            yield failed("Ray", f"the image has {plain(found)}, rayVersion says {plain(declared)}", advice)

    def store(self, head: Object, bucket: str) -> Iterator[Finding]:
        """Whether the store answers to a pod, with its credentials."""
        found = self.ask(head, STORE, bucket)
        where = f"bucket {bucket} at {plain(found.get('endpoint'))}"
        if "error" in found:
            advice = "look at the store's pod, at the credentials Secret and at the network policies"
            yield failed("store", f"{where}: {plain(found['error'])}", advice)
        else:
            yield ok("store", f"{where} answers to a pod")

    def token(self, head: Object) -> Iterator[Finding]:
        """Whether the head's jobs port wants a token, and takes ours."""
        found = self.ask(head, ASK_JOBS_PORT)
        without, with_token = found.get("without"), found.get("with")
        if without != 401:
            advice = "whoever reaches the head runs code there: set authOptions.mode to token (the chart does)"
            yield failed("token", f"a request without a token gets {without}, not 401", advice)
        elif with_token is None:
            yield failed("token", "the head has no token of its own to read", "is the Secret F-ray-token mounted?")
        elif with_token != 200:
            advice = "was the Secret changed? Pods read it when they start: delete the head's pod"
            yield failed("token", f"a request with the token of the Secret gets {with_token}, not 200", advice)
        elif found.get("env"):
            yield warning("token", "wanted, and in the pod's environment", "the chart keeps it in a file; upgrade it")
        else:
            yield ok("token", "wanted (401 without), accepted, and in no environment")

    def skew(self, head: Object) -> Iterator[Finding]:
        """Whether the clocks of the API server and of a pod agree."""
        api = self.cluster.api
        before = self.clock.wall()
        date = {key.lower(): value for key, value in api.raw("/version").headers.items()}.get("date")
        middle = self.clock.wall()
        pod = float(self.ask(head, CLOCK)["time"])
        after = self.clock.wall()
        if date is None:
            yield warning("clock", "the API server does not tell its time", "compare `date` on the nodes")
            return
        # Against this machine's clock, whatever that shows; the header counts whole seconds.
        server_ahead = parsedate_to_datetime(date).timestamp() + 0.5 - (before + middle) / 2
        skew = abs(pod - (middle + after) / 2 - server_ahead)
        slack = (after - before) / 2 + 0.5
        if skew - slack > MAX_SKEW_SECONDS:
            yield failed("clock", f"{skew:.0f} s between API server and pod", "run a time service on the nodes")
        elif skew - slack > WARN_SKEW_SECONDS:
            yield warning("clock", f"{skew:.0f} s between API server and pod", "run a time service on the nodes")
        else:
            yield ok("clock", f"API server and pod agree within {max(skew, slack):.1f} s")

    def shared_memory(self, training: Object) -> Iterator[Finding]:
        """Whether a training pod has more than the default /dev/shm."""
        size = int(self.ask(training, SHM_SIZE)["size"])
        shown = f"{size / 2**20:,.0f} MiB in Pod {training['metadata']['name']}"
        if size <= SHM_DEFAULT_BYTES:
            yield failed(SHM, f"{shown}, the runtime's default", "Ray keeps objects there: set pods.shmSize")
        else:
            yield ok(SHM, shown)
