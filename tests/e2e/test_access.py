"""Keys and TLS at the real daemon: over HTTP and gRPC alike, and through a gateway of its own."""

import json
import ssl
import time
import urllib.error
import urllib.request

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from openai import AuthenticationError, OpenAI

from daemon.access import keys as keys_module
from daemon.access.keys import Key, hash_of, new_secret, write_keys
from quantd.v1 import generate_pb2 as pb
from quantd.v1 import generate_service_pb2_grpc
from tests.e2e.harness import small

REQUEST = pb.GenerateRequest(text="Hello", options=pb.GenerationOptions(max_tokens=2))


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    ca, other = trustme.CA(), trustme.CA()
    server, client, stranger = (
        ca.issue_cert("127.0.0.1"),
        ca.issue_cert("client@here"),
        other.issue_cert("x@y"),
    )
    ca.cert_pem.write_to_path(folder / "ca.pem")
    server.private_key_pem.write_to_path(folder / "key.pem")
    server.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    for name, made in (("client", client), ("stranger", stranger)):
        made.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    return folder, ca, client


def tls_options(folder):
    return ("--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem")


def stub(channel):
    return generate_service_pb2_grpc.GenerateServiceStub(channel)


def code_of(events):
    with pytest.raises(grpc.RpcError) as caught:
        list(events)
    return caught.value.code()


def ask(client):
    return client.completions.create(model="demo", prompt="Hello", max_tokens=2)


def test_keys_over_http_grpc_and_through_a_gateway(start, models, tmp_path):
    path, one, two = tmp_path / "keys.toml", new_secret(), new_secret()
    write_keys(path, [Key("one", hash_of(one), tokens_per_minute=100_000)])
    daemon = start(*small(models), "--keys-file", path)
    gateway = start("--target", daemon.grpc, "--http", "127.0.0.1:0", command="gateway", wait=False)
    behind = gateway.wait_for(r"(http://\S+)/v1$")[1]

    for url in (daemon.url, behind):
        assert ask(OpenAI(base_url=f"{url}/v1", api_key=one)).usage.completion_tokens >= 1
        with pytest.raises(AuthenticationError) as caught:
            ask(OpenAI(base_url=f"{url}/v1", api_key=two))
        assert caught.value.code == "invalid_api_key"
        assert caught.value.response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/v1/models", timeout=5)
        assert refused.value.code == 401
        for open_path in ("livez", "readyz"):
            assert urllib.request.urlopen(f"{url}/{open_path}", timeout=5).status == 200

    with grpc.insecure_channel(daemon.grpc) as channel:
        events = list(stub(channel).Generate(REQUEST, metadata=(("authorization", f"Bearer {one}"),)))
        assert events[-1].HasField("done")
        for metadata in ((), (("authorization", f"Bearer {two}"),), (("authorization", "Basic x"),)):
            assert (
                code_of(stub(channel).Generate(REQUEST, metadata=metadata)) is grpc.StatusCode.UNAUTHENTICATED
            )
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert health.status == health_pb2.HealthCheckResponse.SERVING

    # The file changes; nothing is restarted.
    write_keys(path, [Key("two", hash_of(two))])
    time.sleep(keys_module.CHECK_S + 0.2)
    assert ask(OpenAI(base_url=f"{daemon.url}/v1", api_key=two)).usage.completion_tokens >= 1
    with pytest.raises(AuthenticationError):
        ask(OpenAI(base_url=f"{daemon.url}/v1", api_key=one))


def test_tls_on_both_listeners_and_to_the_gateway(start, models, authority):
    folder, ca, _ = authority
    daemon = start(*small(models), *tls_options(folder))
    assert daemon.url.startswith("https://")
    context = ssl.create_default_context(cadata=ca.cert_pem.bytes().decode())
    body = json.dumps({"model": "demo", "prompt": "Hello", "max_tokens": 2}).encode()
    request = urllib.request.Request(
        f"{daemon.url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20, context=context) as answer:
        assert json.load(answer)["choices"]
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        urllib.request.urlopen(f"{daemon.url}/livez", timeout=5)
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{daemon.url.replace('https', 'http')}/livez", timeout=5)

    credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
    with grpc.secure_channel(daemon.grpc, credentials) as channel:
        assert list(stub(channel).Generate(REQUEST, timeout=20))[-1].HasField("done")
    with grpc.insecure_channel(daemon.grpc) as channel:
        assert code_of(stub(channel).Generate(REQUEST, timeout=5)) is grpc.StatusCode.UNAVAILABLE

    gateway = start(
        "--target", daemon.grpc, "--target-ca", folder / "ca.pem", "--http", "127.0.0.1:0", *tls_options(folder),
        command="gateway", wait=False,
    )  # fmt: skip
    behind = gateway.wait_for(r"(https://\S+)/v1$")[1]
    assert urllib.request.urlopen(f"{behind}/readyz", timeout=5, context=context).status == 200


def test_mutual_tls_asks_both_kinds_of_clients(start, models, authority):
    folder, ca, client = authority
    daemon = start(*small(models), *tls_options(folder), "--tls-client-ca", folder / "ca.pem")
    root = ca.cert_pem.bytes()
    context = ssl.create_default_context(cadata=root.decode())
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{daemon.url}/livez", timeout=5, context=context).read()
    context.load_cert_chain(folder / "stranger.pem")
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{daemon.url}/livez", timeout=5, context=context).read()
    context = ssl.create_default_context(cadata=root.decode())
    context.load_cert_chain(folder / "client.pem")
    assert urllib.request.urlopen(f"{daemon.url}/livez", timeout=5, context=context).status == 200

    with grpc.secure_channel(daemon.grpc, grpc.ssl_channel_credentials(root)) as channel:
        assert code_of(stub(channel).Generate(REQUEST, timeout=5)) is grpc.StatusCode.UNAVAILABLE
    own = grpc.ssl_channel_credentials(
        root, client.private_key_pem.bytes(), client.cert_chain_pems[0].bytes()
    )
    with grpc.secure_channel(daemon.grpc, own) as channel:
        assert list(stub(channel).Generate(REQUEST, timeout=20))[-1].HasField("done")


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (("--http", "0.0.0.0:0"), 64, "no keys"),
        (("--grpc", "0.0.0.0:0", "--tls-cert", "x", "--tls-key", "y"), 64, "no keys"),
        (("--http", "0.0.0.0:0", "--keys-file", "x"), 64, "no TLS"),
        (("--tls-cert", "x"), 78, "--tls-key"),
        (("--tls-client-ca", "x"), 64, "--tls-cert"),
        (("--tls-cert", "/dev/null", "--tls-key", "/dev/null"), 78, "TLS files"),
        (("--keys-file", "/nonexistent/keys.toml"), 78, "keys.toml"),
    ],
)
def test_what_does_not_start(start, models, options, code, part):
    daemon = start(*small(models), *options, wait=False)
    assert daemon.wait() == code
    assert part in "".join(daemon.err)
