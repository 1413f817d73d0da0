"""One token a forward."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .prefill import extend_work, prefill_phase
from .request import Phase, Request
from .runner import Runner, check_tokens, table_of


@dataclass
class Autoregressive:
    """Each forward runs the last token and gives the next."""

    longest: int

    def first_phase(self, request: Request) -> Phase:
        return prefill_phase(request, needs_seed=True)

    def begin(self, request: Request, seed: Tensor, value: int) -> None:
        self.last = seed
        if not request.emit([value]):
            request.phase = Phase(_decode, (request.sampling.greedy,), 1)


def _decode(runner: Runner, requests: list[Request]) -> None:
    tokens = torch.stack([request.mode.last for request in requests])
    table = table_of([request.sampling for request in requests], tokens.device)
    values, (chosen,) = runner.run(extend_work, (), requests, 1, tokens, *(table or ()))
    values = values.tolist()
    check_tokens(values)
    for i, (request, value) in enumerate(zip(requests, values, strict=True)):
        request.forwards["decode"] += 1
        request.context.advance(1)
        request.mode.last = chosen[i : i + 1]
        request.emit([value])
