#!/usr/bin/env python3
"""Brings a machine into a mesh and a policy into force, as automation would: make a token, join, apply, watch until installed.

    python3 -m venv env && env/bin/pip install -r requirements.txt
    env/bin/python automate.py --server mesh.example.org:443 --ca coordinator.crt --key-file api.key --policy policy.toml

The key is one that `meshctl key create --role operator` made, the certificate what `meshctl coordinator ca` prints. The node daemon of
this machine must be running (`meshctl node up`), and this program be run by root, since joining changes the machine.

What comes to nothing it asks again, by the same request: each change carries a request id, by which the coordinator knows a repetition
and does nothing twice.
"""

import argparse
import importlib.resources
import json
import pathlib
import sys
import tempfile
import time
import uuid

import grpc
from google.rpc import error_details_pb2 as details
from grpc_status import rpc_status

PROTO = pathlib.Path(__file__).resolve().parents[3] / "proto"
# No call waits for ever; the longest is the one that waits for nodes.
DEADLINE = 10
WATCH_DEADLINE = 30
# Seconds to wait before each repetition; a coordinator that is started again serves soon.
DELAYS = (1, 2, 4, 8)


def generate(out):
    """Makes Python of the .proto files. A real project does so once and keeps the result."""
    from grpc_tools import protoc

    files = [str(path.relative_to(PROTO)) for path in PROTO.glob("ringmesh/*/v1/*.proto")]
    include = str(importlib.resources.files("grpc_tools") / "_proto")
    if protoc.main(["protoc", f"-I{PROTO}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}", *files]):
        sys.exit("protoc failed")
    sys.path.insert(0, out)


with tempfile.TemporaryDirectory() as folder:
    generate(folder)
    from ringmesh.admin.v1 import admin_pb2 as admin, admin_pb2_grpc as admin_grpc
    from ringmesh.local.v1 import local_pb2 as local, local_pb2_grpc as local_grpc


class Key(grpc.AuthMetadataPlugin):
    """Sends an API key with each call. grpc takes it only over TLS, so it cannot go out in clear by mistake."""

    def __init__(self, secret):
        self._secret = secret

    def __call__(self, context, callback):
        callback((("authorization", f"Bearer {self._secret}"),), None)


def connect(server, ca, key):
    trust = grpc.ssl_channel_credentials(root_certificates=ca)
    return grpc.secure_channel(server, grpc.composite_channel_credentials(trust, grpc.metadata_call_credentials(Key(key))))


def again(call, request):
    """Calls with the same request until there is an answer, a refusal, or no delay left."""
    for delay in (*DELAYS, None):
        try:
            return call(request, timeout=DEADLINE)
        except grpc.RpcError as error:
            if delay is None or error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise
            print(f"again in {delay}s: {error.details()}", file=sys.stderr)
            time.sleep(delay)


def reason(error):
    """The reason of a refusal in a word, by which a program tells one from another."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = details.ErrorInfo()
        if detail.Unpack(info):
            return info.reason
    return error.code().name


def join(socket, token, name):
    """Has the node daemon of this machine join; returns its status."""
    # What gRPC would take for an authority, the path with its slashes escaped, is none by RFC 3986, and refused.
    with grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")]) as channel:
        daemon = local_grpc.LocalServiceStub(channel)
        for progress in daemon.Join(local.JoinRequest(token=token, name=name), timeout=60):
            if progress.WhichOneof("step") == "done":
                return progress.done.status
            print("joining:", progress.doing, file=sys.stderr)
    raise RuntimeError("the stream ended before the node had joined")


def wait_installed(events, revision):
    """Reads events until every node that is online has `revision` in its data plane."""
    for message in events:
        for event in message.events:
            if event.name == "revision_installed" and int(event.details["revision"]) >= revision:
                return event
    raise RuntimeError("the stream of events ended")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", required=True, help="the coordinator, HOST:PORT")
    parser.add_argument("--ca", required=True, type=pathlib.Path, help="its certificate, PEM")
    parser.add_argument("--key-file", required=True, type=pathlib.Path, help="a file with an API key")
    parser.add_argument("--policy", required=True, type=pathlib.Path, help="the policy to apply, TOML")
    parser.add_argument("--network", default="", help="the network, if there are several")
    parser.add_argument("--socket", default="/run/mesh/meshd.sock", help="this machine's node daemon")
    parser.add_argument("--name", default="", help="the name of this machine in the mesh")
    options = parser.parse_args()

    with connect(options.server, options.ca.read_bytes(), options.key_file.read_text().strip()) as channel:
        tokens = admin_grpc.TokenServiceStub(channel)
        created = again(
            tokens.CreateToken, admin.CreateTokenRequest(network=options.network, ttl_seconds=600, request_id=str(uuid.uuid4()))
        )
        status = join(options.socket, created.secret, options.name)

        # Before the change, so that nothing of it can be missed.
        events = admin_grpc.EventServiceStub(channel).WatchEvents(
            admin.WatchEventsRequest(network=options.network, names=["policy_applied", "revision_installed"]), timeout=WATCH_DEADLINE
        )
        # The first answer says that the watch is on.
        next(events)
        applied = again(
            admin_grpc.PolicyServiceStub(channel).ApplyPolicy,
            admin.ApplyPolicyRequest(
                network=options.network,
                text=options.policy.read_text(),
                comment="by an example in Python",
                request_id=str(uuid.uuid4()),
            ),
        )
        if applied.changed:
            wait_installed(events, applied.revision)
        events.cancel()
        installed = again(
            admin_grpc.NodeServiceStub(channel).WaitInstalled,
            admin.WaitInstalledRequest(network=options.network, revision=applied.revision, wait_ms=5000),
        )
    print(
        json.dumps(
            {
                "node": getattr(status.network, "self").name,
                "revision": applied.revision,
                "changed": applied.changed,
                "installed": sorted(installed.installed),
                "behind": sorted(node.name for node in installed.behind),
            }
        )
    )


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"error: {reason(error)}: {error.details()}")
