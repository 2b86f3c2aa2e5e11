import numpy as np

from runtime.prefix import PrefixKeys


def keys_of(maker, tokens, scope=""):
    keys = [maker.root(scope)]
    maker.extend(keys, np.asarray(tokens, np.int32))
    return keys


def make(**changes):
    return PrefixKeys(**{"model": "m", "kv_type": "f16", "page_tokens": 4, **changes})


def test_one_key_for_each_full_page():
    maker = make()
    assert [len(keys_of(maker, range(n))) for n in (0, 3, 4, 7, 8)] == [1, 1, 2, 2, 3]


def test_a_key_stands_for_everything_before_it():
    maker = make()
    a, b = keys_of(maker, [1, 2, 3, 4, 5, 6, 7, 8]), keys_of(maker, [0, 2, 3, 4, 5, 6, 7, 8])
    assert a[1] != b[1]
    assert a[2] != b[2]
    assert keys_of(maker, [1, 2, 3, 4, 9, 9, 9, 9])[1] == a[1]


def test_keys_may_be_made_in_any_number_of_calls():
    maker = make()
    tokens = np.arange(20, dtype=np.int32)
    keys = [maker.root("s")]
    for end in (3, 9, 10, 20):
        maker.extend(keys, tokens[:end])
    assert keys == keys_of(maker, tokens, "s")


def test_scopes_share_nothing_and_cannot_be_forged():
    maker = make()
    scopes = ["", "a", "b", "a', 4, 'b", "\ud800"]
    assert len({keys_of(maker, range(8), scope)[2] for scope in scopes}) == len(scopes)


def test_models_kv_types_and_engines_share_nothing(monkeypatch):
    assert make().root("") != make().root("")  # each engine has a secret of its own
    monkeypatch.setattr("secrets.token_bytes", bytes)
    assert make().root("") == make().root("")
    roots = {
        make(**change).root("") for change in ({}, {"model": "n"}, {"kv_type": "q8_0"}, {"page_tokens": 8})
    }
    assert len(roots) == 4
