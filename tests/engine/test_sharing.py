"""Pages between requests: prefixes that are shared, and pages that are borrowed and given back."""

from runtime.request import Request
from tests.engine.bench import Bench, request
from tests.engine.fakes import answer_alone


def prompt_of(*parts):
    return [token for part in parts for token in part]


HEAD = list(range(12))  # three pages


def test_a_second_request_computes_only_what_is_new():
    bench = Bench(n_pages=32, context_tokens=64, cache=True)
    bench.add(Request("a", prompt_of(HEAD, [50, 51]), 3))
    bench.run()
    bench.add(Request("b", prompt_of(HEAD, [60, 61, 62]), 3))
    bench.run()
    assert bench.model.steps == [[14], [1], [1], [3], [1], [1]]
    assert bench.sink.finished["a"].cached_tokens == 0
    assert bench.sink.finished["b"].cached_tokens == 12
    assert (bench.scheduler.counts.cache_queried_tokens, bench.scheduler.counts.cache_hit_tokens) == (29, 12)
    for id_, tail in (("a", [50, 51]), ("b", [60, 61, 62])):
        assert bench.sink.ids(id_) == answer_alone(Request(id_, prompt_of(HEAD, tail), 3))


def test_the_last_prompt_token_is_always_computed():
    bench = Bench(n_pages=32, context_tokens=64, cache=True)
    for id_ in "ab":
        bench.add(Request(id_, HEAD, 2))
        bench.run()
    assert bench.model.steps == [[12], [1], [4], [1]]
    assert bench.sink.finished["b"].cached_tokens == 8
    assert bench.sink.ids("b") == answer_alone(Request("b", HEAD, 2))


def test_the_next_turn_of_a_conversation_finds_the_answer_too():
    bench = Bench(n_pages=32, context_tokens=64, cache=True)
    bench.add(Request("a", HEAD[:6], 10))
    bench.run()
    turn = prompt_of(HEAD[:6], bench.sink.ids("a"), [70])
    bench.add(Request("b", turn, 2))
    bench.run()
    # 15 of the 16 tokens were computed: the last one of an answer never is.
    assert bench.sink.finished["b"].cached_tokens == 12
    assert bench.sink.ids("b") == answer_alone(Request("b", turn, 2))


def test_scopes_share_nothing():
    bench = Bench(n_pages=32, context_tokens=64, cache=True)
    for id_, scope in (("a", ""), ("b", "key 1"), ("c", "key 2"), ("d", "key 1")):
        bench.add(Request(id_, prompt_of(HEAD, [50]), 1, cache_scope=scope))
        bench.run()
    assert [bench.sink.finished[id_].cached_tokens for id_ in "abcd"] == [0, 0, 0, 12]


def test_prompts_that_come_in_together_compute_their_beginning_once():
    bench = Bench(n_pages=64, context_tokens=64, cache=True)
    tails = {id_: [80 + index] for index, id_ in enumerate("abcd")}
    for id_, tail in tails.items():
        bench.add(Request(id_, prompt_of(HEAD, tail), 2))
    bench.run()
    assert sum(map(sum, bench.model.steps)) == 12 + 4 + 4  # the beginning, four last tokens, four answer rows
    assert [bench.sink.finished[id_].cached_tokens for id_ in "abcd"] == [0, 12, 12, 12]
    for id_, tail in tails.items():
        assert bench.sink.ids(id_) == answer_alone(Request(id_, prompt_of(HEAD, tail), 2))


def test_a_page_that_is_still_written_is_not_shared():
    bench = Bench(n_pages=64, context_tokens=64, cache=True)
    bench.add(Request("a", HEAD, 20))
    bench.step(row_budget=6)  # one page and a half
    bench.add(Request("b", HEAD, 2))
    bench.step(row_budget=6)
    assert bench.sink.finished == {}
    bench.run()  # the fake model and check_plan see every page that is read while it is written
    assert bench.sink.ids("b") == answer_alone(Request("b", HEAD, 2))


