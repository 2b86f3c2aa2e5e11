"""Settings: precedence, sizes, addresses, and every error at once with its key and source."""

import socket
import stat
from pathlib import Path

import pytest

from daemon.addresses import Address, listen, require_free
from daemon.config import Settings, load
from daemon.errors import ApiError, exit_code
from daemon.sizes import format_size, parse_size


def write(tmp_path, text):
    file = tmp_path / "quantd.toml"
    file.write_text(text)
    return file


def test_defaults(tmp_path):
    settings = load({}, write(tmp_path, ""), {})
    assert (str(settings.http), str(settings.grpc)) == ("127.0.0.1:11434", "127.0.0.1:50051")
    assert (settings.sessions, settings.kv_budget, settings.kv_type) == (4, None, "f16")


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path):
    file = write(tmp_path, 'sessions = 1\nthreads = 1\nkv-type = "q8_0"\nhttp = "127.0.0.1:1"\n')
    environ = {"QUANTD_SESSIONS": "2", "QUANTD_THREADS": "2"}
    settings = load({"sessions": "3", "context": None}, file, environ)
    assert (settings.sessions, settings.threads, settings.kv_type) == (3, 2, "q8_0")
    assert settings.http == Address("127.0.0.1", 1)


def test_kv_budget_answers_to_ollamas_variable(tmp_path):
    file = write(tmp_path, 'kv_budget = "1MiB"')
    assert load({}, file, {"OLLAMA_MAX_KV_CACHE": "2GiB"}).kv_budget == 2 * 2**30
    assert load({}, file, {"OLLAMA_MAX_KV_CACHE": "2GiB", "QUANTD_KV_BUDGET": "3GiB"}).kv_budget == 3 * 2**30
    assert load({"kv_budget": "4096000"}, file, {"OLLAMA_MAX_KV_CACHE": "2GiB"}).kv_budget == 4096000
    assert load({}, file, {}).kv_budget == 2**20


def test_more_of_ollamas_variables(tmp_path):
    environ = {
        "OLLAMA_NUM_PARALLEL": "2",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_MAX_QUEUE": "512",
        "OLLAMA_CONTEXT_LENGTH": "2048",
        "OLLAMA_KV_CACHE_TYPE": "q8_0",
    }
    settings = load({}, write(tmp_path, ""), environ)
    assert (settings.sessions, settings.max_models, settings.max_waiting) == (2, 1, 512)
    assert (settings.context, settings.kv_type) == (2048, "q8_0")
    chosen = dict.fromkeys(("OLLAMA_NUM_PARALLEL", "OLLAMA_MAX_LOADED_MODELS", "OLLAMA_CONTEXT_LENGTH"), "0")
    settings = load({}, write(tmp_path, ""), chosen)
    assert (settings.sessions, settings.max_models, settings.context) == (4, 3, None)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("127.0.0.1", "127.0.0.1:11434"),
        (":9000", "127.0.0.1:9000"),
        ("localhost:9000/", "localhost:9000"),
        ("http://localhost", "localhost:80"),
        ("https://127.0.0.1/x", "127.0.0.1:443"),
        ("http://127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]:5", "[::1]:5"),
        ("[::1]", "[::1]:11434"),
        ("::1", "[::1]:11434"),
        ('"localhost"', "localhost:11434"),
    ],
)
def test_ollama_host(tmp_path, text, address):
    settings = load({}, write(tmp_path, 'http = "127.0.0.1:1"'), {"OLLAMA_HOST": text})
    assert settings.http == Address.parse(address)
    assert load({}, None, {"OLLAMA_HOST": text, "QUANTD_HTTP": "127.0.0.1:2"}).http.port == 2


@pytest.mark.parametrize("text", ["0.0.0.0", "http://192.168.0.7:11434", "127.0.0.1:x"])
def test_an_ollama_host_that_cannot_be_is_named(tmp_path, text):
    with pytest.raises(ApiError) as caught:
        load({}, write(tmp_path, ""), {"OLLAMA_HOST": text})
    assert "from OLLAMA_HOST" in caught.value.message


def test_the_rest_of_ollamas_variables(tmp_path):
    environ = {
        "OLLAMA_MODELS": "/srv/ollama",
        "OLLAMA_LOAD_TIMEOUT": "2m",
        "OLLAMA_DEBUG": "1",
        "OLLAMA_ORIGINS": "https://a.example, chrome-extension://*",
        "OLLAMA_FLASH_ATTENTION": "1",
    }
    settings = load({}, write(tmp_path, ""), environ)
    # A folder of our own: Ollama's server removes blobs that its manifests do not name, and so does ours.
    assert settings.store_folder({}) == Path("/srv/ollama/quantd")
    assert (settings.load_timeout, settings.log_level) == (120.0, "debug")
    assert settings.origins == ("https://a.example", "chrome-extension://*")
    assert load({}, write(tmp_path, ""), {"OLLAMA_DEBUG": "false"}).log_level == "info"


@pytest.mark.parametrize("origins", ['"nonsense"', '["http://a b"]', '[""]', "[1]"])
def test_origins_that_are_none(tmp_path, origins):
    with pytest.raises(ApiError, match="origins"):
        load({}, write(tmp_path, f"origins = {origins}"), {})


