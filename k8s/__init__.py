"""The client: a small command, `python -m k8s`, between a person and the runs of a Helm release.

It stands alone: it knows Kubernetes and the operator's objects, and neither ray nor torch nor the library. The chart is
the only renderer of pods; this package fills a name and a recipe into what the chart rendered, and then watches.
Everything that talks to a cluster takes its transport as an argument, and everything that waits takes its clock.

What it builds on, each module on those above it:

    errors      every error a person can meet, and its exit code
    waiting     waiting for a condition with a deadline, and the clock
    tools       the programs of others (docker, kind, kubectl, helm): finding and running them
    api         objects of the API server as plain values, and what its refusals mean
    connection  the transport: kubeconfig or service account, through the `kubernetes` package
    wording     ages, durations, tables; text of others that is safe on a terminal
    names       names of RayJobs
    quantity    "500m" and "1Gi" as numbers
    progress    the status file of a driver, the annotations made from it, the line a person reads
    annotate    the loop of the status sidecar
    recipe      a recipe checked and resolved by the stages' own code
    release     a release of the chart: what it rendered for runs
    rayjob      a run as an object: making it, its state in one word
    pods        why a pod does not run, in plain words
    picture     a run with its pods and events, read together
    follow      watching a run until it ends
    jobs        submit, list, status, cancel, resume
    logs        the driver's log
    dashboard   a port-forward to the head
    score       completions scored in a pod without network
    findings    the lines of the doctor
    outside     what the doctor asks the API server
    inside      what the doctor asks in a pod
    operator    the KubeRay operator: its versions, installing it
    kind        the local cluster
    options     the command line
    __main__    the commands: what `python -m k8s` does
"""
