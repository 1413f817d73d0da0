"""An op's rates: the best of its calls, less what a launch takes."""

import pytest

from dlm_kernels import Cost
from dlm_roofline.op_rates import OpRate, op_rate
from dlm_roofline.predict import Roof

STREAMS, MULTIPLIES = Cost(flops=10.0, bytes=100.0), Cost(flops=900.0, bytes=10.0)


@pytest.mark.parametrize(
    "calls, launch, expected",
    [
        ([(STREAMS, 2.0), (MULTIPLIES, 3.0)], 0.0, OpRate(50.0, 300.0)),
        ([(STREAMS, 2.0), (MULTIPLIES, 3.0)], 1.0, OpRate(100.0, 450.0)),
        ([(STREAMS, 4.0), (STREAMS, 2.0)], 1.0, OpRate(100.0, 10.0)),
        # A call no slower than a launch: at least a tenth of it is work.
        ([(STREAMS, 1.0)], 1.0, OpRate(1000.0, 100.0)),
        ([(Cost(0.0, 100.0), 2.0)], 1.0, OpRate(100.0, None)),
    ],
    ids=["no launch", "less a launch", "the best", "as quick as a launch", "no FLOPs"],
)
def test_rates_are_the_best_of_the_calls(calls, launch, expected) -> None:
    assert op_rate(calls, launch) == expected


@pytest.mark.parametrize(
    "rate, seconds, holder",
    [
        (OpRate(50.0, 300.0), 2.0, "memory"),
        (OpRate(50.0, 2.0), 5.0, "compute"),
        (OpRate(50.0, None), 2.0, "memory"),
        (OpRate(None, 2.0), 5.0, "compute"),
        (OpRate(1e9, 1e9), 1.0, "memory"),  # no op is quicker than the device
    ],
)
def test_a_launch_takes_the_slower_of_bytes_and_flops(rate, seconds, holder) -> None:
    roof = rate.under(Roof(bandwidth=100.0, peak=1000.0, exps=1.0))
    assert (roof.seconds(STREAMS), roof.holder(STREAMS)) == (seconds, holder)
    assert roof.holder(Cost(0.0, 1.0, exps=7.0)) == "exponentials"
