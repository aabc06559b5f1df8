"""Tests against a real cluster: the one that KUBECONFIG names, with operator and image there (`make cluster-up`)."""