def test_cached_pages_do_not_keep_anybody_out():
    bench = Bench(n_pages=8, sessions=2, context_tokens=32, cache=True)
    for index in range(12):
        new = Request(f"r{index}", [index * 7 + i for i in range(13)], 3)
        bench.add(new)
        bench.run()
        assert bench.sink.ids(new.id) == answer_alone(new)
    statistics = bench.scheduler.pool.statistics()
    assert (statistics.pages_reserved, statistics.pages_free) == (0, 8)
    assert statistics.pages_cached > 0


def test_a_request_that_fails_leaves_no_pages_behind():
    bench = Bench(n_pages=32, context_tokens=64, cache=True)
    bench.model.poison = 96
    for id_ in "ab":
        bench.add(Request(id_, prompt_of(HEAD, [96]), 2))
        bench.run()
    assert bench.sink.finished["b"].cached_tokens == 0


def test_sharing_admits_more_than_would_fit_alone():
    bench = Bench(n_pages=12, sessions=4, context_tokens=40, cache=True)
    long = [*range(30)]  # 9 pages with its answer; two of them would not fit in 12
    for id_ in "ab":
        bench.add(Request(id_, long, 6))
    bench.step()
    assert bench.scheduler.num_running == 1
    bench.step()
    assert bench.scheduler.num_running == 2
    assert bench.scheduler.pool.statistics().pages_reserved == 11
    bench.run()
    assert bench.sink.ids("a") == bench.sink.ids("b") == answer_alone(Request("a", long, 6))
    assert bench.sink.finished["b"].cached_tokens == 28


def test_a_small_request_does_not_wait_for_one_that_borrowed_its_share():
    bench = Bench(n_pages=16, sessions=4, context_tokens=64, cache=True)
    big, small = request("big", prompt=40, max_tokens=20), request("small", prompt=6, max_tokens=4)
    bench.add(big)
    for _ in range(6):
        bench.step()
    said = bench.sink.ids("big")
    bench.add(small)
    bench.step()
    assert bench.sink.ids("small")  # in the very next step
    bench.run()
    assert bench.sink.ids("small") == answer_alone(small)
    assert bench.sink.ids("big") == answer_alone(big)
    assert bench.sink.ids("big")[: len(said)] == said
    assert bench.scheduler.counts.preemptions == 1
    end = bench.sink.finished["big"]
    assert (end.completion_tokens, end.cached_tokens) == (20, 0)
    # Of its 45 computed tokens, it lost the page that was not full and the one that the small request took.
    assert sum(map(sum, bench.model.steps)) <= 40 + 19 + 6 + 3 + 2 * 4


def test_a_request_gives_its_pages_back_once_at_most():
    bench = Bench(n_pages=16, sessions=4, context_tokens=64, cache=True)
    bench.add(request("big", prompt=40, max_tokens=20))
    bench.step()
    bench.add(request("s1", prompt=6, max_tokens=2))
    for _ in range(4):
        bench.step()
    assert bench.scheduler.counts.preemptions == 1
    bench.add(request("s2", prompt=6, max_tokens=2))
    bench.run()
    assert bench.scheduler.counts.preemptions == 1
    assert list(bench.sink.finished) == ["s1", "big", "s2"]


def test_only_a_guaranteed_request_takes_pages_back():
    bench = Bench(n_pages=16, sessions=4, context_tokens=64, cache=True)
    bench.add(request("big", prompt=40, max_tokens=20))
    bench.step()
    bench.add(request("large", prompt=16, max_tokens=4))  # 5 pages, and its share is 4
    bench.run()
    assert bench.scheduler.counts.preemptions == 0
    assert list(bench.sink.finished) == ["big", "large"]


def test_draining_lets_a_preempted_request_finish():
    bench = Bench(n_pages=16, sessions=4, context_tokens=64, cache=True)
    bench.add(request("big", prompt=40, max_tokens=20))
    bench.step()
    bench.add(request("small", prompt=6, max_tokens=4))
    bench.step()
    bench.add(request("new"))
    assert bench.scheduler.num_waiting == 2
    assert [event.request_id for event in bench.scheduler.fail_waiting("engine_stopped", 0.0)] == ["new"]
    bench.run()
    assert bench.sink.ids("big") == answer_alone(request("big", prompt=40, max_tokens=20))
