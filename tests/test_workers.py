"""Work on several cores: in order, each with what is its own, and torch's threads as before."""

import time

import pytest
import torch

from varlab.workers import in_order


def test_results_come_in_the_order_of_the_work_whoever_is_faster():
    def work(busy, i):
        assert not busy and torch.get_num_threads() == 1  # no two at once have one replica
        busy.append(i)
        time.sleep(0.02 if i % 3 == 0 else 0.0)
        busy.clear()
        return i

    before = torch.get_num_threads()
    assert list(in_order(work, range(20), [[], [], []])) == list(range(20))
    assert torch.get_num_threads() == before


def test_one_replica_works_without_threads_and_errors_come_out():
    assert list(in_order(lambda r, i: r + i, [1, 2], [10])) == [11, 12]
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda r, i: 1 // i, [1, 0, 2], [0, 0]))
    assert torch.get_num_threads() == before
