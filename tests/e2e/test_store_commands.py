"""`quantd create`, `plan`, `pull`, `ps` and `stop` as processes: files and servers of this machine, keys and TLS."""

import json
import os
import shutil
import subprocess
import sys

import trustme
from click.testing import CliRunner

from daemon.access.keys import Key, hash_of, new_secret, write_keys
from daemon.cli import root
from tests.e2e.harness import ROOT, environment, small
from tests.store.server import Files, Hub, Registry


def quantd(*arguments, text=None, **variables):
    return subprocess.run(
        [sys.executable, "-m", "daemon", *map(str, arguments)],
        cwd=ROOT,
        env=environment(**variables),
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def inside(*arguments, text=None, **variables):
    """The same in this process, which is quicker where the process itself is not what is tried."""
    inherited = {key: None for key in os.environ if key.startswith(("QUANTD_", "OLLAMA_"))}
    done = CliRunner().invoke(
        root,
        [str(one) for one in arguments],
        input=text,
        env={**inherited, **variables},
        standalone_mode=False,
    )
    if done.exception is not None:
        raise done.exception
    return done


def test_a_modelfile_becomes_a_model(models, tmp_path):
    where = ("--store-dir", tmp_path / "store", "--models-dir", models)
    (tmp_path / "weights").mkdir()
    shutil.copy(models / "demo-f16.gguf", tmp_path / "weights")
    (tmp_path / "Modelfile").write_text(
        "FROM ./weights/demo-f16.gguf\nPARAMETER num_predict 7\nPARAMETER temperature 0\n"
        'SYSTEM "Be brief."\nMESSAGE user Hi\nMESSAGE assistant Hello.\nLICENSE MIT\n'
    )
    made = quantd("create", "brief", "-f", tmp_path / "Modelfile", "--quantize", "Q4_0", "--json", *where)
    assert made.returncode == 0, made.stderr
    events = [json.loads(line) for line in made.stdout.splitlines()]
    assert events[-1]["event"] == "result"
    assert events[-1]["name"] == "brief:latest"
    assert any(0 < event.get("completed_bytes", 0) == event["total_bytes"] for event in events[:-1])
    shown = json.loads(inside("show", "brief", "--json", *where).stdout)
    assert shown["model"]["quantization"] == "Q4_0"
    assert shown["parameters"]["max_tokens"] == 7
    assert shown["source"] == "demo-f16.gguf, quantized to Q4_0"
    # And from itself, out of a pipe; the same weights are kept once.
    text = inside("show", "brief", "--only", "modelfile", *where).stdout
    assert 'SYSTEM """Be brief."""' in text
    again = inside("create", "again", "-f", "-", *where, text=text + "PARAMETER top_k 5\n")
    assert "again:latest is in the store" in again.stdout
    one, two = shown, json.loads(inside("show", "again", "--json", *where).stdout)
    assert one["model"]["digest"] == two["model"]["digest"]
    assert (one["system"], one["messages"], one["licenses"]) == (
        two["system"],
        two["messages"],
        two["licenses"],
    )
    assert two["parameters"]["sampling"]["top_k"] == 5


def test_plans_and_pulls_of_servers_elsewhere(models, tmp_path):
    files = Files()
    hub, registry = Hub(files), Registry(files)
    q4, f16 = ((models / name).read_bytes() for name in ("demo.gguf", "demo-f16.gguf"))
    hub.add("owner/demo", {"demo-Q4_K_M.gguf": q4, "demo-F16.gguf": f16})
    registry.add(
        "library/demo:latest", [("model", q4), ("system", b"Be brief."), ("params", b'{"top_k": 3}')]
    )
    variables = {"QUANTD_HUB": hub.url, "QUANTD_REGISTRY": registry.url}
    where = ("--store-dir", tmp_path)
    try:
        plan = json.loads(quantd("plan", "hf.co/owner/demo:F16", "--json", **variables).stdout)
        assert plan["fits"]
        assert plan["weights_bytes"] == len(f16)
        assert {one["quantization"]: one["fits"] for one in plan["variants"]} == {"Q4_K_M": True, "F16": True}
        local = json.loads(inside("plan", models / "demo-f16.gguf", "--json").stdout)
        same = (
            "weights_bytes",
            "kv_arena_bytes",
            "scratch_bytes",
            "process_bytes",
            "total_bytes",
        )
        assert [plan[key] for key in same] == [local[key] for key in same]
        pulled = quantd("pull", "hf.co/owner/demo", "--as", "small", "--json", *where, **variables)
        assert pulled.returncode == 0, pulled.stderr
        events = [json.loads(line) for line in pulled.stdout.splitlines()]
        assert (events[-1]["event"], events[-1]["name"], events[-1]["size_bytes"]) == (
            "result",
            "small:latest",
            len(q4),
        )
        # FROM a name that is not here is pulled first.
        made = inside(
            "create", "mine", "-f", "-", *where, text="FROM demo\nPARAMETER top_p 0.5\n", **variables
        )
        assert "mine:latest" in made.stdout
        listed = json.loads(inside("list", "--json", *where).stdout)["models"]
        assert [one["name"] for one in listed] == ["demo:latest", "mine:latest", "small:latest"]
        shown = json.loads(inside("show", "mine", "--json", *where).stdout)
        assert (shown["system"], shown["parameters"]["sampling"]) == ("Be brief.", {"top_k": 3, "top_p": 0.5})
    finally:
        for server in (hub, registry, files):
            server.origin.close()


def test_ps_and_stop_with_keys_and_tls(start, models, tmp_path):
    ca, other = trustme.CA(), trustme.CA()
    server, client = ca.issue_cert("127.0.0.1"), ca.issue_cert("client@here")
    for name, pem in (
        ("ca", ca.cert_pem),
        ("other", other.cert_pem),
        ("key", server.private_key_pem),
        ("cert", server.cert_chain_pems[0]),
        ("client", client.cert_chain_pems[0]),
        ("client-key", client.private_key_pem),
    ):
        pem.write_to_path(tmp_path / f"{name}.pem")
    secret, user = new_secret(), new_secret()
    keys = tmp_path / "keys.toml"
    write_keys(keys, [Key("admin", hash_of(secret), manage=True), Key("user", hash_of(user))])
    (tmp_path / "secret").write_text(secret + "\n")
    tls = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    daemon = start(*small(models), *tls, "--tls-client-ca", tmp_path / "ca.pem", "--keys-file", keys)
    trusted = ("--grpc", daemon.grpc, "--ca", tmp_path / "ca.pem")
    own = ("--client-cert", tmp_path / "client.pem", "--client-key", tmp_path / "client-key.pem")

    running = quantd("ps", "--json", *trusted, *own, QUANTD_API_KEY=user)
    assert running.returncode == 0, running.stderr
    assert [one["model"]["name"] for one in json.loads(running.stdout)["models"]] == ["demo"]
    for arguments, variables, code, part in (
        ((*trusted, *own), {}, 64, "key"),
        (trusted, {"QUANTD_API_KEY": user}, 69, "--client-cert"),
        (("--grpc", daemon.grpc), {"QUANTD_API_KEY": user}, 69, "--ca"),
        (
            ("--grpc", daemon.grpc, "--ca", tmp_path / "other.pem", *own),
            {"QUANTD_API_KEY": user},
            69,
            "signed by",
        ),
        ((*trusted, "--ca", tmp_path / "none.pem"), {}, 78, "none.pem"),
        ((*trusted, *own[:2]), {}, 64, "--client-key"),
    ):
        refused = quantd("ps", *arguments, **variables)
        assert (refused.returncode, part in refused.stderr) == (code, True), refused.stderr
        assert "Traceback" not in refused.stderr
    refused = quantd("stop", "demo", *trusted, *own, QUANTD_API_KEY=user)
    assert (refused.returncode, "demo" in refused.stdout) == (64, False)
    stopped = quantd("stop", "demo", *trusted, *own, "--key-file", tmp_path / "secret")
    assert stopped.returncode == 0, stopped.stderr
    assert "out of memory" in stopped.stdout
    assert json.loads(quantd("ps", "--json", *trusted, *own, QUANTD_API_KEY=user).stdout) == {"models": []}