def test_every_error_at_once_with_key_and_source(tmp_path):
    file = write(tmp_path, 'sessions = "many"\nnonsense = 1\n')
    with pytest.raises(ApiError) as caught:
        load({"kv_type": "q3", "grpc": "nowhere"}, file, {"QUANTD_THREADS": "0"})
    message = caught.value.message
    assert "5 settings are wrong" in message
    for part in (
        "sessions = 'many'",
        "nonsense",
        "no such setting",
        str(file),
        "kv_type = 'q3' (from --kv-type)",
        "grpc = 'nowhere' (from --grpc)",
        "HOST:PORT",
        "threads = '0' (from QUANTD_THREADS)",
    ):
        assert part in message
    assert exit_code(caught.value) == 78


def test_wrong_flags_alone_are_a_usage_error(tmp_path):
    with pytest.raises(ApiError) as caught:
        load({"sessions": "0"}, write(tmp_path, ""), {})
    assert exit_code(caught.value) == 64


@pytest.mark.parametrize("text", ["sessions = ", "= 3", "\udcff"])
def test_a_broken_file_is_a_config_error(tmp_path, text):
    file = tmp_path / "quantd.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ApiError) as caught:
        load({}, file, {})
    assert exit_code(caught.value) == 78
    assert str(file) in caught.value.message


def test_a_missing_file_that_was_named_is_a_config_error(tmp_path):
    for flags, environ in ((tmp_path / "no.toml", {}), (None, {"QUANTD_CONFIG": str(tmp_path / "no.toml")})):
        with pytest.raises(ApiError) as caught:
            load({}, flags, environ)
        assert exit_code(caught.value) == 78


def test_remote_listeners_need_a_word_of_consent(tmp_path):
    file = write(tmp_path, "")
    for flags in ({"http": "0.0.0.0:80"}, {"grpc": "[::]:80"}, {"http": "example.org:80"}):
        with pytest.raises(ApiError) as caught:
            load(flags, file, {})
        assert "--allow-remote" in caught.value.message
        load({**flags, "allow_remote": True}, file, {})
    for flags in (
        {"http": "[::1]:80"},
        {"grpc": "unix:/run/x.sock"},
        {"http": "localhost:80"},
        {"http": "127.9.9.9:1"},
    ):
        load(flags, file, {})


def test_the_packaged_file_is_sound():
    file = Path(__file__).resolve().parents[2] / "packaging" / "quantd.toml"
    assert load({}, file, {}).models_dir == Path("/srv/quantd/models")


def test_http_needs_a_port(tmp_path):
    with pytest.raises(ApiError):
        load({"http": "unix:/tmp/x"}, write(tmp_path, ""), {})


def test_settings_alone_read_no_environment(monkeypatch):
    monkeypatch.setenv("QUANTD_SESSIONS", "9")
    assert Settings().sessions == 4


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("1GiB", 2**30),
        ("1 gib", 2**30),
        ("1G", 10**9),
        ("1.5MiB", 3 * 2**19),
        ("2KB", 2000),
        (7, 7),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "-1", "1Q", "GiB", "1e9", "9" * 16, "9999999TiB", "1 2", "٣", -1, True, None]
)
def test_bad_sizes(text):
    with pytest.raises(ValueError, match=r"size|range"):
        parse_size(text)


def test_sizes_for_people():
    assert [format_size(one) for one in (0, 512, 1536, 2**30, 2**41)] == [
        "0 B",
        "512 B",
        "1.5 KiB",
        "1.0 GiB",
        "2.0 TiB",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "80",
        ":80",
        "host:",
        "host:x",
        "host:65536",
        "host:-1",
        "::1:80",
        "unix:",
        "unix:" + "x" * 108,
        "h:٣",
    ],
)
def test_bad_addresses(text):
    with pytest.raises(ValueError, match=r"address|path|brackets"):
        Address.parse(text)


def test_addresses_round_trip():
    for text in ("127.0.0.1:80", "[::1]:80", "localhost:0", "unix:/run/x.sock"):
        assert str(Address.parse(text)) == text


def test_a_taken_port_is_named():
    with listen(Address("127.0.0.1", 0), "HTTP") as taken:
        address = Address("127.0.0.1", taken.getsockname()[1])
        for take in (listen, require_free):
            with pytest.raises(ApiError) as caught:
                take(address, "gRPC")
            assert f"gRPC port {address.port}" in caught.value.message
            assert exit_code(caught.value) == 69
    require_free(address, "gRPC")


def test_unknown_hosts_and_foreign_addresses_are_refused():
    for host in ("192.0.2.1", "nowhere.invalid"):
        with pytest.raises(ApiError):
            listen(Address(host, 1), "HTTP")


def test_unix_sockets(tmp_path):
    address = Address(path=str(tmp_path / "s"))
    require_free(address, "gRPC")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address.path)
        server.listen()
        with pytest.raises(ApiError):
            require_free(address, "gRPC")
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)
    require_free(address, "gRPC")  # nobody listens any more: the leftover goes away
    assert not (tmp_path / "s").exists()
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ApiError):
        require_free(address, "gRPC")
    assert (tmp_path / "s").read_text() == "precious"
